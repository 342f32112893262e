//! Runs hooks: each has a thread, and runs once at a time. Who raises an alarm waits for none of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{Hook, Occasion};
use crate::side;

/// Alarms that wait for a hook. Further ones are counted, and the next one says how many were missed.
const WAITING_MAX: usize = 8;
/// Pause after each run of a hook: what happens again and again starts no more than so many.
const REST: Duration = Duration::from_secs(1);
/// What of failed hooks waits to be told to the log.
const SAID_MAX: usize = 16;

/// What has happened to a VM, as a hook reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// What.
    pub on: Occasion,
    /// To which VM.
    pub vm: String,
    /// As seen by which host.
    pub host: String,
    /// What that host is.
    pub role: String,
    /// The term that it lives in.
    pub term: u64,
    /// How the VM stands, in some words.
    pub state: String,
    /// What is in the way, as sentences.
    pub why: Vec<String>,
    /// When, in ms since 1970.
    pub time_ms: u64,
}

/// The hooks of a VM on one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hooks {
    /// The VM.
    pub vm: String,
    /// The host.
    pub host: String,
    /// The hooks.
    pub hooks: Vec<Hook>,
}

/// What became of alarms so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// Hooks that failed, as sentences.
    pub said: Vec<String>,
    /// Whether one runs, or an alarm waits.
    pub is_busy: bool,
}

/// Runs the hooks of one VM.
#[derive(Default)]
pub struct Runner {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// The VM, the host, and the longest time of a hook.
    of: Option<(String, String, Duration)>,
    /// Whether the end was told.
    has_ended: bool,
}

struct Worker {
    on: Vec<Occasion>,
    alarms: SyncSender<Alarm>,
    missed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Alarms that wait or are being told.
    open: usize,
    said: Vec<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_one(&self, outcome: Result<String, String>) {
        let mut state = self.lock();
        state.open -= 1;
        if let Err(reason) = outcome
            && state.said.len() < SAID_MAX
        {
            state.said.push(reason);
        }
        self.changed.notify_all();
    }
}

impl Runner {
    /// Begins to run these.
    ///
    /// # Errors
    /// If there are no threads for them.
    pub fn start(hooks: Option<&Hooks>) -> std::io::Result<Self> {
        let Some(hooks) = hooks else {
            return Ok(Self::default());
        };
        let mut runner = Self::default();
        let longest = hooks.hooks.iter().map(Hook::timeout).max().unwrap_or_default();
        runner.of = Some((hooks.vm.clone(), hooks.host.clone(), longest));
        for hook in &hooks.hooks {
            let (alarms, waiting) = sync_channel(WAITING_MAX);
            let missed = Arc::new(AtomicU64::new(0));
            runner.workers.push(Worker {
                on: hook.on.clone(),
                alarms,
                missed: missed.clone(),
            });
            let (shared, hook) = (runner.shared.clone(), hook.clone());
            let work = move || serve(&hook, &waiting, &missed, &shared);
            thread::Builder::new().name("hook".into()).spawn(work)?;
        }
        Ok(runner)
    }

    /// Tells every hook that wants to know, and waits for none.
    pub fn raise(&mut self, alarm: &Alarm) {
        self.has_ended |= alarm.on == Occasion::Stopped;
        for worker in self.workers.iter().filter(|worker| worker.on.contains(&alarm.on)) {
            self.shared.lock().open += 1;
            match worker.alarms.try_send(alarm.clone()) {
                Ok(()) => {}
                // Its thread lives as long as this value.
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.shared.lock().open -= 1;
                    worker.missed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// What became of it since this was asked last.
    pub fn told(&self) -> Told {
        let mut state = self.shared.lock();
        Told {
            said: std::mem::take(&mut state.said),
            is_busy: state.open > 0,
        }
    }

    /// The side is gone: if it has not said so itself, the hooks are told. Waits for those that run, no longer than one may.
    pub fn finish(mut self) {
        let Some((vm, host, longest)) = self.of.clone() else {
            return;
        };
        if !self.has_ended {
            self.raise(&Alarm {
                on: Occasion::Stopped,
                vm,
                host,
                role: "stopped".to_owned(),
                term: 0,
                state: "ended".to_owned(),
                why: vec!["the process of this side has ended without a word".to_owned()],
                time_ms: side::wall_clock_ms(),
            });
        }
        let until = Instant::now() + longest + REST;
        let mut state = self.shared.lock();
        while state.open > 0
            && let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Tells a hook what there is to tell, until nobody can tell more.
fn serve(hook: &Hook, alarms: &Receiver<Alarm>, missed: &AtomicU64, shared: &Shared) {
    while let Ok(alarm) = alarms.recv() {
        let missed = missed.swap(0, Ordering::Relaxed);
        let outcome = tell(hook, &alarm, missed);
        shared.end_one(outcome);
        thread::sleep(REST);
    }
}

/// Runs it once.
fn tell(hook: &Hook, alarm: &Alarm, missed: u64) -> Result<String, String> {
    #[derive(Serialize)]
    struct Said<'a> {
        #[serde(flatten)]
        alarm: &'a Alarm,
        /// Alarms before this one for which there was no room.
        missed: u64,
    }
    let mut line = serde_json::to_vec(&Said { alarm, missed }).map_err(|error| error.to_string())?;
    line.push(b'\n');
    side::run_hook(&hook.command, &line, Instant::now() + hook.timeout())
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod tests;
