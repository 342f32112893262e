//! Helpers: threads that wait for work of a side's loop that may take long - a connection, a fence, a drain.
//! Some are idle at any time, made beforehand, so that what must be done at once, as after a won term, needs
//! no new thread.
//!
//! When work takes them up, a keeper makes more; when it cannot, it tries again, and work that finds no
//! helper waits for the first.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kemari_vmm::threads::set_name;

/// Helpers that are to be idle at any time: as many as may be wanted at once around a takeover.
const IDLE_MIN: usize = 6;
/// Of them, those that only the side's own work takes.
const RESERVED: usize = 4;
/// Idle helpers beyond which one that has finished ends.
const IDLE_MAX: usize = 8;
/// Most helpers. Work beyond them waits.
const HELPERS_MAX: usize = 64;
/// Pause after a helper could not be made.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

type Work = Box<dyn FnOnce() + Send>;
/// Starts a thread of this name that does this.
type Starter = dyn Fn(&str, Work) -> io::Result<()> + Send + Sync;

/// The helpers of this process.
static HELPERS: LazyLock<Helpers> =
    LazyLock::new(|| Helpers::new(|name, work| super::start(name, work).map(drop)));

/// Makes the helpers of this process, unless they are there.
///
/// # Errors
/// If the system has no threads for them.
pub(crate) fn begin() -> io::Result<()> {
    HELPERS.begin()
}

/// Has a helper do this, at once if one is idle. `name` is the thread's name meanwhile. After [`begin`] it
/// cannot fail.
pub(crate) fn run(name: &'static str, work: impl FnOnce() + Send + 'static) {
    HELPERS.run(name, Box::new(work));
}

/// As [`run`], but only if enough helpers stay idle for the side's own work. False: it is not done.
pub(crate) fn run_if_spare(name: &'static str, work: impl FnOnce() + Send + 'static) -> bool {
    HELPERS.run_if_spare(name, Box::new(work))
}

#[derive(Default)]
struct State {
    work: VecDeque<(&'static str, Work)>,
    helpers: usize,
    idle: usize,
    has_keeper: bool,
}

impl State {
    fn is_short(&self) -> bool {
        self.idle < IDLE_MIN + self.work.len() && self.helpers < HELPERS_MAX
    }
}

struct Shared {
    state: Mutex<State>,
    /// There is work.
    work: Condvar,
    /// Helpers may be short.
    short: Condvar,
    starter: Box<Starter>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one helper. It counts as idle from now on.
    fn add(self: &Arc<Self>) -> io::Result<()> {
        {
            let mut state = self.lock();
            state.helpers += 1;
            state.idle += 1;
        }
        let shared = self.clone();
        let started = (self.starter)("helper", Box::new(move || shared.help()));
        if started.is_err() {
            let mut state = self.lock();
            state.helpers -= 1;
            state.idle -= 1;
        }
        started
    }

