//! Ring 0: gates, interrupt handlers that only count, and the stubs that wait.
//!
//! On a KVM that emulates ring 0, each of its instructions costs a microsecond, and only plain ones are
//! emulated: everything here is as short and as plain as possible. Ring 3 reaches ring 0 by `int3` with the
//! stub's address in `r10` (neither `syscall` nor `int n` gets there on every KVM).

use core::fmt::Write;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{abi, console, cpu};

/// Vector of the local APIC's timer. Device *i* of the boot information has the vector
/// `TIMER_VECTOR + 1 + i`.
pub const TIMER_VECTOR: u8 = 0x20;
/// Vector of the timer of a further vCPU: it only ends a wait.
pub const WORKER_VECTOR: u8 = 0x40;
/// Vector of the local APIC's spurious interrupt: returns without an end of interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// Interrupt lines that are counted: the timer and every possible device.
pub const LINES: usize = 1 + abi::DEVICES_MAX;
const _: () = assert!(TIMER_VECTOR as usize + LINES <= WORKER_VECTOR as usize);

/// Interrupts taken, a line: the timer first, then the devices.
static COUNTS: [AtomicU64; LINES] = [const { AtomicU64::new(0) }; LINES];
/// Not 0: an interrupt came since [`forget_wake`].
static WAKE: AtomicU32 = AtomicU32::new(0);
/// Vector, error code, instruction pointer and CR2 of a fault.
static FAULT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

core::arch::global_asm!(
    ".section .text.traps, \"ax\"",
    // One handler a line, 64 bytes each. EOI: offset 0xb0 of the local APIC.
    ".balign 64",
    "bare_irq_handlers:",
    ".irp line, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
    ".balign 64",
    "push rax",
    "inc qword ptr [rip + {counts} + 8*\\line]",
    "mov dword ptr [rip + {wake}], 1",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    ".endr",
    // One handler a fault, 16 bytes each. Vectors with an error code push none of their own.
    ".balign 64",
    "bare_fault_handlers:",
    ".irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".balign 16",
    ".if \\vector != 8 && \\vector != 10 && \\vector != 11 && \\vector != 12 && \\vector != 13 && \\vector \
     != 14 && \\vector != 17 && \\vector != 21 && \\vector != 29 && \\vector != 30",
    "push 0",
    ".endif",
    "push \\vector",
    "jmp bare_fault",
    ".endr",
    // Keeps what is known and goes on in ring 3, at the report, with a fresh stack.
    "bare_fault:",
    "pop rax",
    "mov qword ptr [rip + {fault}], rax",
    "pop rax",
    "mov qword ptr [rip + {fault} + 8], rax",
    "mov rax, qword ptr [rsp]",
    "mov qword ptr [rip + {fault} + 16], rax",
    "mov rax, cr2",
    "mov qword ptr [rip + {fault} + 24], rax",
    "lea rax, [rip + bare_fault_report]",
    "mov qword ptr [rsp], rax",
    "mov qword ptr [rsp + 8], 0x33",
    "mov qword ptr [rsp + 16], 0x202",
    "mov qword ptr [rsp + 32], 0x2b",
    "iretq",
    "bare_fault_report:",
    "and rsp, -16",
    "call {report}",
    "ud2",
    ".balign 16",
    "bare_int3:",
    "jmp r10",
    "bare_spurious:",
    "iretq",
    // Waits for an interrupt, unless one came already. The `sti` takes effect after the `hlt`:
    // none is missed.
    "bare_halt:",
    "cmp dword ptr [rip + {wake}], 0",
    "jne 1f",
    "sti",
    "hlt",
    "1:",
    "iretq",
    // Waits for a tick of a timer that goes on ticking: one that came already only makes this wait longer.
    "bare_tick_wait:",
    "sti",
    "hlt",
    "iretq",
    "bare_tick:",
    "push rax",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    "bare_stop:",
    "cli",
    "hlt",
    "jmp bare_stop",
    ".text",
    counts = sym COUNTS,
    wake = sym WAKE,
    fault = sym FAULT,
    report = sym report_fault,
);

unsafe extern "C" {
    static bare_irq_handlers: u8;
    static bare_fault_handlers: u8;
    static bare_int3: u8;
    static bare_spurious: u8;
    static bare_halt: u8;
    static bare_tick_wait: u8;
    static bare_tick: u8;
    static bare_stop: u8;
}

/// Fills the interrupt descriptor table. Faults, `int3`, the timer,
/// the devices and the spurious vector get a gate.
///
/// # Safety
/// To be called once, at boot, on the machine of abi.rs.
pub unsafe fn install() {
    let gate = |vector: u8, handler: u64, privilege: u64| {
        // A 64-bit interrupt gate (interrupts off in the handler) in ring 0's code segment 0x10.
        let low = (handler & 0xffff)
            | 0x10 << 16
            | (0x8e00 | privilege << 13) << 32
            | (handler >> 16 & 0xffff) << 48;
        let entry = (abi::IDT + 16 * u64::from(vector)) as *mut u64;
        // SAFETY: the machine reserves the page at `IDT` for this table, and only this function writes it.
        unsafe {
            entry.write_volatile(low);
            entry.add(1).write_volatile(handler >> 32);
        }
    };
    let faults = (&raw const bare_fault_handlers) as u64;
    for vector in 0..32u8 {
        gate(vector, faults + 16 * u64::from(vector), 0);
    }
    gate(3, (&raw const bare_int3) as u64, 3);
    let lines = (&raw const bare_irq_handlers) as u64;
    for line in 0..LINES as u8 {
        gate(TIMER_VECTOR + line, lines + 64 * u64::from(line), 0);
    }
    gate(WORKER_VECTOR, (&raw const bare_tick) as u64, 0);
    gate(SPURIOUS_VECTOR, (&raw const bare_spurious) as u64, 0);
}

/// Interrupts taken on a line so far: 0 is the timer, 1 + *i* device *i*.
pub fn count(line: usize) -> u64 {
    COUNTS[line].load(Ordering::Relaxed)
}

/// Interrupts taken on all lines.
pub fn total() -> u64 {
    COUNTS.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// From here on an interrupt ends the next wait. To be called before looking for work, not after.
pub fn forget_wake() {
    WAKE.store(0, Ordering::SeqCst);
}

/// Address of the stub that waits for an interrupt; see [`cpu::ring0`].
pub fn halt_stub() -> u64 {
    (&raw const bare_halt) as u64
}

/// Address of the stub in which a further vCPU waits for its timer; see [`cpu::ring0`].
pub fn tick_stub() -> u64 {
    (&raw const bare_tick_wait) as u64
}

/// Stops the vCPU for good, with interrupts off.
pub fn stop() -> ! {
    loop {
        // SAFETY: a stub of this file; the gates are the first thing installed at boot.
        unsafe { cpu::ring0((&raw const bare_stop) as u64) };
    }
}

extern "C" fn report_fault() -> ! {
    let fault = |i: usize| FAULT[i].load(Ordering::Relaxed);
    let _ = writeln!(
        console::Console,
        "bare guest fault: vector {} error {:#x} at {:#x}, cr2 {:#x}",
        fault(0),
        fault(1),
        fault(2),
        fault(3)
    );
    stop()
}
