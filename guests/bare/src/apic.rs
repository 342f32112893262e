//! The local APIC (its one-shot timer) and the I/O APIC, programmed from ring 3 by MMIO.
//! (Intel SDM volume 3, chapter "APIC"; 82093AA I/O APIC.)

use crate::abi::{self, BootDevice};
use crate::{clock, cpu, traps};

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const SPURIOUS: u64 = 0xf0;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const ENABLE: u32 = 1 << 8;
const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_16: u32 = 3;

/// Pins of the I/O APIC.
const PINS: u32 = 24;
/// Data ports of the two 8259s: a byte of ones masks all their lines.
const PIC_DATA_PORTS: [u16; 2] = [0x21, 0xa1];

/// How long one measurement of the timer's frequency takes, and how many there are:
/// the least disturbed one counts.
const CALIBRATION_US: u64 = 400;
const CALIBRATIONS: usize = 3;

fn read(register: u64) -> u32 {
    // SAFETY: the local APIC's page is mapped one to one, and reading these registers has no side effects.
    unsafe { ((abi::LOCAL_APIC + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: as above; the values written here only concern interrupts for which gates exist.
    unsafe { ((abi::LOCAL_APIC + register) as *mut u32).write_volatile(value) }
}

/// The one-shot timer of the local APIC.
pub struct Timer {
    /// Counts a second, after the divider.
    hz: u64,
    /// The time at which an armed timer is to fire.
    armed_us: Option<u64>,
    /// Ticks seen when it was armed.
    ticks_at_arming: u64,
}

impl Timer {
    /// Switches the local APIC on, masks what is not ours, and measures the timer's frequency.
    pub fn start() -> Timer {
        for port in PIC_DATA_PORTS {
            cpu::outb(port, 0xff);
        }
        write(LVT_LINT0, MASKED);
        write(LVT_LINT1, MASKED);
        write(TASK_PRIORITY, 0);
        write(SPURIOUS, ENABLE | u32::from(traps::SPURIOUS_VECTOR));
        write(DIVIDE, DIVIDE_BY_16);
        write(LVT_TIMER, MASKED | u32::from(traps::TIMER_VECTOR));
        let (_, hz) = (0..CALIBRATIONS)
            .map(|_| measure_hz())
            .min()
            .expect("there is one measurement at least");
        assert!(hz > 0, "the local APIC's timer does not count");
        write(LVT_TIMER, u32::from(traps::TIMER_VECTOR));
        Timer {
            hz,
            armed_us: None,
            ticks_at_arming: 0,
        }
    }

    /// Counts a second, after the divider.
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// Timer interrupts so far.
    pub fn ticks() -> u64 {
        traps::count(0)
    }

    /// Makes sure that the timer fires at `deadline_us` or earlier. One that fires too early costs less than
    /// reprogramming it again and again.
    pub fn fire_by(&mut self, deadline_us: u64) {
        if Timer::ticks() != self.ticks_at_arming {
            self.armed_us = None;
        }
        if self.armed_us.is_none_or(|armed_us| deadline_us < armed_us) {
            self.arm(deadline_us);
        }
    }

    /// Programs the timer to fire at `deadline_us`, replacing what it was programmed to before.
    pub fn arm(&mut self, deadline_us: u64) {
        let wait_us = deadline_us.saturating_sub(clock::now_us());
        let count = (u128::from(wait_us) * u128::from(self.hz)).div_ceil(1_000_000);
        self.ticks_at_arming = Timer::ticks();
        self.armed_us = Some(deadline_us);
        // 0 would stop it. A wait longer than the counter holds fires early, and is armed again.
        write(INITIAL_COUNT, count.clamp(1, u128::from(u32::MAX)) as u32);
    }

    /// Stops the timer. A tick that was under way is counted by now.
    pub fn disarm(&mut self) {
        write(INITIAL_COUNT, 0);
        self.armed_us = None;
    }

    /// Ticks that had been seen when it was armed the last time.
    pub fn ticks_at_arming(&self) -> u64 {
        self.ticks_at_arming
    }

    /// An armed timer has counted down to 0, but its interrupt has not been seen (yet).
    pub fn expired_unseen(&self) -> bool {
        self.armed_us.is_some() && Timer::ticks() == self.ticks_at_arming && read(CURRENT_COUNT) == 0
    }
}

/// Switches the local APIC of a further vCPU on, with a timer that fires every `count` counts, for good.
pub fn start_periodic(vector: u8, count: u32) {
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, ENABLE | u32::from(traps::SPURIOUS_VECTOR));
    write(DIVIDE, DIVIDE_BY_16);
    write(LVT_TIMER, PERIODIC | u32::from(vector));
    write(INITIAL_COUNT, count);
}

/// One measurement: how badly it was disturbed (in ticks of the time stamp counter),
/// and the timer's counts a second.
fn measure_hz() -> (u64, u64) {
    let before = cpu::rdtsc();
    write(INITIAL_COUNT, u32::MAX);
    let begin = cpu::rdtsc();
    let wait = clock::us_to_ticks(CALIBRATION_US);
    while cpu::rdtsc() - begin < wait {}
    let end = cpu::rdtsc();
    let counted = u32::MAX - read(CURRENT_COUNT);
    let after = cpu::rdtsc();
    write(INITIAL_COUNT, 0);
    let disturbance = (begin - before) + (after - end);
    let elapsed_ns = clock::ticks_to_ns((end - begin) + disturbance / 2).max(1);
    (disturbance, u64::from(counted) * 1_000_000_000 / elapsed_ns)
}

/// Routes the interrupt of each device to its vector on this vCPU: edge-triggered, active high.
pub fn route(devices: &[BootDevice]) {
    let destination = read(ID) >> 24;
    for (i, device) in devices.iter().enumerate() {
        assert!(
            device.gsi < PINS,
            "device {i} has the interrupt {}, but the I/O APIC has {PINS} pins",
            device.gsi
        );
        let vector = u32::from(traps::TIMER_VECTOR) + 1 + i as u32;
        let entry = 0x10 + 2 * device.gsi;
        write_io(entry + 1, destination << 24);
        write_io(entry, vector);
    }
}

fn write_io(register: u32, value: u32) {
    // SAFETY: the I/O APIC's page is mapped one to one: an index register, and a window at 0x10.
    unsafe {
        (abi::IO_APIC as *mut u32).write_volatile(register);
        ((abi::IO_APIC + 0x10) as *mut u32).write_volatile(value);
    }
}
