//! Time from the time stamp counter, and a watch on it: it must never step back.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;

static TSC_KHZ: AtomicU64 = AtomicU64::new(1);
static TSC_AT_BOOT: AtomicU64 = AtomicU64::new(0);
static TSC_LAST: AtomicU64 = AtomicU64::new(0);
static STEPS_BACK: AtomicU64 = AtomicU64::new(0);

/// Starts the clock at 0.
pub fn start(tsc_khz: u32) {
    TSC_KHZ.store(u64::from(tsc_khz), Ordering::Relaxed);
    let now = cpu::rdtsc();
    TSC_AT_BOOT.store(now, Ordering::Relaxed);
    TSC_LAST.store(now, Ordering::Relaxed);
}

/// Microseconds since boot. Never goes back: a counter that does is counted,
/// and the clock stands still meanwhile.
pub fn now_us() -> u64 {
    let mut now = cpu::rdtsc();
    let last = TSC_LAST.load(Ordering::Relaxed);
    if now < last {
        STEPS_BACK.fetch_add(1, Ordering::Relaxed);
        now = last;
    } else {
        TSC_LAST.store(now, Ordering::Relaxed);
    }
    ticks_to_us(now - TSC_AT_BOOT.load(Ordering::Relaxed))
}

/// How often the time stamp counter was found to be smaller than before.
pub fn steps_back() -> u64 {
    STEPS_BACK.load(Ordering::Relaxed)
}

/// Ticks of the time stamp counter in a kHz-given frequency, as microseconds.
pub fn ticks_to_us(ticks: u64) -> u64 {
    (u128::from(ticks) * 1000 / u128::from(TSC_KHZ.load(Ordering::Relaxed))) as u64
}

/// Ticks of the time stamp counter as nanoseconds.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(TSC_KHZ.load(Ordering::Relaxed))) as u64
}

/// Microseconds as ticks of the time stamp counter.
pub fn us_to_ticks(us: u64) -> u64 {
    (u128::from(us) * u128::from(TSC_KHZ.load(Ordering::Relaxed)) / 1000) as u64
}
