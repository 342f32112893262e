//! A kernel's file, or firmware's: recognised and loaded into a little memory, or refused.
//!
//! A guest's disk may have brought it, and who builds kernels is not who runs hosts.

use kemari_vmm::boot::{BootConfig, Kernel};
use kemari_vmm::memory::Memory;
use vm_memory::GuestAddress;

use super::support::scratch::Scratch;

/// A kernel is loaded at 1 MiB or above.
const MEMORY_BYTES: usize = 8 << 20;

pub(crate) fn run(bytes: &[u8]) {
    let file = Scratch::with(bytes, 0);
    let config = BootConfig {
        kernel: file.path().to_owned(),
        initrd: None,
        cmdline: "console=ttyS0".into(),
    };
    let (kernel, firmware) = (Kernel::open(&config), Kernel::open_firmware(file.path()));
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("a little memory");
    for file in [kernel, firmware].into_iter().flatten() {
        let _ = file.load(&memory, &[], 1, 1_000_000);
    }
}

/// The smallest files that are recognised as what they are.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut elf = vec![0; 64 + 56];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf[20] = 1;
    // Entry at 2 MiB; one program header behind the file's.
    elf[24..32].copy_from_slice(&(2u64 << 20).to_le_bytes());
    elf[32] = 64;
    elf[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
    let (loaded, bytes) = (64, 56u64);
    elf[loaded] = 1;
    elf[loaded + 4] = 5;
    for (field, value) in [(8, 64), (16, 2 << 20), (24, 2 << 20), (32, bytes), (40, bytes)] {
        elf[loaded + field..loaded + field + 8].copy_from_slice(&value.to_le_bytes());
    }
    // A note that names the entry of PVH (type 18 of "Xen").
    let mut pvh = elf.clone();
    pvh[56] = 2;
    let mut note = vec![0; 56];
    note[0] = 4;
    for (field, value) in [(8, 176u64), (32, 20), (40, 20)] {
        note[field..field + 8].copy_from_slice(&value.to_le_bytes());
    }
    pvh.extend(note);
    pvh.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    pvh.extend(b"Xen\0");
    pvh.extend((2u32 << 20).to_le_bytes());
    // Linux's boot sector and its header (Documentation/arch/x86/boot.rst).
    let mut linux = vec![0; 0x400 + 0x400];
    linux[0x1f1] = 1;
    linux[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    linux[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    linux[0x206..0x208].copy_from_slice(&[0x0f, 2]);
    linux[0x211] = 1;
    linux[0x230..0x234].copy_from_slice(&(2u32 << 20).to_le_bytes());
    linux[0x234] = 1;
    linux[0x236] = 1;
    linux[0x238..0x23a].copy_from_slice(&2047u16.to_le_bytes());
    linux[0x258..0x260].copy_from_slice(&(16u64 << 20).to_le_bytes());
    linux[0x260..0x264].copy_from_slice(&(1u32 << 20).to_le_bytes());
    // A BIOS: a far jump where a processor begins.
    let mut bios = vec![0; 64 << 10];
    bios[(64 << 10) - 16] = 0xea;
    vec![elf, pvh, linux, bios]
}
