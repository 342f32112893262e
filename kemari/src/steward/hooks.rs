//! Runs hooks: each has a thread, and runs once at a time. Who raises an alarm waits for none of them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{Hook, Occasion};
use crate::side;

/// Alarms that wait for a hook. For a further one the oldest goes,
/// and the next one says how many were missed.
const WAITING_MAX: usize = 8;
/// Pause after each run of a hook: what happens again and again starts no more than so many.
const REST: Duration = Duration::from_secs(1);
/// What of failed hooks waits to be told to the log.
pub(super) const SAID_MAX: usize = 16;

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
    pub(crate) time_ms: u64,
    /// Alarms before this one for which there was no room.
    pub(crate) missed: u64,
}

/// Alarms that wait to be told. There is always room for one more:
/// how things stand is what the last one says.
#[derive(Default)]
pub(crate) struct Waiting(VecDeque<Alarm>);

impl Waiting {
    /// Has this one wait, too.
    pub(crate) fn push(&mut self, alarm: Alarm) {
        self.0.push_back(alarm);
        self.keep_last(WAITING_MAX);
    }

    /// Whose turn it is.
    pub(crate) fn first(&self) -> Option<&Alarm> {
        self.0.front()
    }

    /// The same, which waits no longer.
    pub(crate) fn pop(&mut self) -> Option<Alarm> {
        self.0.pop_front()
    }

    fn keep_last(&mut self, number: usize) {
        while self.0.len() > number {
            let missed = self.pop().map_or(0, |alarm| alarm.missed.saturating_add(1));
            if let Some(next) = self.0.front_mut() {
                // The side says what it likes.
                next.missed = next.missed.saturating_add(missed);
            }
        }
    }
}

/// The hooks of a VM on one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hooks {
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
    pub(crate) is_busy: bool,
}

/// Runs the hooks of one VM.
#[derive(Default)]
pub(crate) struct Runner {
    shared: Arc<Shared>,
    /// What each hook wants to know.
    wanted: Vec<Vec<Occasion>>,
    /// The VM, the host, and the longest time of a hook.
    of: Option<(String, String, Duration)>,
    /// Whether the side has said that it lives. The end of one that has not is a start that failed.
    has_lived: bool,
    /// Whether the end was told.
    has_ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What waits for each hook.
    waiting: Vec<Waiting>,
    /// Hooks that run.
    running: usize,
    said: Vec<String>,
    /// What was said of each hook last, if that has failed.
    said_last: Vec<Option<String>>,
    /// Whether nobody can raise more.
    is_over: bool,
}

impl State {
    fn is_busy(&self) -> bool {
        self.running > 0 || self.waiting.iter().any(|waiting| waiting.first().is_some())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this hook is to be told next; waits for it, unless nobody can raise more.
    fn begin_one(&self, hook: usize) -> Option<Alarm> {
        let mut state = self.lock();
        loop {
            if let Some(alarm) = state.waiting[hook].pop() {
                state.running += 1;
                return Some(alarm);
            }
            if state.is_over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What it fails with again and again is said once.
    fn end_one(&self, hook: usize, outcome: Result<String, String>) {
        let mut state = self.lock();
        state.running -= 1;
        let failed = outcome.err();
        if failed != state.said_last[hook] && state.said.len() < SAID_MAX {
            state.said.extend(failed.clone());
            state.said_last[hook] = failed;
        }
        self.changed.notify_all();
    }
}

impl Runner {
    /// Begins to run these.
    ///
    /// # Errors
    /// If there are no threads for them.
    pub(super) fn start(hooks: Option<&Hooks>) -> std::io::Result<Self> {
        let Some(hooks) = hooks else {
            return Ok(Self::default());
        };
        let mut runner = Self::default();
        let longest = hooks.hooks.iter().map(Hook::timeout).max().unwrap_or_default();
        runner.of = Some((hooks.vm.clone(), hooks.host.clone(), longest));
        for (number, hook) in hooks.hooks.iter().enumerate() {
            runner.wanted.push(hook.on.clone());
            let mut state = runner.shared.lock();
            state.waiting.push(Waiting::default());
            state.said_last.push(None);
            drop(state);
            let (shared, hook) = (runner.shared.clone(), hook.clone());
            let work = move || serve(&hook, number, &shared);
            thread::Builder::new().name("hook".into()).spawn(work)?;
        }
        Ok(runner)
    }

    /// Tells every hook that wants to know, and waits for none.
    pub(super) fn raise(&mut self, alarm: &Alarm) {
        self.note_life();
        self.has_ended |= alarm.on == Occasion::Stopped;
        let mut state = self.shared.lock();
        for (on, waiting) in self.wanted.iter().zip(&mut state.waiting) {
            if on.contains(&alarm.on) {
                waiting.push(alarm.clone());
            }
        }
        self.shared.changed.notify_all();
    }

    /// The side has started.
    pub(crate) fn note_life(&mut self) {
        self.has_lived = true;
    }

    /// What became of it since this was asked last.
    pub(super) fn told(&self) -> Told {
        let mut state = self.shared.lock();
        Told {
            said: std::mem::take(&mut state.said),
            is_busy: state.is_busy(),
        }
    }

    /// The side is gone: if it has lived and has not said so itself, the hooks are told. Of what waits each
    /// is told the last, after what it is being told: for that there is time.
    pub(super) fn finish(mut self) {
        let Some((vm, host, longest)) = self.of.clone() else {
            return;
        };
        if self.has_lived && !self.has_ended {
            self.raise(&Alarm {
                on: Occasion::Stopped,
                vm,
                host,
                role: "stopped".to_owned(),
                term: 0,
                state: "ended".to_owned(),
                why: vec!["the process of this side has ended without a word".to_owned()],
                time_ms: side::wall_clock_ms(),
                missed: 0,
            });
        }
        let until = Instant::now() + 2 * (longest + REST);
        let mut state = self.shared.lock();
        state.waiting.iter_mut().for_each(|waiting| waiting.keep_last(1));
        while state.is_busy()
            && let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
    }
}

/// Tells the hook of this number what there is to tell, until nobody can raise more.
fn serve(hook: &Hook, number: usize, shared: &Shared) {
    while let Some(alarm) = shared.begin_one(number) {
        shared.end_one(number, tell(hook, &alarm));
        thread::sleep(REST);
    }
}

/// Runs it once.
fn tell(hook: &Hook, alarm: &Alarm) -> Result<String, String> {
    let mut line = serde_json::to_vec(alarm).map_err(|error| error.to_string())?;
    line.push(b'\n');
    side::run_hook(&hook.command, &line, hook.timeout())
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod tests;
