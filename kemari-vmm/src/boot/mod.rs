//! Kernels and firmware: recognised once, loaded at every start of the guest.
//!
//! Three kinds are known: a Linux bzImage, entered in 64-bit mode by Linux's boot protocol; an ELF file with
//! a PVH note (an uncompressed `vmlinux`), entered in 32-bit mode with Xen's start info; and Kemari's bare
//! guest ([`crate::arch::layout::abi`]). Instead of a kernel there may be firmware, which
//! finds one on a disk. The files stay in memory, so that a guest can reboot although they are gone or
//! changed.

mod bare;
mod bzimage;
mod elf;
mod error;
mod firmware;
mod linux;

#[cfg(test)]
mod boot_test;
#[cfg(test)]
pub(crate) mod test_elf;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use error::BootError;
pub(crate) use firmware::FIRMWARE_BYTES_MAX;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::entry::Entry;
use crate::arch::layout::{self, MmioDevice};
use crate::devices::fw_cfg::Items;
use crate::memory::{DoesNotFit, Memory, place};

/// Largest kernel file, in bytes.
pub(crate) const KERNEL_BYTES_MAX: u64 = 1 << 30;
/// Largest initrd file, in bytes.
pub(crate) const INITRD_BYTES_MAX: u64 = 2 << 30;

/// What to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// A bzImage, a `vmlinux` with a PVH entry, or a bare guest.
    pub kernel: PathBuf,
    /// Initial RAM disk of a Linux kernel.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
}

/// A file, as it was recognised.
enum Image {
    BzImage(bzimage::BzImage),
    Pvh(elf::Elf, u32),
    Bare(elf::Elf),
    Firmware,
}

/// The files of a [`BootConfig`], read and recognised; or firmware.
pub struct Kernel {
    path: PathBuf,
    image: Image,
    bytes: Vec<u8>,
    initrd: Option<Vec<u8>>,
    cmdline: String,
}

impl Kernel {
    /// Reads the files and recognises the kernel.
    ///
    /// # Errors
    /// If a file cannot be read or is too large, if the kernel is of no known kind, or if the command line is
    /// too long.
    pub fn open(config: &BootConfig) -> Result<Self, BootError> {
        let path = config.kernel.clone();
        let bytes = read(&path, KERNEL_BYTES_MAX)?;
        let image = recognise(&path, &bytes)?;
        let cmdline_bytes_max = match &image {
            Image::BzImage(bzimage) => bzimage.cmdline_bytes_max().min(layout::CMDLINE_BYTES_MAX),
            Image::Pvh(..) => layout::CMDLINE_BYTES_MAX,
            Image::Bare(_) => layout::abi::CMDLINE_BYTES_MAX,
            Image::Firmware => 0,
        };
        if config.cmdline.len() > cmdline_bytes_max {
            return Err(BootError::CmdlineTooLong {
                bytes: config.cmdline.len(),
                bytes_max: cmdline_bytes_max,
            });
        }
        if config.cmdline.contains('\0') {
            return Err(BootError::CmdlineZero);
        }
        if matches!(image, Image::Bare(_)) && config.initrd.is_some() {
            return Err(BootError::BareInitrd { path });
        }
        let initrd = config
            .initrd
            .as_deref()
            .map(|path| read(path, INITRD_BYTES_MAX))
            .transpose()?;
        Ok(Self {
            path,
            image,
            bytes,
            initrd,
            cmdline: config.cmdline.clone(),
        })
    }

    /// Reads firmware, which boots a disk.
    ///
    /// # Errors
    /// If the file cannot be read, or is none.
    pub fn open_firmware(path: &Path) -> Result<Self, BootError> {
        let not_firmware = |reason| BootError::NotFirmware {
            path: path.to_path_buf(),
            reason,
        };
        let bytes = read(path, FIRMWARE_BYTES_MAX).map_err(|error| match error {
            BootError::FileTooLarge { .. } => not_firmware("it is larger, as UEFI firmware is"),
            other => other,
        })?;
        firmware::check(&bytes).map_err(not_firmware)?;
        Ok(Self {
            path: path.to_path_buf(),
            image: Image::Firmware,
            bytes,
            initrd: None,
            cmdline: String::new(),
        })
    }

    /// The firmware that lies below 4 GiB, if this is firmware.
    pub(crate) fn rom(&self) -> Option<&[u8]> {
        matches!(self.image, Image::Firmware).then_some(&self.bytes)
    }

    /// What firmware is told of such a machine, if this is firmware.
    pub(crate) fn firmware_items(
        &self,
        memory: &Memory,
        devices: &[MmioDevice],
        vcpu_count: u8,
    ) -> Option<Items> {
        let rom = self.rom();
        rom.map(|_| firmware::items(memory, devices, vcpu_count))
    }

