//! Whether this host could take over now: the one list of what would keep it from that.
//!
//! Each part of a takeover has somebody who tries it all the time, by the very functions that the takeover
//! uses, and notes in [`Findings`] what came of it: the secondary's own watch ([`ReadinessWatch`]), the watch
//! of the arbiter, the last drill. Who is silent for longer than he said stands on the list himself: a check
//! that hangs is no good news.
//!
//! What is on the list goes to the loop about once a second, by heartbeats to the other side, and is judged
//! there as it is here: `kemari_sync::Readiness`.

mod clocks;
mod images;
mod mtus;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kemari_sync::wire::shortened;
use kemari_sync::{READINESS_REASON_BYTES_MAX, READINESS_REASONS_MAX, Readiness, UNSEEN};

pub use clocks::{CLOCKS_MS_MAX, Clocks};
pub use images::{InUse, Opened, Target};
pub use mtus::Mtus;
pub use watch::{ReadinessWatch, executable};

/// Who finds something out. What is found stands on the list in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The committed state, tried on this host's KVM.
    State,
    /// The guest's network cards: their TAPs, and the bridges that those are ports of.
    Cards,
    /// The images of the disks.
    Images,
    /// The fence command.
    Fence,
    /// The guest's memory: whole, and locked.
    Memory,
    /// Threads: as many as a takeover makes can be made.
    Threads,
    /// The wall clocks of both hosts.
    Clock,
    /// The arbiter: readable, writable, its record in place.
    Arbiter,
    /// The certificates of the link, this side's and the other's.
    Certificates,
    /// The last drill.
    Drill,
}

impl Source {
    const COUNT: usize = Self::Drill as usize + 1;
    const ALL: [Self; Self::COUNT] = [
        Self::State,
        Self::Cards,
        Self::Images,
        Self::Fence,
        Self::Memory,
        Self::Threads,
        Self::Clock,
        Self::Arbiter,
        Self::Certificates,
        Self::Drill,
    ];

    /// What it looks at, in words.
    fn what(self) -> &'static str {
        match self {
            Self::State => "the committed state",
            Self::Cards => "the network cards",
            Self::Images => "the disk images",
            Self::Fence => "the fence command",
            Self::Memory => "the guest's memory",
            Self::Threads => "this host's threads",
            Self::Clock => "the wall clocks",
            Self::Arbiter => "the arbiter",
            Self::Certificates => "the certificates",
            Self::Drill => "the last drill",
        }
    }
}

/// What one source has said.
struct Noted {
    reasons: Vec<String>,
    since: Instant,
    /// `None`: it stands until something else is said.
    valid: Option<Duration>,
}

/// What everybody has found. Lives as long as the process, over its roles.
#[derive(Default)]
pub struct Findings(Mutex<[Option<Noted>; Source::COUNT]>);

impl Findings {
    /// An empty list.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Noted>; Source::COUNT]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what `source` has found, as sentences: none, if it found nothing wrong. It says something again
    /// within `valid`, or else its silence is a finding; `None`: what it says stands until it says something
    /// else.
    pub fn note(&self, source: Source, valid: Option<Duration>, reasons: impl IntoIterator<Item = String>) {
        let kept = reasons.into_iter().take(READINESS_REASONS_MAX);
        let reasons = kept
            .map(|reason| shortened(reason, READINESS_REASON_BYTES_MAX))
            .collect();
        self.lock()[source as usize] = Some(Noted {
            reasons,
            since: Instant::now(),
            valid,
        });
    }

    /// A source will say something soon; as long as it has not, that is a finding.
    pub fn expect(&self, source: Source) {
        let reason = format!("{UNSEEN} at {}", source.what());
        self.note(source, None, [reason]);
    }

    /// Another state of the VM is to come, from another primary perhaps: nobody has tried it yet,
    /// nor compared the clocks.
    pub fn expect_state(&self) {
        for source in [Source::State, Source::Clock] {
            self.expect(source);
        }
    }

    /// Takes a source off the list: what it looks at does not matter now.
    pub fn forget(&self, source: Source) {
        self.lock()[source as usize] = None;
    }

    /// This side begins another role: what was found out about a takeover is void. What is watched for the
    /// life of the process, and what the last drill has said, stands.
    pub fn begin_role(&self) {
        let of_takeover = Source::ALL
            .into_iter()
            .filter(|source| !matches!(source, Source::Arbiter | Source::Certificates | Source::Drill));
        of_takeover.for_each(|source| self.forget(source));
    }

