//! Abuse after which nothing of this guest runs.

use crate::abi::{self, BootDevice};
use crate::cpu;

/// Gates of the interrupt descriptor table.
const GATES: usize = 256;

/// An exception for which there is no gate, nor for those that this leads to.
pub fn shut_down() {
    // SAFETY: the machine reserves the page for this table; nothing of this guest runs after it.
    unsafe { core::ptr::write_bytes(abi::IDT as *mut u8, 0, GATES * 16) };
    // SAFETY: it is not: there is no gate any more, and that is what is wanted.
    unsafe { cpu::ring0(0) };
}

/// Instructions from a device's registers, which nobody can emulate.
pub fn execute(device: BootDevice) {
    // SAFETY: it is not; nothing of this guest runs after it.
    let nothing: extern "C" fn() = unsafe { core::mem::transmute(device.base as *const ()) };
    nothing();
}
