//! Firmware of a few instructions: it says what it reads where firmware lies, after it has written there.

use std::fs;
use std::sync::Arc;

use kemari_vmm::boot::Kernel;
use tempfile::NamedTempFile;

const BYTES: usize = 64 << 10;
/// Where the instructions lie.
const CODE_AT: usize = 0xff00;
/// Where it writes and reads.
const PLACE: usize = 0x1000;

/// From the reset vector: `jmp 0xff00`.
const ENTRY: [u8; 3] = [0xe9, 0x0d, 0xff];
const CODE: &[u8] = &[
    0xba, 0xf8, 0x03, // mov dx, 0x3f8: the console
    0x2e, 0xc6, 0x06, 0x00, 0x10, b'w', // mov byte cs:[0x1000], 'w': below 4 GiB
    0x2e, 0xa0, 0x00, 0x10, // mov al, cs:[0x1000]
    0xee, // out dx, al
    0xb8, 0x00, 0xf0, // mov ax, 0xf000: below 1 MiB
    0x8e, 0xd8, // mov ds, ax
    0xa0, 0x00, 0x10, // mov al, [0x1000]
    0xee, // out dx, al
    0xc6, 0x06, 0x00, 0x10, b'w', // mov byte [0x1000], 'w'
    0xa0, 0x00, 0x10, // mov al, [0x1000]
    0xee, // out dx, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

/// What it says: what it has written below 4 GiB is not there; below 1 MiB there is the same,
/// and what it has written is.
pub(crate) const SAID: &str = "rrw";

/// Its machine's kernel.
pub(crate) fn kernel() -> Arc<Kernel> {
    let mut bytes = vec![0; BYTES];
    bytes[PLACE] = b'r';
    bytes[CODE_AT..CODE_AT + CODE.len()].copy_from_slice(CODE);
    bytes[BYTES - 16..BYTES - 13].copy_from_slice(&ENTRY);
    let file = NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), bytes).expect("it is written");
    Arc::new(Kernel::open_firmware(file.path()).expect("it is firmware"))
}
