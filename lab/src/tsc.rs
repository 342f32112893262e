//! The time stamp counter of this machine, which QEMU hands on to emulated hosts as it is.
//!
//! A host that calibrates it itself while this machine is busy can be wrong by a factor of thirty, and its
//! clocks then run that much too fast: so it is told.

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Time over which the counter is compared with the clock.
const MEASURE_FOR: Duration = Duration::from_millis(20);
/// Measurements, of which the median counts: one may be disturbed.
const MEASUREMENTS: usize = 5;

/// Its frequency in kHz, measured once.
pub(crate) fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let mut measured: Vec<u64> = (0..MEASUREMENTS).map(|_| measure_khz()).collect();
        measured.sort_unstable();
        measured[MEASUREMENTS / 2]
    })
}

fn measure_khz() -> u64 {
    let (start, start_ticks) = (Instant::now(), ticks());
    std::thread::sleep(MEASURE_FOR);
    let (end_ticks, elapsed) = (ticks(), start.elapsed());
    (u128::from(end_ticks - start_ticks) * 1_000_000 / elapsed.as_nanos()) as u64
}

fn ticks() -> u64 {
    // SAFETY: every x86_64 processor has the instruction.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_frequency_is_that_of_a_processor() {
        assert!(
            (500_000..10_000_000).contains(&super::khz()),
            "{} kHz",
            super::khz()
        );
    }
}
