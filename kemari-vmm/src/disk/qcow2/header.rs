//! A look at the header of a qcow2 image before the library has it:
//! what is not understood is refused by name.
//!
//! The layout is that of QEMU's docs/interop/qcow2.txt; all numbers are big-endian.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::super::buffer::{AlignedBuffer, DIRECT_ALIGNMENT};

/// Bytes of a header of version 2, the shortest one.
const HEADER_BYTES_MIN: usize = 72;
/// Bytes of a header of version 3, at least.
const HEADER_3_BYTES_MIN: usize = 104;
/// A cluster has 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// A refcount has up to 64 bits.
const REFCOUNT_ORDER_MAX: u32 = 6;
/// Longest L1 table in bytes, as QEMU has it.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Longest name of a backing file.
const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Kinds of header extensions: the end, the format of the backing file, and the names of features.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of a feature's name and of which bit it is.
const FEATURE_NAME_BYTES: usize = 48;

/// Incompatible features: bits that a reader must know.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The file that an image reads from where it has nothing itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Its name, as it stands in the header.
    pub name: PathBuf,
    /// Whether it is a qcow2 image too; otherwise it is raw.
    pub(crate) is_qcow2: bool,
}

/// Checks that the image of an open file, which its caller may have opened with O_DIRECT, is one that can be
/// read: its first tables lie in the file and are as large as they must be, and there is nothing in it that
/// is not understood. Returns its backing file.
///
/// # Errors
/// As a sentence, with the command that helps.
pub(crate) fn check(mut file: &File) -> io::Result<Option<Backing>> {
    // Of a block device `metadata` knows no length.
    let length = file.seek(SeekFrom::End(0))?;
    let mut bytes = AlignedBuffer::new(DIRECT_ALIGNMENT);
    let read = file.read_at(&mut bytes, 0)?;
    Header(&bytes[..read]).check(length).map_err(io::Error::other)
}

struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn word(&self, at: usize) -> Result<u32, String> {
        let bytes = self.0.get(at..at + 4).ok_or_else(short)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }

    fn long(&self, at: usize) -> Result<u64, String> {
        Ok(u64::from(self.word(at)?) << 32 | u64::from(self.word(at + 4)?))
    }

    fn check(&self, length: u64) -> Result<Option<Backing>, String> {
        if self.0.len() < HEADER_BYTES_MIN {
            return Err(short());
        }
        if self.0[..4] != *b"QFI\xfb" {
            return Err(
                "it does not begin as one; say which `format` it has, or convert it with `qemu-img \
                        convert`"
                    .into(),
            );
        }
        let header_bytes = match self.word(4)? {
            2 => HEADER_BYTES_MIN,
            3 => self.check_features()?,
            version => return Err(format!("it is of version {version}, and 2 and 3 are known")),
        };
        if self.word(32)? != 0 {
            return Err("it is encrypted; decrypt it with `qemu-img convert --image-opts`".into());
        }
        self.check_tables(length)?;
        self.backing(header_bytes)
    }

    /// Returns the length of the header.
    fn check_features(&self) -> Result<usize, String> {
        let features = self.long(72)?;
        let refused = [
            (CORRUPT, "it is marked as corrupt", "qemu-img check -r all"),
            (
                DIRTY,
                "its refcounts may be wrong: it was not closed",
                "qemu-img check -r all",
            ),
            (
                EXTERNAL_DATA,
                "its data are in another file",
                "qemu-img convert -O qcow2",
            ),
            (
                COMPRESSION,
                "it is compressed in a way other than zlib",
                "qemu-img convert -O qcow2",
            ),
            (
                EXTENDED_L2,
                "it has extended L2 entries",
                "qemu-img convert -O qcow2",
            ),
        ];
        for (bit, what, command) in refused {
            if features & bit != 0 {
                return Err(format!("{what}; see `{command}`"));
            }
        }
        if features != 0 {
            return Err(format!(
                "it has features that are not known ({features:#x}); see `qemu-img convert -O qcow2`"
            ));
        }
        if self.word(96)? > REFCOUNT_ORDER_MAX {
            return Err("its refcounts have more than 64 bits".into());
        }
        let header_bytes = self.word(100)? as usize;
        let is_sane =
            (HEADER_3_BYTES_MIN..=self.0.len()).contains(&header_bytes) && header_bytes.is_multiple_of(8);
        is_sane
            .then_some(header_bytes)
            .ok_or_else(|| format!("its header says that it has {header_bytes} bytes"))
    }

    fn check_tables(&self, length: u64) -> Result<(), String> {
        let cluster_bits = self.word(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(format!("its clusters have 2^{cluster_bits} bytes"));
        }
        let cluster_bytes = 1u64 << cluster_bits;
        let (disk_bytes, l1_entries, l1_offset) = (self.long(24)?, u64::from(self.word(36)?), self.long(40)?);
        // An L2 table is a cluster of entries of 8 bytes, each for a cluster.
        let covered_bytes = cluster_bytes * (cluster_bytes / 8);
        if l1_entries < disk_bytes.div_ceil(covered_bytes) || l1_entries * 8 > L1_BYTES_MAX {
            return Err(format!(
                "its table has {l1_entries} entries, which is not what a disk of {disk_bytes} bytes has"
            ));
        }
        let refcount_bytes = u64::from(self.word(56)?) * cluster_bytes;
        let refcount_offset = self.long(48)?;
        for (offset, bytes) in [(l1_offset, l1_entries * 8), (refcount_offset, refcount_bytes)] {
            if offset.checked_add(bytes).is_none_or(|end| end > length) {
                return Err(short());
            }
            if !offset.is_multiple_of(cluster_bytes) || (bytes > 0 && offset == 0) {
                return Err("its tables lie where none can".into());
            }
        }
        if refcount_bytes == 0 {
            return Err("it has no refcounts; see `qemu-img check -r all`".into());
        }
        Ok(())
    }

    /// A backing file whose format is not said would have to be guessed,
    /// from bytes that a guest may have written.
    fn backing(&self, header_bytes: usize) -> Result<Option<Backing>, String> {
        let (offset, name_bytes) = (self.long(8)?, self.word(16)?);
        if name_bytes > BACKING_NAME_BYTES_MAX {
            return Err(format!("its backing file has a name of {name_bytes} bytes"));
        }
        let is_named = offset != 0 && name_bytes > 0;
        let is_qcow2 = self.extensions(header_bytes, is_named.then_some(offset))?;
        if !is_named {
            return Ok(None);
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let name = self.0.get(start..start.saturating_add(name_bytes as usize));
        let name = name.ok_or("the name of its backing file lies where none can")?;
        let is_qcow2 = is_qcow2.ok_or(
            "it does not say which format its backing file has; say it with `qemu-img rebase -u -F FORMAT -b \
             NAME`",
        )?;
        Ok(Some(Backing {
            name: PathBuf::from(OsStr::from_bytes(name)),
            is_qcow2,
        }))
    }

    /// Whether the backing file is a qcow2 image too, if one of the extensions says its format. They end with
    /// one that says so, before `end`.
    fn extensions(&self, header_bytes: usize, end: Option<u64>) -> Result<Option<bool>, String> {
        let end = end.map_or(self.0.len(), |end| {
            self.0.len().min(usize::try_from(end).unwrap_or(usize::MAX))
        });
        let mut at = header_bytes;
        let (mut is_qcow2, mut has_ended) = (None, false);
        while at + 8 <= end {
            let (kind, bytes) = (self.word(at)?, self.word(at + 4)? as usize);
            if kind == EXTENSION_END {
                has_ended = true;
                break;
            }
            at += 8;
            if bytes > end - at {
                return Err("its header's extensions are longer than the header".into());
            }
            if kind == EXTENSION_BACKING_FORMAT {
                let name = &self.0[at..at + bytes];
                is_qcow2 = match name {
                    b"raw" => Some(false),
                    b"qcow2" => Some(true),
                    _ => {
                        return Err(format!(
                            "its backing file is of the format `{}`, and raw and qcow2 are known; see \
                             `qemu-img convert`",
                            name.escape_ascii()
                        ));
                    }
                };
            }
            // The library reads whole entries, and more than there is of the last one.
            if kind == EXTENSION_FEATURE_NAMES && bytes % FEATURE_NAME_BYTES != 0 {
                return Err("its table of the names of features ends in the middle of one".into());
            }
            at += bytes.next_multiple_of(8);
        }
        // The library, which knows none of version 2, would read on where nobody has looked.
        if !has_ended && header_bytes != HEADER_BYTES_MIN {
            return Err("its header's extensions have no end".into());
        }
        Ok(is_qcow2)
    }
}

fn short() -> String {
    "the file ends before its tables do".into()
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
