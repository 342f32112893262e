//! Small ELF files for tests.

use crate::arch::layout::abi;

/// Where a test's program is loaded.
pub(crate) const ADDRESS: u64 = 0x10_0000;
/// Bytes of zeros behind it.
pub(crate) const BSS_BYTES: u64 = 0x1_0000;
/// Offset of the program in the file, behind the headers and the note.
pub(crate) const CODE_OFFSET: u64 = 0x1000;

const NOTE_OFFSET: u64 = 64 + 2 * 56;

/// Kemari's note.
pub(crate) fn bare_note() -> Vec<u8> {
    note(abi::NOTE_NAME, abi::NOTE_TYPE, &[])
}

/// An ELF note.
pub(crate) fn note(name: &[u8], type_: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, descriptor.len() as u32, type_] {
        note.extend(word.to_le_bytes());
    }
    note.extend(name);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(descriptor);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// A static ELF file with one segment to load at [`ADDRESS`], entered at its start, and one of notes.
pub(crate) fn elf(code: &[u8], notes: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for long in [ADDRESS, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let code_bytes = code.len() as u64;
    let segment = |file: &mut Vec<u8>, type_: u32, offset: u64, address: u64, file_bytes: u64, bytes: u64| {
        file.extend(type_.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for long in [offset, address, address, file_bytes, bytes, 4] {
            file.extend(long.to_le_bytes());
        }
    };
    segment(
        &mut file,
        1,
        CODE_OFFSET,
        ADDRESS,
        code_bytes,
        code_bytes + BSS_BYTES,
    );
    segment(
        &mut file,
        4,
        NOTE_OFFSET,
        0,
        notes.len() as u64,
        notes.len() as u64,
    );
    file.extend(notes);
    file.resize(CODE_OFFSET as usize, 0);
    file.extend(code);
    file
}
