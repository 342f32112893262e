//! `CHECK`: what must hold in a machine that keeps its promises, whatever happened to its host meanwhile.

use alloc::format;
use alloc::string::String;

use crate::apic::Timer;
use crate::commit::Storage;
use crate::pattern::PatternArea;
use crate::{clock, fpu, worker};

/// Timer interrupts that are waited for, and how long each takes.
const TICKS: usize = 3;
const TICK_US: u64 = 2_000;
/// How much too early a tick may be: the timer's frequency was measured, on a machine that may be busy.
const EARLY_US_MAX: u64 = TICK_US / 10;
/// How much too late it may be before it counts as lost: the machine may be paused or taken over in between.
const LATE_US_MAX: u64 = 10_000_000;
/// How long a due tick may stay unseen.
const UNSEEN_US_MAX: u64 = 50_000;
/// Rounds of one spin with live registers: some microseconds.
const SPIN_ROUNDS: u64 = 20_000;

/// Verifies everything; the error says what does not hold.
pub fn check(area: &PatternArea, timer: &mut Timer, storage: &Storage) -> Result<(), String> {
    timer_in_step(timer)?;
    area.verify().map_err(|what| format!("memory: {what}"))?;
    match fpu::counts() {
        (_, 0) => {}
        (comparisons, wrong) => {
            return Err(format!(
                "floating-point state was lost {wrong} times of {comparisons}"
            ));
        }
    }
    match worker::counts() {
        (_, 0) => {}
        (rounds, wrong) => {
            return Err(format!(
                "memory or registers of the vCPUs were of different moments {wrong} times in {rounds} rounds"
            ));
        }
    }
    match clock::steps_back() {
        0 => {}
        steps => return Err(format!("the time stamp counter stepped back {steps} times")),
    }
    match storage.index().damaged() {
        0 => Ok(()),
        slots => Err(format!("{slots} slots of the disk were damaged at boot")),
    }
}

/// The timer of the local APIC fires, neither too early nor never, by the time stamp counter.
fn timer_in_step(timer: &mut Timer) -> Result<(), String> {
    let begun_us = clock::now_us();
    while timer.expired_unseen() {
        if clock::now_us() - begun_us > UNSEEN_US_MAX {
            return Err("an interrupt of the timer was lost".into());
        }
    }
    for _ in 0..TICKS {
        timer.disarm();
        let begun_us = clock::now_us();
        timer.arm(begun_us + TICK_US);
        while Timer::ticks() == timer.ticks_at_arming() {
            fpu::guarded_spin(SPIN_ROUNDS);
            if clock::now_us() - begun_us > TICK_US + LATE_US_MAX {
                return Err(format!("the timer, set to {TICK_US} us, did not fire"));
            }
        }
        let took_us = clock::now_us() - begun_us;
        if took_us + EARLY_US_MAX < TICK_US {
            return Err(format!(
                "the timer, set to {TICK_US} us, fired after {took_us} us"
            ));
        }
    }
    Ok(())
}

/// Computes for so long with all registers live, without any output.
pub fn stall(duration_us: u64) {
    let until_us = clock::now_us() + duration_us;
    while clock::now_us() < until_us {
        fpu::guarded_spin(SPIN_ROUNDS);
    }
}
