//! How a VM is protected, and the limits within which.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What starts a sync, and what the guest does between its capture and its ack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Output starts it; the guest stays paused until the ack.
    Lockstep,
    /// Output starts it; the guest runs on while its output waits.
    #[default]
    Pipelined,
    /// The clock alone starts it; the guest runs on, and output waits for the next one.
    Interval,
}

impl From<Mode> for kemari_sync::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Lockstep => Self::Lockstep,
            Mode::Pipelined => Self::Pipelined,
            Mode::Interval => Self::Interval,
        }
    }
}

/// Whether this program burns processor time for shorter syncs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Latency {
    /// It polls, within limits, while syncs follow each other.
    #[default]
    Low,
    /// It always sleeps until something comes.
    Spare,
}

/// Whether pages are sent as their difference from what the secondary has, where that is shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delta {
    /// While that is measured to be faster.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Whether output may gather before a sync takes it, or the guest wait for an ack, in [`Mode::Pipelined`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gather {
    /// While that is measured to let more output go.
    #[default]
    Auto,
    /// Never: the guest runs on after a capture, and a sync begins as soon as the one before is acknowledged.
    Off,
}

/// How often syncs are made: what of the configuration may be changed while the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pace {
    /// What starts a sync.
    pub mode: Mode,
    /// Time between two syncs in [`Mode::Interval`], in ms.
    pub interval_ms: u32,
    /// Longest time between two syncs in any mode, in ms.
    pub max_interval_ms: u32,
    /// Dirty pages of 4 KiB that start a sync in any mode.
    pub(crate) max_dirty_pages: u32,
}

/// Limits of [`Pace::interval_ms`] and [`Pace::max_interval_ms`].
pub(crate) const INTERVAL_MS: RangeInclusive<u32> = 1..=3_600_000;

/// Limits of [`Protection::drill_interval_s`], if it is not 0.
pub(crate) const DRILL_INTERVAL_S: RangeInclusive<u32> = 10..=31_536_000;

/// What a primary does when its secondary is gone and it has won the right to act alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSecondaryLoss {
    /// It runs on, unprotected, and takes a new secondary at any time.
    #[default]
    Continue,
    /// It stops the VM.
    Stop,
}

/// `[protection]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Protection {
    /// Whether the VM is protected at all.
    pub enabled: bool,
    /// What starts a sync, and what the guest does meanwhile.
    pub mode: Mode,
    /// Time between two syncs in [`Mode::Interval`], in ms.
    pub interval_ms: u32,
    /// Whether both sides poll while syncs follow each other.
    pub latency: Latency,
    /// Whether output may gather, or the guest wait.
    pub gather: Gather,
    /// Whether pages are sent as differences.
    pub delta: Delta,
    /// Most memory in which the primary keeps what the secondary has, for differences, in MiB.
    pub(crate) delta_cache_mib_max: u32,
    /// Silence of the peer after which it is suspected, in ms.
    pub suspicion_timeout_ms: u32,
    /// Time between two heartbeats, in ms.
    pub heartbeat_interval_ms: u32,
    /// Time in which a link that was reset may be rebuilt before that counts as the peer's loss, in ms.
    pub reconnect_timeout_ms: u32,
    /// Longest time that a sync may wait for its ack, or an own I/O for its end, in ms.
    pub progress_timeout_ms: u32,
    /// Most memory that the secondary uses to collect a sync, in MiB.
    pub staging_mib_max: u32,
    /// Most that waits on the secondary to be written to a replicated disk, in MiB.
    pub replica_queue_mib_max: u32,
    /// Longest time that the image of a replicated disk on the secondary may take to finish something, in ms.
    pub replica_timeout_ms: u32,
    /// Most that a copy of replicated disks reads of them in a second, in MiB; 0: as much as can be.
    pub resync_mib_per_s_max: u32,
    /// How long console output is gathered before it asks for a sync, in ms.
    pub(crate) console_delay_ms: u32,
    /// Longest time between two syncs, output or not, in ms.
    pub max_interval_ms: u32,
    /// Dirty pages of 4 KiB that start a sync, output or not.
    pub(crate) max_dirty_pages: u32,
    /// Time between two drills of the secondary, in s; 0: none begins by itself.
    pub drill_interval_s: u32,
    /// What happens when the secondary is lost.
    pub on_secondary_loss: OnSecondaryLoss,
    /// Directory of this host's certificate and key, and of the authority's certificate,
    /// unless a host names its own.
    pub certificates: Option<PathBuf>,
    /// The word that the guest's memory may cross the network unencrypted and to anyone,
    /// instead of `certificates`.
    pub plaintext: bool,
    /// For tests where both sides run on one kernel: a shared disk may go through that kernel's page cache.
    pub allow_cached_shared_disk: bool,
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            enabled: true,
            mode: Mode::default(),
            interval_ms: 25,
            latency: Latency::default(),
            gather: Gather::default(),
            delta: Delta::default(),
            delta_cache_mib_max: 64,
            suspicion_timeout_ms: 1000,
            heartbeat_interval_ms: 100,
            reconnect_timeout_ms: 500,
            progress_timeout_ms: 5000,
            staging_mib_max: 256,
            replica_queue_mib_max: 64,
            replica_timeout_ms: 10_000,
            resync_mib_per_s_max: 0,
            console_delay_ms: 20,
            max_interval_ms: 1000,
            max_dirty_pages: 16_384,
            drill_interval_s: 0,
            on_secondary_loss: OnSecondaryLoss::default(),
            certificates: None,
            plaintext: false,
            allow_cached_shared_disk: false,
        }
    }
}

impl Protection {
    /// [`Self::suspicion_timeout_ms`].
    pub(crate) fn suspicion_timeout(&self) -> Duration {
        Duration::from_millis(self.suspicion_timeout_ms.into())
    }

    /// [`Self::progress_timeout_ms`].
    pub(crate) fn progress_timeout(&self) -> Duration {
        Duration::from_millis(self.progress_timeout_ms.into())
    }

    /// How often syncs are made, to begin with.
    pub fn pace(&self) -> Pace {
        Pace {
            mode: self.mode,
            interval_ms: self.interval_ms,
            max_interval_ms: self.max_interval_ms,
            max_dirty_pages: self.max_dirty_pages,
        }
    }

    /// Dirty pages that may start a sync, with staging as it is: it must hold twice as many, since a sync
    /// that was due at the bound still grows until the guest is paused.
    pub(crate) fn dirty_pages_range(&self) -> RangeInclusive<u32> {
        let staged = self.staging_bytes_max() / (2 * 4096);
        16..=u32::try_from(staged).unwrap_or(u32::MAX).min(1 << 28)
    }

    /// [`Self::staging_mib_max`] in bytes.
    pub(crate) fn staging_bytes_max(&self) -> u64 {
        u64::from(self.staging_mib_max) << 20
    }

    /// [`Self::replica_queue_mib_max`] in bytes.
    pub(crate) fn replica_queue_bytes_max(&self) -> u64 {
        u64::from(self.replica_queue_mib_max) << 20
    }

    /// [`Self::replica_timeout_ms`].
    pub(crate) fn replica_timeout(&self) -> Duration {
        Duration::from_millis(self.replica_timeout_ms.into())
    }

    /// [`Self::resync_mib_per_s_max`] in bytes.
    pub(crate) fn resync_bytes_per_s_max(&self) -> u64 {
        u64::from(self.resync_mib_per_s_max) << 20
    }
}
