//! Single instructions: ports, the time stamp counter, and calls into ring 0.

use core::arch::asm;

use crate::abi;

/// Reads one byte from an I/O port.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the TSS opens every port to ring 3, and no port of this machine writes memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes one byte to an I/O port. Memory written before is visible to the machine.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as above. Without `nomem`: what was stored before stays before.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// The time stamp counter.
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: CR4.TSD is clear, so ring 3 may read it. `lfence` keeps it in program order.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Extended control register 0: which register sets exist.
pub fn xcr0() -> u32 {
    let low: u32;
    // SAFETY: CR4.OSXSAVE is set by the machine (abi.rs), so the instruction exists at every privilege level.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags))
    };
    low
}

/// Runs a ring-0 stub of [`crate::traps`]: `int3` enters ring 0, whose handler jumps to `r10`,
/// and the stub returns.
///
/// # Safety
/// `stub` must be the address of a ring-0 stub that ends in `iretq`, and the gates must be installed.
pub unsafe fn ring0(stub: u64) {
    // SAFETY: the caller's promise. Ring 0 has a stack of its own, so the red zone is not touched.
    unsafe { asm!("int3", inout("r10") stub => _) };
}

/// Asks for a sync by a write to the kick port, which does nothing else.
pub fn kick() {
    outb(abi::KICK_PORT, 1);
}

/// Resets the machine.
pub fn reset_machine() -> ! {
    outb(abi::RESET_PORT, abi::RESET_VALUE);
    crate::traps::stop()
}

/// Powers the machine off.
pub fn power_off() -> ! {
    outb(abi::SLEEP_CONTROL_PORT, abi::POWER_OFF_VALUE);
    crate::traps::stop()
}
