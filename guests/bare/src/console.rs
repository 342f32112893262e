//! The serial console: polled writes. Every byte is output that needs a sync, so little is said here.

use core::fmt;

use crate::cpu::{inb, outb};

/// Transmit register of the first serial port.
const DATA_PORT: u16 = 0x3f8;
/// Its line status register; bit 5: the transmit register is empty.
const STATUS_PORT: u16 = DATA_PORT + 5;
const STATUS_EMPTY: u8 = 1 << 5;
/// Reads of the status before a byte is dropped: a console that takes nothing must not stop the guest.
const POLLS_MAX: u32 = 100_000;

/// Writes to the serial port.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    if (0..POLLS_MAX).any(|_| inb(STATUS_PORT) & STATUS_EMPTY != 0) {
        outb(DATA_PORT, byte);
    }
}
