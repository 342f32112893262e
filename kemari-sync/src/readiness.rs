//! Whether a secondary could take over now, as it has found out by trying what a takeover does.
//!
//! The secondary's driver finds out; its heartbeats carry the findings. Both sides judge them by
//! [`Readiness::judged`], so that neither says "ready" where the other does not.

use serde::{Deserialize, Serialize};

use crate::faults::{Fault, fault};
use crate::trouble::Trouble;
use crate::wire::shortened;

/// Findings older than this, in milliseconds, say nothing any more:
/// a secondary that does not look is not ready.
pub const READINESS_MS_MAX: u64 = 5_000;
/// Most reasons that travel, or are shown.
pub const READINESS_REASONS_MAX: usize = 8;
/// Longest reason, in bytes.
pub const READINESS_REASON_BYTES_MAX: usize = 256;

/// How a reason begins that only says that nothing is known yet.
pub const UNSEEN: &str = "nobody has looked yet";

/// What a secondary has found out about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Readiness {
    /// Each thing that would keep it from taking over, as a sentence; none: nothing would.
    pub reasons: Vec<String>,
    /// How long ago it has found that out, in milliseconds.
    pub age_ms: u64,
}

impl Readiness {
    /// Findings of this moment, cut to what may travel.
    pub fn found(reasons: impl IntoIterator<Item = String>) -> Self {
        let kept = reasons.into_iter().take(READINESS_REASONS_MAX);
        Self {
            reasons: kept
                .map(|reason| shortened(reason, READINESS_REASON_BYTES_MAX))
                .collect(),
            age_ms: 0,
        }
    }

    /// The same after `ms` more milliseconds.
    pub fn aged(&self, ms: u64) -> Self {
        Self {
            reasons: self.reasons.clone(),
            age_ms: self.age_ms.saturating_add(ms),
        }
    }

    /// What may be said at `now_ms` after these findings came at that time, of a host with that trouble: a
    /// takeover would have it, too. Findings that are too old, or never came, are a reason themselves.
    pub fn judged(noted: Option<&(Self, u64)>, trouble: Option<&Trouble>, now_ms: u64) -> Self {
        let mut judged = match noted {
            Some((readiness, at_ms)) => readiness.aged(now_ms.saturating_sub(*at_ms)),
            None => Self::found([format!("{UNSEEN} whether the secondary could take over")]),
        };
        if noted.is_some() && fault(Fault::ReadyAnyhow) {
            judged.reasons.clear();
        }
        if judged.age_ms > READINESS_MS_MAX {
            let stale = format!(
                "the secondary has not found out within {} s whether it could take over",
                READINESS_MS_MAX / 1000
            );
            judged.reasons.insert(0, stale);
        }
        let trouble = trouble.map(|trouble| shortened(trouble.to_string(), READINESS_REASON_BYTES_MAX));
        judged
            .reasons
            .splice(0..0, trouble.filter(|trouble| !judged.reasons.contains(trouble)));
        judged.reasons.truncate(READINESS_REASONS_MAX);
        judged
    }

    /// Whether nothing speaks against a takeover but that somebody has yet to look: so it is at the beginning
    /// of every pair.
    pub fn is_unseen(&self) -> bool {
        !self.reasons.is_empty() && self.reasons.iter().all(|reason| reason.starts_with(UNSEEN))
    }

    /// Whether a takeover at this moment would succeed, as far as anybody knows.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty() && self.age_ms <= READINESS_MS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fresh_findings_without_a_reason_are_ready() {
        let well = (Readiness::found([]), 1000);
        assert!(Readiness::judged(Some(&well), None, 1000).is_ready());
        assert!(Readiness::judged(Some(&well), None, 1000 + READINESS_MS_MAX).is_ready());
        let late = Readiness::judged(Some(&well), None, 1001 + READINESS_MS_MAX);
        assert!(!late.is_ready() && late.reasons[0].contains("5 s"), "{late:?}");
        assert!(!Readiness::judged(None, None, 1000).is_ready());
        let unwell = (Readiness::found(["no TAP".to_owned()]), 1000);
        assert!(!Readiness::judged(Some(&unwell), None, 1000).is_ready());
    }

    fn uplink() -> Trouble {
        Trouble::Uplink("eth1 has no carrier".to_owned())
    }

    #[test]
    fn a_host_in_trouble_is_not_ready() {
        let well = (Readiness::found([]), 1000);
        let judged = Readiness::judged(Some(&well), Some(&uplink()), 1000);
        assert_eq!(judged.reasons, ["eth1 has no carrier"]);
        assert!(!judged.is_ready());
        // Also one that has said nothing else yet.
        let judged = Readiness::judged(None, Some(&uplink()), 1000);
        assert_eq!(judged.reasons[0], "eth1 has no carrier");
        assert!(judged.reasons.len() == 2 && !judged.is_ready() && !judged.is_unseen());
    }

    #[test]
    fn what_nobody_has_looked_at_yet_is_neither_well_nor_wrong() {
        let judged = |reasons: &[&str], trouble: Option<&Trouble>| {
            let reasons = reasons.iter().map(|reason| (*reason).to_owned());
            Readiness::judged(Some(&(Readiness::found(reasons), 1000)), trouble, 1000)
        };
        let unseen = format!("{UNSEEN} at the disk images");
        assert!(Readiness::judged(None, None, 1000).is_unseen());
        assert!(judged(&[&unseen], None).is_unseen() && !judged(&[&unseen], None).is_ready());
        assert!(!judged(&[&unseen], Some(&uplink())).is_unseen());
        assert!(!judged(&[&unseen, "no TAP"], None).is_unseen());
        assert!(!judged(&[], None).is_unseen());
    }

    #[test]
    fn the_age_at_the_sender_counts() {
        let told = (Readiness::found([]).aged(READINESS_MS_MAX), 1000);
        assert!(Readiness::judged(Some(&told), None, 1000).is_ready());
        assert!(!Readiness::judged(Some(&told), None, 1001).is_ready());
        let absurd = (Readiness::found([]).aged(u64::MAX), 1000);
        assert!(!Readiness::judged(Some(&absurd), None, 2000).is_ready());
    }

    #[test]
    fn reasons_are_bounded() {
        let many = Readiness::found((0..100).map(|n| format!("{n} {}", "é".repeat(500))));
        assert_eq!(many.reasons.len(), READINESS_REASONS_MAX);
        assert!(
            many.reasons
                .iter()
                .all(|reason| reason.len() <= READINESS_REASON_BYTES_MAX)
        );
        let stale = Readiness::judged(Some(&(many, 0)), Some(&uplink()), READINESS_MS_MAX + 1);
        assert_eq!(stale.reasons.len(), READINESS_REASONS_MAX);
    }
}
