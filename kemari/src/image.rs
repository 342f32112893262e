//! From a disk's section to an image, as the machine opens it.

use kemari_vmm::disk::{self, DiskConfig};

use crate::config::{Cache, Format, HostDisk, Io, OnError};

/// How the image of a host's disk is opened. `fenced`: its former user was fenced, so its locks say nothing.
pub(crate) fn image_of(disk: &HostDisk<'_>, fenced: bool) -> DiskConfig {
    let section = disk.disk;
    DiskConfig {
        path: disk.path.clone(),
        format: match section.format {
            Format::Raw => disk::Format::Raw,
            Format::Qcow2 => disk::Format::Qcow2,
        },
        cache: match section.cache {
            Cache::Writeback => disk::Cache::Writeback,
            Cache::Direct => disk::Cache::Direct,
        },
        io: match section.io {
            Io::Auto => disk::Io::Auto,
            Io::IoUring => disk::Io::Uring,
            Io::Threads => disk::Io::Threads,
        },
        on_error: match section.on_error {
            OnError::Report => disk::OnError::Report,
            OnError::Pause => disk::OnError::Pause,
            OnError::Failover => disk::OnError::Failover,
        },
        block_bytes: section.block_size,
        read_only: section.read_only,
        // A replicated disk is nobody else's: its lock means that it is still in use.
        ignore_lock: fenced && section.shared,
    }
}
