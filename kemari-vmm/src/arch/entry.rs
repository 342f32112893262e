//! The ways by which a vCPU enters a guest, and the tables that an entry in 64-bit mode needs:
//! Linux's and the bare guest's.

use super::layout::abi;
use crate::memory::{DoesNotFit, Memory, place};

const PAGE_BYTES: u64 = 0x1000;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Page directories behind the root of the tables: each maps 1 GiB.
const DIRECTORIES: u64 = 4;
/// Bytes that a page directory maps.
const DIRECTORY_BYTES: u64 = 1 << 30;
/// Present, writable, user, accessed.
const TABLE_FLAGS: u64 = 0x27;
/// The same, and dirty, and a large page: the processor never has to write a table, so tables stay clean.
const LARGE_PAGE_FLAGS: u64 = 0xe7;

/// The descriptors, by their selectors. Linux's boot protocol asks for flat code at 0x10 and flat data at
/// 0x18.
const DESCRIPTORS: [u64; 8] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // 0x10: ring-0 code, 64 bits
    0x00cf_9300_0000_ffff, // 0x18: ring-0 data
    0,
    0x00cf_f300_0000_ffff, // 0x28: user data
    0x00af_fb00_0000_ffff, // 0x30: user code, 64 bits
    0,
];

/// What the top of a stack is aligned to.
const RING0_STACK_ALIGN: u64 = 16;

/// Last byte of the I/O permission bitmap, which must be all ones, relative to the TSS.
pub(crate) const TSS_LIMIT: u32 = 0x68 + 8192;
/// Last byte of the descriptor table: eight descriptors, and the TSS's, which takes two places.
pub(crate) const GDT_LIMIT: u16 = 10 * 8 - 1;

/// How the boot vCPU enters what was loaded. All addresses are guest physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol.
    Linux64 {
        /// First instruction.
        rip: u64,
        /// Address of `boot_params`.
        boot_params: u64,
    },
    /// PVH: 32-bit protected mode without paging.
    Pvh {
        /// First instruction.
        rip: u64,
        /// Address of `hvm_start_info`.
        start_info: u64,
    },
    /// A bare guest, in ring 3 of 64-bit mode.
    Bare {
        /// First instruction.
        rip: u64,
    },
    /// Firmware, in real mode at the reset vector.
    ResetVector,
}

/// Where a vCPU's task state and its stack of ring 0 are: the first address, and the one behind the last.
pub fn task(vcpu: u64) -> (u64, u64) {
    match vcpu.checked_sub(1) {
        None => (abi::TSS, abi::RING0_STACK_TOP),
        Some(n) => {
            let area = abi::VCPU_AREAS + n * abi::VCPU_AREA_BYTES;
            (area, area + abi::VCPU_AREA_BYTES - RING0_STACK_ALIGN)
        }
    }
}

/// Writes all tables that an entry in 64-bit mode needs.
pub(crate) fn write_long_mode_tables(memory: &Memory) -> Result<(), DoesNotFit> {
    write_gdt(memory)?;
    write_page_tables(memory)
}

/// Writes the descriptor table at [`abi::GDT`].
fn write_gdt(memory: &Memory) -> Result<(), DoesNotFit> {
    let base = abi::TSS;
    let limit = u64::from(TSS_LIMIT);
    // A busy 64-bit TSS: it is loaded without the instruction that would set the busy bit.
    let tss =
        (limit & 0xffff) | (base & 0xff_ffff) << 16 | 0x8b << 40 | (limit >> 16) << 48 | (base >> 24) << 56;
    let mut bytes = Vec::with_capacity(usize::from(GDT_LIMIT) + 1);
    for descriptor in DESCRIPTORS.into_iter().chain([tss, base >> 32]) {
        bytes.extend(descriptor.to_le_bytes());
    }
    place(memory, abi::GDT, &bytes, "descriptor table")
}

/// Writes page tables at [`abi::PAGE_TABLES`] that map the first 4 GiB one to one.
fn write_page_tables(memory: &Memory) -> Result<(), DoesNotFit> {
    let pointers = abi::PAGE_TABLES + PAGE_BYTES;
    let directories = pointers + PAGE_BYTES;
    let mut tables = vec![0u64; ((2 + DIRECTORIES) * PAGE_BYTES / 8) as usize];
    tables[0] = pointers | TABLE_FLAGS;
    for directory in 0..DIRECTORIES {
        tables[512 + directory as usize] = (directories + directory * PAGE_BYTES) | TABLE_FLAGS;
    }
    for (page, entry) in tables[1024..].iter_mut().enumerate() {
        *entry = (page as u64 * LARGE_PAGE_BYTES) | LARGE_PAGE_FLAGS;
    }
    let bytes: Vec<u8> = tables.into_iter().flat_map(u64::to_le_bytes).collect();
    place(memory, abi::PAGE_TABLES, &bytes, "page tables")
}

/// Adds page directories at [`abi::HIGH_PAGE_DIRECTORIES`] to those tables, so that memory up to `end`, at
/// most [`abi::MAPPED_BYTES_MAX`], is mapped one to one as well.
pub(crate) fn map_high_memory(memory: &Memory, end: u64) -> Result<(), DoesNotFit> {
    for gib in DIRECTORIES..end.min(abi::MAPPED_BYTES_MAX).div_ceil(DIRECTORY_BYTES) {
        let directory = abi::HIGH_PAGE_DIRECTORIES + (gib - DIRECTORIES) * PAGE_BYTES;
        let pointer = abi::PAGE_TABLES + PAGE_BYTES + gib * 8;
        place(
            memory,
            pointer,
            &(directory | TABLE_FLAGS).to_le_bytes(),
            "page tables",
        )?;
        let pages = gib * DIRECTORY_BYTES / LARGE_PAGE_BYTES..(gib + 1) * DIRECTORY_BYTES / LARGE_PAGE_BYTES;
        let bytes: Vec<u8> = pages
            .flat_map(|page| ((page * LARGE_PAGE_BYTES) | LARGE_PAGE_FLAGS).to_le_bytes())
            .collect();
        place(memory, directory, &bytes, "page tables")?;
    }
    Ok(())
}
