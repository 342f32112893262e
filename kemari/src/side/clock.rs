//! The monotonic clock of a side.

use std::time::Instant;

/// Milliseconds and microseconds since the side began; never steps back.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now_ms(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }

    pub fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}
