//! A boot sector: it reads sectors by the BIOS one after the other, says what was in them, again for each key
//! that is typed, and reboots for an r.

use std::arch::global_asm;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::slice;

/// How many sectors it reads, from the second one on.
pub(crate) const SECTORS: usize = 48;
const SECTOR_BYTES: usize = 512;

global_asm!(
    ".pushsection .rodata.boot_sector, \"a\"",
    ".code16",
    "kemari_boot_sector:",
    "    cli",
    "    xorw %ax, %ax",
    "    movw %ax, %ds",
    "    movw %ax, %ss",
    "    movw $0x7c00, %sp",
    "    sti",
    "    cld",
    // Drive, and the packet of an extended read (INT 13h, AH = 42h): a sector to 0x8000.
    "    movb %dl, 0x7000",
    "    movl $0x00010010, 0x7010",
    "    movl $0x00008000, 0x7014",
    "    movl $1, 0x7018",
    "    movl $0, 0x701c",
    "1:  movw $0x7010, %si",
    "    movb 0x7000, %dl",
    "    movb $0x42, %ah",
    "    int $0x13",
    "    jc 3f",
    "    movb 0x8000, %al",
    "    movw 0x7018, %bx",
    "    movb %al, 0x8fff(%bx)",
    "    movb $0, 0x9000(%bx)",
    "    incw %bx",
    "    movw %bx, 0x7018",
    "    cmpw ${sectors}, %bx",
    "    jbe 1b",
    "9:  movw $(5f - kemari_boot_sector + 0x7c00), %si",
    "    callw 4f",
    "    movw $0x9000, %si",
    "    callw 4f",
    "    movw $(6f - kemari_boot_sector + 0x7c00), %si",
    "    callw 4f",
    // The kick port, then a key; by an r it reboots as real-mode programs do,
    // by another it says the same again. The key is taken from the serial port: firmware looks for keys by a
    // clock that stands still for minutes at a time where the guest's TSC did not begin at 0.
    "    movw $0x610, %dx",
    "    outb %al, %dx",
    "    movw $0x3fd, %dx",
    "2:  inb %dx, %al",
    "    testb $1, %al",
    "    jz 2b",
    "    movw $0x3f8, %dx",
    "    inb %dx, %al",
    "    cmpb $0x72, %al",
    "    jne 9b",
    "    ljmpw $0xffff, $0",
    "3:  movw $(7f - kemari_boot_sector + 0x7c00), %si",
    "    callw 4f",
    "2:  hlt",
    "    jmp 2b",
    // Says the text at SI, which a zero ends.
    "4:  lodsb",
    "    testb %al, %al",
    "    jz 8f",
    "    movb $0x0e, %ah",
    "    xorw %bx, %bx",
    "    int $0x10",
    "    jmp 4b",
    "8:  retw",
    "5:  .asciz \"I have read <\"",
    // Firmware keeps a line's last character until its clock has gone on, as above.
    "6:  .asciz \">.\\r\\n\"",
    "7:  .asciz \"The disk cannot be read\\r\\n\"",
    "    .org kemari_boot_sector + 510",
    "    .word 0xaa55",
    ".code64",
    ".popsection",
    sectors = const SECTORS,
    options(att_syntax)
);

unsafe extern "C" {
    #[link_name = "kemari_boot_sector"]
    static BOOT_SECTOR: [u8; SECTOR_BYTES];
}

/// What it says when it has read all.
pub(crate) fn said() -> String {
    format!("I have read <{}>", (0..SECTORS).map(letter).collect::<String>())
}

fn letter(sector: usize) -> char {
    char::from(b'0' + (sector % 64) as u8)
}

/// Makes a disk that boots.
pub(crate) fn write_to(image: &File) {
    // SAFETY: the assembly above has defined so many bytes, which nobody writes.
    let code = unsafe { slice::from_raw_parts((&raw const BOOT_SECTOR).cast::<u8>(), SECTOR_BYTES) };
    image.write_all_at(code, 0).expect("the image is written");
    for sector in 0..SECTORS {
        let at = ((sector + 1) * SECTOR_BYTES) as u64;
        let byte = [letter(sector) as u8];
        image.write_all_at(&byte, at).expect("the image is written");
    }
}
