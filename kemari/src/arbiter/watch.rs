//! The arbiter is watched while all is well: what is wrong with it is told then, not when the other host is
//! dead.
//!
//! Every few seconds a probe reads the record and proves that it could be written ([`Prober`]), and what it
//! finds is held against what this side knows of its own record. Nothing is decided by it: who is right is
//! found out by those that ask, as ever.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kemari_sync::{Phase, Record, Term};
use kemari_vmm::confine;

use super::prober::Unproved;
use super::{CALLS, Prober};

/// Time between two probes, in milliseconds: at least this long, and for how much longer at most, so that
/// many sides do not ask at once.
const PROBE_INTERVAL_MS: u64 = 3_000;
const PROBE_INTERVAL_RANGE_MS: u64 = 2_000;
/// The same while something is wrong.
const TROUBLE_INTERVAL_MS: u64 = 1_000;
const TROUBLE_INTERVAL_RANGE_MS: u64 = 500;
/// A probe is over so long after its arbiter's time-out at the latest.
const SLACK: Duration = Duration::from_secs(3);

/// From one probe to the next at most, in milliseconds.
pub(crate) const PROBE_INTERVAL_MS_MAX: u64 = PROBE_INTERVAL_MS + PROBE_INTERVAL_RANGE_MS;

/// What a side knows of the record it lives under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its store.
    pub store: u128,
    /// The term of its last commit.
    pub term: Term,
}

/// How the arbiter stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Time since the last probe that was answered as it should be, in ms. `None`: none was so far.
    pub(crate) answered_ms: Option<u64>,
    /// What would keep this side from a new term, as a sentence.
    pub trouble: Option<String>,
    /// That is only that no answer came.
    pub(crate) is_silent: bool,
    /// What the arbiter says, for people.
    pub says: String,
}

#[derive(Default)]
struct State {
    /// Probes that have begun, and the last one that is over.
    begun: u64,
    over: u64,
    known: Option<Known>,
    answered: Option<Instant>,
    trouble: Option<String>,
    is_silent: bool,
    says: String,
}

impl State {
    /// A probe begins: what is known of the record, and the probe's number.
    fn begin(&mut self) -> (Option<Known>, u64) {
        self.begun += 1;
        (self.known, self.begun)
    }
}

struct Shared {
    prober: Prober,
    state: Mutex<State>,
}

/// See the module. It ends when this is dropped.
pub(crate) struct ArbiterWatch {
    shared: Arc<Shared>,
    wake: Sender<()>,
}

