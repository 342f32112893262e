//! What this host says of itself to a host that asks before anything is begun (`kemari check`).

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kemari_sync::wire::{About, Message, encode};
use kemari_vmm::arch::preflight;
use kemari_vmm::disk::OpenImage;

use super::clock::wall_clock_ms;
use super::wait::wait;
use crate::config::{Config, Format, HostDisk};
use crate::link::Connection;

/// Bytes of a qcow2 image up to the end of the disk's size.
const QCOW2_HEAD_BYTES: usize = 32;
/// Longest time in which an answer must be taken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What the host `name`, which is this one, has to say. `kernel`: the digest of the kernel's files. May take
/// as long as the storage of the images.
pub fn about(config: &Config, name: &str, kernel: Option<u64>) -> About {
    let mut keys = config.shared_keys();
    // Whatever their paths are called.
    keys.extend(kernel.map(|digest| {
        (
            "the content of the kernel's files".to_owned(),
            (digest ^ digest >> 32) as u32,
        )
    }));
    let images = config.disks_of(name).into_iter().filter(|disk| !disk.disk.shared);
    let features = preflight::open().and_then(|kvm| preflight::features(&kvm, config.machine.vcpus));
    About {
        version: crate::VERSION.to_owned(),
        keys,
        features: features.unwrap_or_default(),
        images: images
            .filter_map(|disk| Some((disk.disk.id.clone(), image_bytes(&disk)?)))
            .collect(),
        memory_available_mib: memory_available_mib().unwrap_or(0),
        wall_clock_ms: wall_clock_ms(),
    }
    .bounded()
}

/// Answers questions, one at a time and on a thread of its own: what a host is like may take as long as its
/// storage.
#[derive(Default)]
pub struct Questions {
    is_answering: Arc<AtomicBool>,
}

impl Questions {
    /// Tells whoever asked over `connection` what this host is like. If another is being answered, or there
    /// is no thread to be had, it hears nothing more.
    pub fn answer(&self, mut connection: Connection, config: Arc<Config>, name: String, kernel: u64) {
        if self.is_answering.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_answering = self.is_answering.clone();
        let tell = move || {
            let mut bytes = Vec::new();
            encode(&Message::About(about(&config, &name, Some(kernel))), &mut bytes);
            connection.send(bytes);
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            while connection.wants_to_write() && Instant::now() < deadline {
                wait(&[], [&connection], Some(100));
                connection.flush();
            }
            is_answering.store(false, Ordering::Release);
        };
        if let Err(error) = thread::Builder::new().name("answer".into()).spawn(tell) {
            tracing::debug!("a question is not answered: {error}");
            self.is_answering.store(false, Ordering::Release);
        }
    }
}

/// Memory that is available on this host, in MiB.
pub fn memory_available_mib() -> Option<u64> {
    available_mib(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

/// The size of the disk in an image, in bytes, whoever uses it: no lock is taken.
fn image_bytes(disk: &HostDisk<'_>) -> Option<u64> {
    let mut file = OpenImage::default().open(&disk.path).ok()?;
    match disk.disk.format {
        Format::Raw => file.seek(SeekFrom::End(0)).ok(),
        Format::Qcow2 => {
            let mut head = [0; QCOW2_HEAD_BYTES];
            file.read_exact(&mut head).ok()?;
            let (magic, size) = (head.first_chunk::<4>()?, head.last_chunk::<8>()?);
            (magic == b"QFI\xfb").then(|| u64::from_be_bytes(*size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo() {
        let text = "MemTotal:       24682660 kB\nMemFree:  1 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(available_mib(text), Some(20_000));
        assert_eq!(available_mib("MemTotal: 5 kB\n"), None);
    }
}