    /// A number that differs between different kernels, initrds or command lines, and is the same on every
    /// host. It guards against mistakes, not against forgery.
    pub fn digest(&self) -> u64 {
        let initrd = self.initrd.as_deref().unwrap_or_default();
        [&self.bytes, initrd, self.cmdline.as_bytes()]
            .iter()
            .fold(DIGEST_SEED, |digest, part| mix(digest, part))
    }

    /// Whether this is Kemari's bare guest, which runs where KVM emulates ring 0.
    pub fn is_bare(&self) -> bool {
        matches!(self.image, Image::Bare(_))
    }

    /// Writes kernel, initrd, command line and tables into guest memory, and says how to enter.
    ///
    /// The memory may have been used by a guest before: what the new one relies on being zero is cleared.
    ///
    /// # Errors
    /// If the guest's memory is too small, or there are more devices than the machine has places.
    pub fn load(
        &self,
        memory: &Memory,
        devices: &[MmioDevice],
        vcpu_count: u8,
        tsc_khz: u32,
    ) -> Result<Entry, BootError> {
        if devices.len() > layout::VIRTIO_MMIO_DEVICES_MAX {
            return Err(BootError::TooManyDevices { count: devices.len() });
        }
        let guest = linux::Guest {
            memory,
            initrd: self.initrd.as_deref(),
            cmdline: &self.cmdline,
            devices,
            vcpu_count,
        };
        match &self.image {
            Image::BzImage(bzimage) => linux::load_bzimage(&guest, bzimage, &self.bytes),
            Image::Pvh(elf, rip) => linux::load_pvh(&guest, elf, *rip, &self.bytes),
            Image::Bare(elf) => {
                let boot_info = bare::boot_info(memory, devices, vcpu_count, tsc_khz, &self.cmdline);
                bare::load(memory, elf, &self.bytes, &boot_info)
            }
            Image::Firmware => firmware::load(memory, &self.bytes),
        }
        .map_err(|error| error.of_kernel(&self.path))
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BootError> {
    let failed = |source| BootError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // A directory or a device node has no end that could be trusted.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(BootError::NotAFile {
            path: path.to_path_buf(),
        });
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(BootError::FileTooLarge {
            path: path.to_path_buf(),
            bytes_max,
        });
    }
    Ok(bytes)
}

fn recognise(path: &Path, bytes: &[u8]) -> Result<Image, BootError> {
    let unknown = |reason| BootError::NotAKernel {
        path: path.to_path_buf(),
        reason,
    };
    if bzimage::is_one(bytes) {
        return bzimage::BzImage::parse(bytes)
            .map(Image::BzImage)
            .map_err(unknown);
    }
    if !elf::is_one(bytes) {
        return Err(unknown("it is neither a bzImage nor an ELF file"));
    }
    let elf = elf::Elf::parse(bytes).map_err(unknown)?;
    if elf.is_bare {
        bare::check(&elf).map_err(unknown)?;
        return Ok(Image::Bare(elf));
    }
    match elf.pvh_entry {
        Some(rip) => Ok(Image::Pvh(elf, rip)),
        None => Err(unknown(
            "it is an ELF file without a PVH entry (CONFIG_PVH) and without Kemari's note",
        )),
    }
}

/// Clears guest memory.
fn clear(memory: &Memory, address: u64, bytes: u64, what: &'static str) -> Result<(), DoesNotFit> {
    static ZEROS: [u8; 0x1_0000] = [0; 0x1_0000];
    let mut done = 0;
    while done < bytes {
        let step = (bytes - done).min(ZEROS.len() as u64);
        place(
            memory,
            address.saturating_add(done),
            &ZEROS[..step as usize],
            what,
        )?;
        done += step;
    }
    Ok(())
}

/// Bytes of memory below the hole.
fn low_memory_bytes(memory: &Memory) -> u64 {
    memory.iter().next().map_or(0, |region| region.len())
}

/// First address behind all memory.
fn memory_end(memory: &Memory) -> u64 {
    memory
        .iter()
        .last()
        .map_or(0, |region| region.start_addr().0 + region.len())
}

const DIGEST_SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// Folds one part into a digest, eight bytes at a time; the part's length separates it from the next.
fn mix(digest: u64, part: &[u8]) -> u64 {
    let step = |digest: u64, word: u64| {
        let product = u128::from(digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        (product as u64).rotate_left(29) ^ (product >> 64) as u64
    };
    let (words, rest) = part.as_chunks::<8>();
    let digest = words
        .iter()
        .fold(digest, |digest, word| step(digest, u64::from_le_bytes(*word)));
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    step(step(digest, u64::from_le_bytes(tail)), part.len() as u64)
}
