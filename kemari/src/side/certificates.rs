//! Certificates of the link end, and with them the way to make a pair again: that is told long before.
//!
//! A side looks at its own certificate, at the authority's, and at the one that the other side has shown, so that either
//! says it of both.

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
    /// It has ended: no connection is made with it any more.
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
    /// Watches those of the host `host`, which is this one. What has ended is noted in `findings`, and what will soon is
    /// logged, every day anew.
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
        let of_host = |host: &str| format!("the certificate of host `{host}`");
        let mut ends = Vec::new();
        for (file, ends_s) in credentials.identity().ends_s() {
            let what = match *file {
                CA_FILE => "the certificate of the authority".to_owned(),
                _ => of_host(&self.host),
            };
            ends.push((what, *ends_s));
        }
        let peer = self.peer().clone();
        ends.extend(peer.map(|(host, ends_s)| (of_host(&host), ends_s)));
        ends.into_iter()
            .filter_map(|(what, ends_s)| ending(&what, ends_s, now_s))
            .collect()
    }
}

fn ending(what: &str, ends_s: u64, now_s: u64) -> Option<Ending> {
    const ADVICE: &str = "make a new set with `kemari certs` and put it on both hosts: no restart is needed";
    let is_over = ends_s <= now_s;
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
        let at = |left_s: i64| ending("it", now_s.checked_add_signed(left_s).unwrap(), now_s);
        let day_s = DAY_S as i64;
        assert_eq!(at(14 * day_s), None);
        let soon = at(14 * day_s - 1).unwrap();
        assert!(!soon.is_over && soon.sentence.contains("in 13 days"), "{soon:?}");
        assert!(at(day_s - 1).unwrap().sentence.contains("within a day"));
        for left_s in [0, -1, -100 * day_s] {
            let over = at(left_s).unwrap();
            assert!(over.is_over && over.sentence.contains("has ended"), "{over:?}");
        }
    }
}
