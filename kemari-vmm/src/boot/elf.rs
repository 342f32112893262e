//! ELF files: segments, and the two notes that tell how to enter (System V ABI, "Object files"; 64-bit,
//! x86-64).

use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::{BootError, clear};
use crate::arch::layout::abi;
use crate::memory::{Memory, place};

/// Most program headers of a kernel.
const SEGMENTS_MAX: u16 = 64;
/// Xen's note with the 32-bit entry point of PVH (Xen's public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE_NAME: &[u8] = b"Xen\0";
const PVH_NOTE_TYPE: u32 = 18;

const ELF_CLASS_64: u8 = 2;
const ELF_DATA_LITTLE_ENDIAN: u8 = 1;
const ELF_MACHINE_X86_64: u16 = 62;
const ELF_TYPE_EXECUTABLE: u16 = 2;

/// A part of the file that lies in memory.
struct Part {
    /// Where in the file.
    file: std::ops::Range<usize>,
    /// Where in guest physical memory.
    address: u64,
    /// How long there; what the file does not cover is zero.
    memory_bytes: u64,
}

/// An ELF file that was checked: its ranges lie within the file, its addresses do not overflow.
pub(crate) struct Elf {
    segments: Vec<Part>,
    /// The 64-bit entry of the header.
    pub entry: u64,
    /// The entry named by Xen's note.
    pub(crate) pvh_entry: Option<u32>,
    /// Whether Kemari's note is there.
    pub is_bare: bool,
}

/// Whether the file claims to be an ELF file.
pub(crate) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

fn object<T: ByteValued>(bytes: &[u8], offset: u64) -> Option<T> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(size_of::<T>())?;
    let mut object = T::zeroed();
    object.as_mut_slice().copy_from_slice(bytes.get(start..end)?);
    Some(object)
}

fn file_range(bytes: &[u8], offset: u64, length: u64) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes.len()).then_some(start..end)
}

impl Elf {
    /// Checks the file. The error says what was found instead of a kernel.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let header: Elf64_Ehdr = object(bytes, 0).ok_or("its ELF header is cut off")?;
        if header.e_ident[4] != ELF_CLASS_64
            || header.e_ident[5] != ELF_DATA_LITTLE_ENDIAN
            || header.e_machine != ELF_MACHINE_X86_64
        {
            return Err("it is an ELF file for another processor than x86-64");
        }
        if header.e_type != ELF_TYPE_EXECUTABLE {
            return Err("it is an ELF file that is not statically linked to an address");
        }
        if header.e_phnum > SEGMENTS_MAX || usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
            return Err("its ELF program headers are not those of a kernel");
        }
        let mut elf = Self {
            segments: Vec::new(),
            entry: header.e_entry,
            pvh_entry: None,
            is_bare: false,
        };
        for index in 0..u64::from(header.e_phnum) {
            let offset = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
            let segment: Elf64_Phdr = offset
                .and_then(|offset| object(bytes, offset))
                .ok_or("its ELF program headers are cut off")?;
            elf.take(bytes, &segment)?;
        }
        if elf.segments.is_empty() {
            return Err("it is an ELF file without a segment to load");
        }
        Ok(elf)
    }

    fn take(&mut self, bytes: &[u8], segment: &Elf64_Phdr) -> Result<(), &'static str> {
        if segment.p_type != PT_LOAD && segment.p_type != PT_NOTE {
            return Ok(());
        }
        let file = file_range(bytes, segment.p_offset, segment.p_filesz)
            .ok_or("a segment lies behind the end of the file: it is cut off")?;
        if segment.p_type == PT_NOTE {
            return self.take_notes(&bytes[file]);
        }
        if segment.p_filesz > segment.p_memsz || segment.p_paddr.checked_add(segment.p_memsz).is_none() {
            return Err("a segment of the ELF file has impossible sizes");
        }
        self.segments.push(Part {
            file,
            address: segment.p_paddr,
            memory_bytes: segment.p_memsz,
        });
        Ok(())
    }

    fn take_notes(&mut self, mut notes: &[u8]) -> Result<(), &'static str> {
        const BROKEN: &str = "the notes of the ELF file are broken";
        while !notes.is_empty() {
            let header: Elf64_Nhdr = object(notes, 0).ok_or(BROKEN)?;
            let name_start = size_of::<Elf64_Nhdr>();
            // Name and descriptor are each padded to four bytes; sums of u32s fit into usize.
            let descriptor_start = name_start + (header.n_namesz as usize).next_multiple_of(4);
            let name = notes
                .get(name_start..name_start + header.n_namesz as usize)
                .ok_or(BROKEN)?;
            let descriptor = notes
                .get(descriptor_start..descriptor_start + header.n_descsz as usize)
                .ok_or(BROKEN)?;
            if name == PVH_NOTE_NAME && header.n_type == PVH_NOTE_TYPE {
                let entry = descriptor.first_chunk().ok_or("its PVH note is too short")?;
                self.pvh_entry = Some(u32::from_le_bytes(*entry));
            }
            self.is_bare |= name == abi::NOTE_NAME && header.n_type == abi::NOTE_TYPE;
            let end = descriptor_start + (header.n_descsz as usize).next_multiple_of(4);
            notes = notes.get(end..).unwrap_or_default();
        }
        Ok(())
    }

    /// Lowest address of a segment.
    pub(crate) fn start(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.address)
            .min()
            .unwrap_or(0)
    }

    /// First address behind all segments.
    pub(crate) fn end(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.address + segment.memory_bytes)
            .max()
            .unwrap_or(0)
    }

    /// Whether an address lies in a segment.
    pub(crate) fn contains(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|offset| offset < segment.memory_bytes)
        })
    }

    /// Writes the segments, and clears what the file does not cover.
    pub(crate) fn load(&self, memory: &Memory, bytes: &[u8]) -> Result<(), BootError> {
        for segment in &self.segments {
            let content = &bytes[segment.file.clone()];
            place(memory, segment.address, content, "kernel")?;
            let covered = content.len() as u64;
            clear(
                memory,
                segment.address + covered,
                segment.memory_bytes - covered,
                "kernel",
            )?;
        }
        Ok(())
    }
}
