//! How the last drill went: a rehearsal of a takeover on the secondary.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// For how long the guest of a drill may run, in seconds.
pub(crate) const DRILL_SECONDS: RangeInclusive<u32> = 1..=30;
/// For how long it runs if nothing else is said, in seconds.
pub(crate) const DRILL_SECONDS_DEFAULT: u32 = 5;

/// The last drill of a secondary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drill {
    /// The committed state could be started, and nothing was wrong with it.
    pub passed: bool,
    /// Nothing was wrong, but it was not seen for long enough to say more.
    pub inconclusive: bool,
    /// What was wrong, or why nothing can be said, as sentences.
    pub reasons: Vec<String>,
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// How long ago that was, in seconds.
    pub(crate) age_s: u64,
    /// For how long the guest ran, in ms.
    pub ran_ms: u64,
    /// vCPUs that executed something.
    pub vcpus_ran: u32,
    /// Memory that was copied for it, in bytes.
    pub memory_copied_bytes: u64,
    /// What was kept aside of the disks for it, in bytes.
    pub(crate) disk_kept_bytes: u64,
    /// What its guest wrote to the disks, in bytes: thrown away.
    pub disk_written_bytes: u64,
    /// For how long the secondary stood still to begin it, in us.
    pub standstill_us: u64,
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.passed, self.inconclusive) {
            (true, _) => "passed",
            (false, true) => "inconclusive",
            (false, false) => "FAILED",
        })?;
        if !self.reasons.is_empty() {
            write!(f, ": {}", self.reasons.join("; "))?;
        }
        write!(
            f,
            "; the committed state ran for {} ms on {} vCPUs, {} KiB of memory and {} KiB of disks were \
             copied for it",
            self.ran_ms,
            self.vcpus_ran,
            self.memory_copied_bytes >> 10,
            self.disk_kept_bytes >> 10
        )
    }
}
