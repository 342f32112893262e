//! Certificates of the link end, and with them the way to make a pair again: that is told long before.
//!
//! A side looks at its own certificate, at the authority's, and at the one that the other side has shown, so
//! that either says it of both. That one may have been replaced since the link was made: whether it is over,
//! its own host knows.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::wall_clock_ms;
use super::readiness::{Findings, Source};
use crate::link::{CA_FILE, Security};
use crate::threads;

/// Certificates that end sooner are warned of, in days.
const DAYS_LEFT_MIN: u64 = 14;
/// How often it is looked.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
const DAY_S: u64 = 24 * 3600;

/// A certificate that ends soon, or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What, when, and what to do.
    pub sentence: String,
    /// It has ended, for certain: no connection is made with it any more.
    pub is_over: bool,
}

struct Shared {
    security: Security,
    host: String,
    /// The other side's host, and when the certificate ends that it has shown, in seconds since 1970.
    peer: Mutex<Option<(String, u64)>>,
    /// What the last look has found: who asks opens no file.
    found: Mutex<Vec<Ending>>,
}

/// See the module. The watch ends when this is dropped.
pub struct Certificates {
    shared: Arc<Shared>,
    wake: Sender<()>,
}

impl Certificates {
    /// Watches those of the host `host`, which is this one. What has ended is noted in `findings`, and what
    /// will soon is logged, every day anew.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn watch(security: Security, host: String, findings: Arc<Findings>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            security,
            host,
            peer: Mutex::default(),
            found: Mutex::default(),
        });
        let (wake, woken) = channel();
        let watched = shared.clone();
        threads::start("certificates", move || {
            let mut told = Vec::new();
            loop {
                let found = watched.look();
                watched.found().clone_from(&found);
                let over = found.iter().filter(|ending| ending.is_over);
                findings.note(
                    Source::Certificates,
                    None,
                    over.map(|ending| ending.sentence.clone()),
                );
                if found != told {
                    found
                        .iter()
                        .for_each(|ending| tracing::warn!("{}", ending.sentence));
                    told = found;
                }
                if woken.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })?;
        Ok(Self { shared, wake })
    }

    /// The other side, on that host, has shown a certificate that ends then, in seconds since 1970.
    pub fn note_peer(&self, host: &str, ends_s: u64) {
        let peer = Some((host.to_owned(), ends_s));
        if std::mem::replace(&mut *self.shared.peer(), peer.clone()) != peer {
            // The thread lives as long as this sender.
            let _ = self.wake.send(());
        }
    }

    /// What ends soon, or has ended, as it was found last.
    pub fn found(&self) -> Vec<Ending> {
        self.shared.found().clone()
    }
}

impl Shared {
    fn peer(&self) -> MutexGuard<'_, Option<(String, u64)>> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> MutexGuard<'_, Vec<Ending>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Vec<Ending> {
        let Security::Tls(credentials) = &self.security else {
            return Vec::new();
        };
        let now_s = wall_clock_ms() / 1000;
        let of_host = |host: &str| format!("of host `{host}`");
        let identity = credentials.identity();
        let own = identity.ends_s().iter().filter_map(|(file, ends_s)| {
            let whose = match *file {
                CA_FILE => "of the authority".to_owned(),
                _ => of_host(&self.host),
            };
            ending(&whose, *ends_s, now_s)
        });
        let shown = self.peer().clone();
        let shown = shown.and_then(|(host, ends_s)| shown_ending(&of_host(&host), ends_s, now_s));
        own.chain(shown).collect()
    }
}

/// As [`ending`], of a certificate that was shown when the link was made.
fn shown_ending(whose: &str, ends_s: u64, now_s: u64) -> Option<Ending> {
    let Ending { sentence, .. } = ending(whose, ends_s, now_s)?;
    Some(Ending {
        sentence: format!(
            "{sentence}. So it was when the link was made; one that has replaced it since is not seen"
        ),
        is_over: false,
    })
}

fn ending(whose: &str, ends_s: u64, now_s: u64) -> Option<Ending> {
    const ADVICE: &str = "make a new set with `kemari certs` and put it on both hosts: no restart is needed";
    let is_over = ends_s <= now_s;
    let what = format_args!("the certificate {whose}");
    let sentence = match (is_over, ends_s.saturating_sub(now_s) / DAY_S) {
        (true, _) => format!("{what} has ended, and no connection is made with it any more: {ADVICE}"),
        (false, DAYS_LEFT_MIN..) => return None,
        (false, 0) => format!("{what} ends within a day: {ADVICE}"),
        (false, days) => format!("{what} ends in {days} days: {ADVICE}"),
    };
    Some(Ending { sentence, is_over })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_weeks_before_its_end_a_certificate_is_warned_of_and_then_it_is_over() {
        let now_s = 1_800_000_000_u64;
        let ends_s = |left_s: i64| now_s.checked_add_signed(left_s).unwrap();
        let at = |left_s: i64| ending("of a", ends_s(left_s), now_s);
        let day_s = DAY_S as i64;
        assert_eq!(at(14 * day_s), None);
        let soon = at(14 * day_s - 1).unwrap();
        assert!(!soon.is_over && soon.sentence.contains("in 13 days"), "{soon:?}");
        assert!(at(day_s - 1).unwrap().sentence.contains("within a day"));
        for left_s in [0, -1, -100 * day_s] {
            let over = at(left_s).unwrap();
            assert!(over.is_over && over.sentence.contains("has ended"), "{over:?}");
            // The other side may have a new one by now.
            let shown = shown_ending("of b", ends_s(left_s), now_s).unwrap();
            assert!(
                !shown.is_over && shown.sentence.contains("is not seen"),
                "{shown:?}"
            );
        }
        assert_eq!(shown_ending("of b", ends_s(14 * day_s), now_s), None);
    }
}
