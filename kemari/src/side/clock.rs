//! The clocks of a side.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kemari_sync::wire::Message;

use super::faults;
use super::readiness::Mtus;

/// This host's wall clock, in milliseconds since 1970; a clock before that reads as 0.
pub fn wall_clock_ms() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the hosts' wall clocks are compared: a guest's follows them at a takeover"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64 + faults::clock_ahead_ms())
}

/// A heartbeat says what time it is as it is sent, and what the guest's TAPs here take.
pub fn stamp(message: &mut Message, mtus: &Mtus) {
    if let Message::Heartbeat(heartbeat) = message {
        heartbeat.wall_clock_ms = wall_clock_ms();
        heartbeat.mtus = mtus.ours();
    }
}

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