    /// For how long what this source has said stands without another word.
    #[cfg(test)]
    pub fn stands_for(&self, source: Source) -> Option<Duration> {
        self.lock()[source as usize].as_ref()?.valid
    }

    /// What stands on the list now.
    pub fn reasons(&self) -> Vec<String> {
        let noted = self.lock();
        let mut reasons = Vec::new();
        for (source, noted) in Source::ALL.into_iter().zip(&*noted) {
            let Some(noted) = noted else { continue };
            if noted.valid.is_some_and(|valid| noted.since.elapsed() > valid) {
                reasons.push(format!("the check of {} does not come to an end", source.what()));
            }
            reasons.extend_from_slice(&noted.reasons);
        }
        reasons.truncate(READINESS_REASONS_MAX);
        reasons
    }
}

/// Says in the log, once for each change, whether a takeover would succeed.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub struct Announced(Option<Vec<String>>);

impl Announced {
    /// How it stands; `None`: there is no pair.
    pub fn note(&mut self, readiness: Option<&Readiness>) {
        let is_unseen = readiness.is_some_and(Readiness::is_unseen);
        let now = readiness.map(|readiness| match readiness.is_ready() {
            true => Vec::new(),
            false => readiness.reasons.clone(),
        });
        if self.0 == now {
            return;
        }
        match &now {
            Some(reasons) if is_unseen => {
                tracing::info!(
                    "it is not known yet whether a takeover would succeed: {}",
                    reasons.join("; ")
                );
            }
            Some(reasons) if !reasons.is_empty() => {
                tracing::warn!(
                    "not ready, a takeover would not succeed now: {}",
                    reasons.join("; ")
                );
            }
            Some(_) => tracing::info!("protected and ready: the secondary could take over now"),
            None => {}
        }
        self.0 = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_stands_in_one_order_until_it_is_taken_back() {
        let findings = Findings::default();
        findings.note(Source::Clock, None, ["late".to_owned()]);
        findings.note(Source::State, None, ["torn".to_owned()]);
        assert_eq!(findings.reasons(), ["torn", "late"]);
        findings.note(Source::State, None, []);
        assert_eq!(findings.reasons(), ["late"]);
        findings.forget(Source::Clock);
        assert!(findings.reasons().is_empty());
    }

    #[test]
    fn who_has_not_looked_yet_is_not_well() {
        let findings = Findings::default();
        findings.expect(Source::Images);
        assert_eq!(findings.reasons(), ["nobody has looked yet at the disk images"]);
        findings.note(Source::Images, None, []);
        assert!(findings.reasons().is_empty());
    }

    #[test]
    fn of_another_state_nothing_is_known_at_first() {
        let findings = Findings::default();
        for source in [Source::State, Source::Clock, Source::Images] {
            findings.note(source, None, []);
        }
        findings.expect_state();
        assert_eq!(
            findings.reasons(),
            [
                "nobody has looked yet at the committed state",
                "nobody has looked yet at the wall clocks"
            ]
        );
    }

    #[test]
    fn a_role_begins_without_what_was_found_in_the_last_one() {
        let findings = Findings::default();
        for source in Source::ALL {
            findings.note(source, None, [source.what().to_owned()]);
        }
        findings.begin_role();
        assert_eq!(
            findings.reasons(),
            ["the arbiter", "the certificates", "the last drill"]
        );
    }

    #[test]
    fn a_source_that_falls_silent_is_a_finding() {
        let findings = Findings::default();
        findings.note(Source::Images, Some(Duration::from_millis(1)), []);
        std::thread::sleep(Duration::from_millis(3));
        let reasons = findings.reasons();
        assert!(
            reasons[0].contains("disk images") && reasons.len() == 1,
            "{reasons:?}"
        );
        findings.note(Source::Images, Some(Duration::from_secs(60)), []);
        assert!(findings.reasons().is_empty());
    }

    #[test]
    fn the_list_is_bounded() {
        let findings = Findings::default();
        for source in Source::ALL {
            findings.note(source, None, (0..100).map(|_| "x".repeat(10_000)));
        }
        let reasons = findings.reasons();
        assert_eq!(reasons.len(), READINESS_REASONS_MAX);
        assert!(
            reasons
                .iter()
                .all(|reason| reason.len() == READINESS_REASON_BYTES_MAX)
        );
    }
}