    /// The life of a helper.
    fn help(&self) {
        let mut state = self.lock();
        loop {
            let Some((name, work)) = state.work.pop_front() else {
                if state.idle > IDLE_MAX {
                    state.helpers -= 1;
                    state.idle -= 1;
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.idle -= 1;
            self.short.notify_one();
            drop(state);
            set_name(name);
            work();
            set_name("helper");
            state = self.lock();
            state.idle += 1;
        }
    }

    /// The life of the keeper.
    fn keep(self: &Arc<Self>) {
        let mut is_told = false;
        loop {
            let state = self.lock();
            let is_enough = |state: &mut State| !state.is_short();
            drop(
                self.short
                    .wait_while(state, is_enough)
                    .unwrap_or_else(PoisonError::into_inner),
            );
            match self.add() {
                Ok(()) => is_told = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("{error}; it is tried again, and work may wait for it");
                    }
                    std::thread::sleep(RETRY_PAUSE);
                }
            }
        }
    }
}

/// Helpers and their keeper.
struct Helpers(Arc<Shared>);

impl Helpers {
    fn new(starter: impl Fn(&str, Work) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            short: Condvar::new(),
            starter: Box::new(starter),
        }))
    }

    fn begin(&self) -> io::Result<()> {
        if std::mem::replace(&mut self.0.lock().has_keeper, true) {
            return Ok(());
        }
        // The keeper comes last: with it beside this, both would make what is short, and too many.
        let begun = self.make_idle().and_then(|()| {
            let shared = self.0.clone();
            (self.0.starter)("helpers", Box::new(move || shared.keep()))
        });
        if begun.is_err() {
            self.0.lock().has_keeper = false;
        }
        begun
    }

    fn make_idle(&self) -> io::Result<()> {
        while self.0.lock().idle < IDLE_MIN {
            self.0.add()?;
        }
        Ok(())
    }

    fn run_if_spare(&self, name: &'static str, work: Work) -> bool {
        let is_spare = {
            let mut state = self.0.lock();
            let is_spare = state.idle > RESERVED + state.work.len();
            if is_spare {
                state.work.push_back((name, work));
            }
            is_spare
        };
        if is_spare {
            self.0.work.notify_one();
        }
        is_spare
    }

    fn run(&self, name: &'static str, work: Work) {
        self.0.lock().work.push_back((name, work));
        self.0.work.notify_one();
        self.0.short.notify_one();
        if let Err(error) = self.begin() {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Helpers of a system that has threads as long as `has` is set.
    fn helpers(has: &Arc<AtomicBool>) -> Helpers {
        let has = has.clone();
        Helpers::new(move |name, work| match has.load(Ordering::SeqCst) {
            true => crate::threads::start(name, work).map(drop),
            false => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        })
    }

    /// Work that lasts until the sender is dropped.
    fn until_dropped(gate: Receiver<()>) -> Work {
        Box::new(move || {
            let _ = gate.recv();
        })
    }

    #[test]
    fn work_is_done_by_threads_that_were_made_beforehand() {
        let has = Arc::new(AtomicBool::new(true));
        let helpers = helpers(&has);
        helpers.begin().expect("threads");
        has.store(false, Ordering::SeqCst);
        let (done, results) = channel();
        let mut gates = Vec::new();
        for number in 0..IDLE_MIN {
            let (gate, opens) = channel();
            gates.push(gate);
            let (done, wait) = (done.clone(), until_dropped(opens));
            helpers.run(
                "test",
                Box::new(move || {
                    done.send(number).expect("it is waited for");
                    wait();
                }),
            );
        }
        // All of them at once: none waits for another.
        let mut begun: Vec<_> = (0..IDLE_MIN)
            .map(|_| results.recv_timeout(PATIENCE).expect("a helper"))
            .collect();
        begun.sort_unstable();
        assert_eq!(begun, (0..IDLE_MIN).collect::<Vec<_>>());
        // One more waits, until one is done; and nothing ends.
        helpers.run(
            "test",
            Box::new(move || done.send(100).expect("it is waited for")),
        );
        assert!(results.recv_timeout(Duration::from_millis(50)).is_err());
        gates.pop();
        assert_eq!(results.recv_timeout(PATIENCE), Ok(100));
    }

    #[test]
    fn work_that_finds_no_thread_waits_until_there_is_one() {
        let has = Arc::new(AtomicBool::new(true));
        let helpers = helpers(&has);
        helpers.begin().expect("threads");
        has.store(false, Ordering::SeqCst);
        let gates: Vec<_> = (0..IDLE_MIN)
            .map(|_| {
                let (gate, opens) = channel();
                helpers.run("test", until_dropped(opens));
                gate
            })
            .collect();
        let (done, results) = channel();
        helpers.run("test", Box::new(move || done.send(()).expect("it is waited for")));
        assert!(results.recv_timeout(Duration::from_millis(50)).is_err());
        has.store(true, Ordering::SeqCst);
        assert_eq!(results.recv_timeout(PATIENCE), Ok(()));
        drop(gates);
    }

    #[test]
    fn others_get_no_helper_that_the_side_may_need() {
        let has = Arc::new(AtomicBool::new(true));
        let helpers = helpers(&has);
        helpers.begin().expect("threads");
        has.store(false, Ordering::SeqCst);
        let mut gates = Vec::new();
        let taken = (0..IDLE_MIN).filter(|_| {
            let (gate, opens) = channel();
            gates.push(gate);
            helpers.run_if_spare("test", until_dropped(opens))
        });
        assert_eq!(taken.count(), IDLE_MIN - RESERVED);
        let (done, results) = channel();
        helpers.run("test", Box::new(move || done.send(()).expect("it is waited for")));
        assert_eq!(results.recv_timeout(PATIENCE), Ok(()));
    }

    #[test]
    fn a_start_without_threads_says_so_and_can_be_tried_again() {
        let has = Arc::new(AtomicBool::new(false));
        let helpers = helpers(&has);
        assert!(helpers.begin().is_err());
        has.store(true, Ordering::SeqCst);
        helpers.begin().expect("threads");
        let state = helpers.0.lock();
        assert_eq!(
            (state.helpers, state.idle),
            (IDLE_MIN, IDLE_MIN),
            "one that was not made is none"
        );
    }

    #[test]
    fn others_that_take_helpers_have_more_made() {
        let helpers = helpers(&Arc::new(AtomicBool::new(true)));
        helpers.begin().expect("threads");
        let begun = std::time::Instant::now();
        let mut gates = Vec::new();
        while gates.len() < IDLE_MIN {
            let (gate, opens) = channel();
            match helpers.run_if_spare("test", until_dropped(opens)) {
                true => gates.push(gate),
                false => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(begun.elapsed() < PATIENCE, "none is made for them");
        }
    }

    #[test]
    fn a_system_without_threads_is_asked_for_one_now_and_then() {
        let has = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicUsize::new(0));
        let (may, count) = (has.clone(), asked.clone());
        let helpers = Helpers::new(move |name, work| match may.load(Ordering::SeqCst) {
            true => crate::threads::start(name, work).map(drop),
            false => {
                count.fetch_add(1, Ordering::SeqCst);
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
        });
        helpers.begin().expect("threads");
        has.store(false, Ordering::SeqCst);
        let begun = std::time::Instant::now();
        let (_gate, opens) = channel();
        helpers.run("test", until_dropped(opens));
        let asked = loop {
            match asked.load(Ordering::SeqCst) as u32 {
                asked @ 3.. => break asked,
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(begun.elapsed() < PATIENCE, "it is not asked again");
        };
        assert!(RETRY_PAUSE * (asked - 1) <= begun.elapsed(), "{asked}");
    }

    #[test]
    fn helpers_that_are_not_needed_any_more_end() {
        let helpers = helpers(&Arc::new(AtomicBool::new(true)));
        helpers.begin().expect("threads");
        let (done, results) = channel();
        let gates: Vec<_> = (0..2 * IDLE_MAX)
            .map(|_| {
                let (gate, opens) = channel();
                let (done, wait) = (done.clone(), until_dropped(opens));
                helpers.run(
                    "test",
                    Box::new(move || {
                        done.send(()).expect("it is waited for");
                        wait();
                    }),
                );
                gate
            })
            .collect();
        gates
            .iter()
            .for_each(|_| results.recv_timeout(PATIENCE).expect("a helper each"));
        drop(gates);
        let begun = std::time::Instant::now();
        while helpers.0.lock().helpers > IDLE_MAX {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