impl ArbiterWatch {
    /// Begins to watch. After each probe `tell` is told what is wrong, and within which time it will be told
    /// again. `timeout` is the longest time of a probe.
    pub(crate) fn start(
        prober: Prober,
        timeout: Duration,
        tell: impl Fn(Option<String>, Duration) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            prober,
            state: Mutex::default(),
        });
        let (wake, woken) = channel();
        let watched = shared.clone();
        let valid = Duration::from_millis(PROBE_INTERVAL_MS_MAX) + timeout + SLACK;
        thread::Builder::new()
            .name("arbiter watch".into())
            .spawn(move || {
                confine::thread(&CALLS);
                watched.run(&woken, |trouble| tell(trouble, valid));
            })?;
        Ok(Self { shared, wake })
    }

    /// Says what the record must be: of this store, and of this term at least. `None`: nothing is known of
    /// it. A side whose store is another one now has been given it by the operator.
    pub(crate) fn expect(&self, known: Option<Known>) {
        let mut state = self.shared.lock();
        if state.known == known {
            return;
        }
        let store = |known: Option<Known>| known.map(|known| known.store);
        let is_another_store = state.known.is_some() && known.is_some() && store(state.known) != store(known);
        state.known = known;
        drop(state);
        match is_another_store {
            true => self.forget(),
            false => self.look_now(),
        }
    }

    /// The operator says that the store is the right one although it went back: it is looked at anew, and at
    /// once.
    pub(crate) fn forget(&self) {
        self.shared.prober.forget();
        self.look_now();
    }

    /// Has the arbiter looked at at once, and returns the number of that look.
    pub(crate) fn look(&self) -> u64 {
        let look = self.shared.lock().begun + 1;
        self.look_now();
        look
    }

    /// Whether the look of this number is over: the report is of it then, or of a later one.
    pub(crate) fn has_looked(&self, look: u64) -> bool {
        self.shared.lock().over >= look
    }

    /// What was said so far was said of something else.
    fn look_now(&self) {
        // The thread lives as long as this sender.
        let _ = self.wake.send(());
    }

    /// How the arbiter stands.
    pub(crate) fn report(&self) -> Report {
        let state = self.shared.lock();
        Report {
            answered_ms: state.answered.map(|at| at.elapsed().as_millis() as u64),
            trouble: state.trouble.clone(),
            is_silent: state.is_silent,
            says: state.says.clone(),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, woken: &Receiver<()>, tell: impl Fn(Option<String>)) {
        let mut judge = Judge::default();
        let mut told = None;
        loop {
            let trouble = self.look(&mut judge);
            if trouble != told {
                match &trouble {
                    Some(trouble) => tracing::warn!("the arbiter: {trouble}"),
                    None => tracing::info!("the arbiter answers, and could be written"),
                }
                told.clone_from(&trouble);
            }
            let interval_ms = match &trouble {
                None => rand::random_range(PROBE_INTERVAL_MS..=PROBE_INTERVAL_MS + PROBE_INTERVAL_RANGE_MS),
                Some(_) => {
                    rand::random_range(TROUBLE_INTERVAL_MS..=TROUBLE_INTERVAL_MS + TROUBLE_INTERVAL_RANGE_MS)
                }
            };
            tell(trouble);
            if woken.recv_timeout(Duration::from_millis(interval_ms)) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            while woken.try_recv().is_ok() {}
        }
    }

    /// One probe. What is known of the record is noted before it: what changes meanwhile was not looked at.
    fn look(&self, judge: &mut Judge) -> Option<String> {
        let (known, look) = self.lock().begin();
        let found = self.prober.probe();
        let trouble = match &found {
            Ok(record) => judge.trouble(known, record.as_ref()),
            Err(why) => Some(why.sentence().to_owned()),
        };
        let mut state = self.lock();
        if found.is_ok() {
            state.answered = Some(Instant::now());
        }
        state.says = match (&trouble, &found) {
            (Some(trouble), _) => trouble.clone(),
            (None, Ok(Some(record))) => format!(
                "term {} belongs to {} ({:?})",
                record.term, record.owner, record.phase
            ),
            (None, _) => "it has no record of this VM".into(),
        };
        if let Some(more) = self.prober.trouble() {
            state.says = format!("{}; {more}", state.says);
        }
        state.over = look;
        state.trouble.clone_from(&trouble);
        state.is_silent = matches!(found, Err(Unproved::Silent(_)));
        trouble
    }
}

/// Holds what was found against what is known.
#[derive(Default)]
struct Judge {
    /// A difference that a change of membership explains, if it passes: what was known and found.
    passing: Option<(Known, Term)>,
}

impl Judge {
    fn trouble(&mut self, known: Option<Known>, found: Option<&Record>) -> Option<String> {
        let before = self.passing.take();
        let known = known?;
        let advice = "if nobody else runs this VM, `kemari adopt-record`, said to its primary, gives it its \
                      record back";
        let Some(found) = found else {
            return Some(format!(
                "it has lost the record of this VM, which runs in term {}: {advice}",
                known.term
            ));
        };
        if found.store != known.store {
            return Some(format!(
                "its record is not the one that this VM lives under, but another store's (term {} of {}): \
                 find out whether the VM was started elsewhere",
                found.term, found.owner
            ));
        }
        let is_one_behind = found.term + 1 == known.term;
        if found.term < known.term && !is_one_behind {
            return Some(format!(
                "its record went back to term {}, after term {}: {advice}",
                found.term, known.term
            ));
        }
        // A change of who has the VM is under way; how it stands is said by the side that is in it.
        let is_contested = found.term > known.term && found.phase == Phase::Won;
        if found.term == known.term || is_contested {
            return None;
        }
        // The first commit of a pair comes before its record, and a side learns of its successor's term later
        // than the arbiter. Neither lasts.
        self.passing = Some((known, found.term));
        (before == self.passing).then(|| match is_one_behind {
            true => format!(
                "its record went back to term {}, after term {}: {advice}",
                found.term, known.term
            ),
            false => format!(
                "its record has gone on to term {} of {}, and this side is at term {}",
                found.term, found.owner, known.term
            ),
        })
    }
}

#[cfg(test)]
#[path = "watch_test.rs"]
mod tests;
