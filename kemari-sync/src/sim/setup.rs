//! How the VM of a run is set up.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::primary::Mode;
use crate::timing::Timing;

use super::HOSTS;
use super::failing::OnError;
use super::flushes::FlushMode;

/// Most pages of one sync in staging.
pub(super) const STAGING_PAGES_MAX: u64 = 14;

/// How a VM is set up in one run.
pub(super) struct Setup {
    pub(super) mode: Mode,
    /// A disk.
    pub(super) has_disk: bool,
    /// Each host has an image of it. Otherwise it is shared, and there is a fence.
    pub(super) replicated: bool,
    /// When a flush of the replicated disk is done.
    pub(super) flush: FlushMode,
    /// Fences take long, or hang.
    pub(super) slow_fences: bool,
    /// What follows when a disk of the primary fails.
    pub(super) on_error: OnError,
    /// A VM that was stopped is started again.
    pub(super) restarts: bool,
    /// The host on which the operator tries to start the VM first.
    pub(super) first_tried: usize,
    pub(super) timing: Timing,
    /// Longest delay of a frame, in microseconds.
    pub(super) delay_us: u64,
}

impl Setup {
    pub(super) fn new(mode: Mode, has_disk: bool, delay_us: u64) -> Self {
        let timing = Timing {
            heartbeat_ms: 20,
            suspicion_ms: 100,
            reconnect_ms: 40,
            progress_ms: 300,
            won_stall_ms: 120,
            ask_retry_ms: 15,
            max_interval_ms: 80,
            interval_ms: 7,
            protect_retry_ms: 10,
            protect_retry_ms_max: 80,
            takeover_retry_ms: 60,
        };
        Self {
            mode,
            has_disk,
            replicated: false,
            flush: FlushMode::Memory,
            slow_fences: false,
            on_error: OnError::Report,
            restarts: false,
            first_tried: 0,
            timing,
            delay_us,
        }
    }

    /// What a seed makes of it.
    pub(super) fn draw(mode: Option<Mode>, rng: &mut ChaCha8Rng, apart: &mut ChaCha8Rng) -> Self {
        let drawn = [Mode::Lockstep, Mode::Pipelined, Mode::Interval][rng.random_range(0..3)];
        let has_disk = rng.random_bool(0.5);
        let delay_us = [300, 1_000, 4_000][rng.random_range(0..3)];
        let mut setup = Self::new(mode.unwrap_or(drawn), has_disk, delay_us);
        setup.replicated = has_disk && apart.random_bool(0.5);
        setup.flush = [FlushMode::Memory, FlushMode::Both][apart.random_range(0..2)];
        setup.restarts = apart.random_bool(0.5);
        setup.first_tried = apart.random_range(0..HOSTS);
        setup.on_error = [OnError::Report, OnError::Pause, OnError::Failover][apart.random_range(0..3)];
        setup.slow_fences = apart.random_bool(0.5);
        setup
    }
}
