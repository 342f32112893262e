//! What an administrator wants to be told at once: hooks (`[[hook]]`).
//!
//! A thread of its own looks now and then at what `kemari status` would say, and raises an alarm for what is
//! new. So no alarm can be in the way of a sync, and what is over again between two looks raises none.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::board::Board;
use super::clock::wall_clock_ms;
use crate::config::{Config, Occasion};
use crate::control::{Control, Protection, Role, Status, Takeover, Verdict};
use crate::steward::{self, Alarm, Silence, Told, Waiting};
use crate::threads;

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// After so many looks in a row that found it not well, and none of them what was told, the last is told.
const UNTOLD_LOOKS_MAX: u32 = 4;
/// Longest time that a process which ends waits for its hooks, from when it says so;
/// the steward waits for them on.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// The same, with the time that a steward which does not answer may take.
const END_MAX: Duration = Duration::from_secs(3);
/// Longest time that a process which ends at once has for the same: to begin its hooks.
const AT_ONCE_MAX: Duration = Duration::from_millis(200);
/// Sentences in an alarm, and letters in each.
const WHY_MAX: usize = 8;
const LETTERS_MAX: usize = 512;

/// The watch of this process.
pub struct Alarms {
    words: Sender<Word>,
    /// Is closed when the watch has ended. Who waits for that holds it.
    ended: Mutex<Receiver<()>>,
}

/// What the watch is told.
enum Word {
    Lives,
    Ends(String),
}

impl Alarms {
    /// Makes ready to watch, if there are hooks.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(config: &Config, board: Arc<Board>) -> anyhow::Result<Option<Arc<Self>>> {
        if config.hooks.is_empty() {
            return Ok(None);
        }
        let (words, heard) = channel();
        let (ends, ended) = channel();
        let watch = move || {
            let _ends: Sender<()> = ends;
            // A start that fails is tried again and again, and may be a mistake beside a side that lives:
            // no alarm.
            let Ok(Word::Lives) = heard.recv() else {
                return;
            };
            let mut watch = Watch::default();
            watch.note(steward::hooks_told());
            loop {
                match heard.recv_timeout(LOOK_INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => watch.look(&board.status()),
                    // Then the steward tells.
                    Err(RecvTimeoutError::Disconnected) => return,
                    Ok(Word::Lives) => {}
                    Ok(Word::Ends(reason)) => return watch.end(&board.status(), reason),
                }
            }
        };
        threads::start("alarms", watch).context("cannot watch for alarms")?;
        let ended = Mutex::new(ended);
        Ok(Some(Arc::new(Self { words, ended })))
    }

    /// Begins to watch: this side has its first role.
    pub fn begin(&self) {
        // As below.
        let _ = self.words.send(Word::Lives);
    }

    /// Raises the last alarm, and gives its hooks a moment.
    pub fn end(&self, reason: &str) {
        self.say_last(reason);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(END_MAX);
    }

    /// Raises the last alarm, and waits for no hook.
    pub fn end_at_once(&self, reason: &str) {
        self.say_last(reason);
        // Else another one is raised already.
        if let Ok(ended) = self.ended.try_lock() {
            let _ = ended.recv_timeout(AT_ONCE_MAX);
        }
    }

    fn say_last(&self, reason: &str) {
        // A panic ends the process; and the last alarm was raised where the watch has ended.
        let _ = self.words.send(Word::Ends(reason.to_owned()));
    }
}

/// What was seen last.
#[derive(Default)]
struct Watch {
    level: Option<Occasion>,
    /// What was seen for the first time, and is told if it is still so.
    next: Option<Occasion>,
    /// Looks that found it not well, and not as told, since it was as told: for longer than a moment,
    /// if it was well.
    untold_looks: u32,
    takeover: Option<Takeover>,
    arbiter_is_silent: bool,
    /// What the steward has not taken yet.
    untold: Waiting,
    /// Whether it does not answer.
    steward_is_silent: bool,
    is_busy: bool,
}

impl Watch {
    fn look(&mut self, status: &Status) {
        for occasion in self.news(status) {
            self.untold.push(alarm(occasion, status, status.troubles()));
        }
        self.tell(steward::raise);
        if self.is_busy {
            self.note(steward::hooks_told());
        }
    }

    /// What has happened since the last look.
    fn news(&mut self, status: &Status) -> Vec<Occasion> {
        let mut news = Vec::new();
        if status.takeover != self.takeover {
            self.takeover.clone_from(&status.takeover);
            news.extend(
                status
                    .takeover
                    .as_ref()
                    .map(|takeover| match takeover.planned_pause_ms {
                        Some(_) => Occasion::Switchover,
                        None => Occasion::Takeover,
                    }),
            );
        }
        let is_silent = status.arbiter_trouble.is_some();
        if is_silent != self.arbiter_is_silent {
            self.arbiter_is_silent = is_silent;
            news.push(match is_silent {
                true => Occasion::ArbiterSilent,
                false => Occasion::ArbiterBack,
            });
        }
        // What is so for a moment only, as between a pair's first sync and the secondary's first look,
        // is no alarm.
        let level = level(status);
        self.untold_looks = match level {
            None => 0,
            Some(Occasion::Protected) if level != self.level || level != self.next => self.untold_looks,
            level if level == self.level => 0,
            Some(_) => self.untold_looks + 1,
        };
        let is_untold_long = level != Some(Occasion::Protected) && self.untold_looks >= UNTOLD_LOOKS_MAX;
        if level != self.level && (level == self.next || is_untold_long) {
            (self.level, self.untold_looks) = (level, 0);
            news.extend(level);
        }
        self.next = level;
        news
    }

    fn end(&mut self, status: &Status, reason: String) {
        let until = Instant::now() + FAREWELL_MAX;
        self.look(status);
        self.untold.push(alarm(Occasion::Stopped, status, vec![reason]));
        self.tell(steward::raise);
        while self.is_busy && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
            self.note(steward::hooks_told());
        }
    }

    /// Raises what waits for it. What could not be sent waits for the next look; what was is taken,
    /// and never sent again.
    fn tell(&mut self, raise: impl Fn(&Alarm) -> Result<Told, Silence>) {
        while let Some(alarm) = self.untold.first() {
            let told = raise(alarm);
            if !matches!(told, Err(Silence { was_sent: false, .. })) {
                self.untold.pop();
            }
            self.note(told);
            if self.steward_is_silent {
                return;
            }
        }
    }

    fn note(&mut self, told: Result<Told, Silence>) {
        let was_silent = std::mem::replace(&mut self.steward_is_silent, told.is_err());
        match told {
            Ok(told) => {
                told.said.iter().for_each(|said| tracing::warn!("{said}"));
                self.is_busy = told.is_busy;
            }
            Err(silence) => {
                if !was_silent {
                    tracing::warn!("a hook cannot be run: {}", silence.reason);
                }
                self.is_busy = false;
            }
        }
    }
}

/// How well the VM is protected, as this side may judge it.
fn level(status: &Status) -> Option<Occasion> {
    match (status.role, status.protection, status.verdict()) {
        (Role::Starting | Role::Stopped, ..) => None,
        (Role::Primary, Protection::Off | Protection::Copying { .. }, _) => Some(Occasion::Unprotected),
        // It has nothing yet: the primary says that the VM is not protected.
        (Role::Secondary, Protection::Off | Protection::Copying { .. }, _) => None,
        (_, _, Verdict::Ready) => Some(Occasion::Protected),
        (_, _, Verdict::Doubtful) => Some(Occasion::InDoubt),
        (_, _, Verdict::NotReady | Verdict::NothingHere) => Some(Occasion::NotReady),
    }
}

fn alarm(on: Occasion, status: &Status, why: Vec<String>) -> Alarm {
    let short = |sentence: String| sentence.chars().take(LETTERS_MAX).collect();
    Alarm {
        on,
        vm: status.vm.clone(),
        host: status.host.clone(),
        role: status.role.to_string(),
        term: status.term,
        state: status.state(),
        why: why.into_iter().take(WHY_MAX).map(short).collect(),
        time_ms: wall_clock_ms(),
        missed: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Readiness;
    use Occasion::{
        ArbiterBack, ArbiterSilent, InDoubt, NotReady, Protected, Switchover, Takeover as TookOver,
        Unprotected,
    };

    fn status(role: Role, protection: Protection, ready: bool) -> Status {
        let config = Config::parse(include_str!("../../../docs/example.toml"), "test").expect("the example");
        let mut status = super::super::life::first_status(&config, "a");
        (status.role, status.protection) = (role, protection);
        status.readiness = Some(Readiness {
            ready,
            reasons: Vec::new(),
            checked_ms: 0,
        });
        status
    }

    #[test]
    fn what_lasts_is_told_once_and_what_is_over_in_a_moment_is_not() {
        use Protection::{Doubtful, Off, On};
        let mut watch = Watch::default();
        let mut see = |protection, ready| watch.news(&status(Role::Primary, protection, ready));
        assert_eq!(see(Off, false), []);
        assert_eq!(see(Off, false), [Unprotected]);
        assert_eq!(see(Off, false), []);
        assert_eq!(see(On, false), [], "the secondary has not looked yet");
        assert_eq!(see(On, true), []);
        assert_eq!(see(On, true), [Protected]);
        assert_eq!(see(On, false), []);
        assert_eq!(see(On, true), []);
        assert_eq!(see(On, true), [], "it was so all the time");
        assert_eq!([see(On, false), see(On, false)].concat(), [NotReady]);
        assert_eq!([see(Doubtful, true), see(Doubtful, true)].concat(), [InDoubt]);
        let mut idle = Watch::default();
        for _ in 0..3 {
            assert_eq!(idle.news(&status(Role::Secondary, Off, false)), []);
            assert_eq!(idle.news(&status(Role::Starting, Off, false)), []);
        }
    }

    #[test]
    fn what_is_not_well_in_ever_other_ways_is_told() {
        use Protection::{Doubtful, On};
        let mut watch = Watch::default();
        let mut see = |protection, ready| watch.news(&status(Role::Primary, protection, ready));
        assert_eq!([see(On, true), see(On, true)].concat(), [Protected]);
        let seen = [see(On, false), see(Doubtful, true), see(On, false)];
        assert_eq!(seen.concat(), []);
        assert_eq!(see(Doubtful, true), [InDoubt]);
        for _ in 0..4 {
            assert_eq!([see(On, false), see(Doubtful, true)].concat(), [], "it was told");
        }
        assert_eq!([see(On, true), see(On, true)].concat(), [Protected]);
        for _ in 0..4 {
            let seen = [see(On, false), see(Doubtful, true), see(On, true), see(On, true)];
            assert_eq!(seen.concat(), [], "it was well");
        }
    }

    #[test]
    fn what_is_well_for_a_moment_only_again_and_again_is_told_not_to_be() {
        use Protection::On;
        let mut watch = Watch::default();
        let mut see = |ready| watch.news(&status(Role::Primary, On, ready));
        assert_eq!([see(true), see(true)].concat(), [Protected]);
        for _ in 0..3 {
            assert_eq!([see(false), see(true)].concat(), []);
        }
        assert_eq!(see(false), [NotReady]);
        for _ in 0..8 {
            assert_eq!([see(true), see(false)].concat(), [], "it was told");
        }
        assert_eq!([see(true), see(true)].concat(), [Protected]);
    }

    #[test]
    fn a_process_that_ends_waits_for_its_watch_no_longer_than_that() {
        let (words, heard) = channel();
        let (ends, ended) = channel();
        let ended = Mutex::new(ended);
        let alarms = Alarms { words, ended };
        let begun = Instant::now();
        alarms.end_at_once("it is over");
        assert!((AT_ONCE_MAX..END_MAX).contains(&begun.elapsed()));
        assert!(matches!(heard.recv(), Ok(Word::Ends(reason)) if reason == "it is over"));
        let waits = alarms.ended.lock().expect("nobody panics");
        alarms.end_at_once("and again");
        drop(waits);
        let begun = Instant::now();
        alarms.end("and in peace");
        assert!((END_MAX..4 * END_MAX).contains(&begun.elapsed()));
        drop(ends);
        let begun = Instant::now();
        alarms.end("it has ended");
        assert!(begun.elapsed() < END_MAX);
    }

    #[test]
    fn what_the_steward_did_not_get_is_raised_again_and_what_it_got_is_not() {
        let silence = |was_sent| {
            let reason = "it is slow".to_owned();
            Err(Silence { reason, was_sent })
        };
        let seen = status(Role::Primary, Protection::Off, false);
        let mut watch = Watch::default();
        watch.untold.push(alarm(ArbiterSilent, &seen, Vec::new()));
        watch.untold.push(alarm(Unprotected, &seen, Vec::new()));
        watch.untold.push(alarm(TookOver, &seen, Vec::new()));
        watch.tell(|_| silence(true));
        watch.tell(|_| silence(false));
        assert!(watch.steward_is_silent);
        let told = std::cell::RefCell::new(Vec::new());
        for _ in 0..2 {
            watch.tell(|alarm| {
                told.borrow_mut().push(alarm.on);
                Ok(Told::default())
            });
        }
        assert_eq!(told.take(), [Unprotected, TookOver]);
        assert!(!watch.steward_is_silent);
    }

    #[test]
    fn what_is_new_at_the_end_is_told_before_it() {
        let mut watch = Watch::default();
        let mut seen = status(Role::Primary, Protection::Off, false);
        seen.arbiter_trouble = Some("it is away".to_owned());
        // There is no steward here: all of it waits.
        watch.end(&seen, "the VM is stopped".to_owned());
        let untold = std::iter::from_fn(|| watch.untold.pop());
        let told: Vec<_> = untold.map(|alarm| alarm.on).collect();
        assert_eq!(told, [ArbiterSilent, Occasion::Stopped]);
    }

    #[test]
    fn who_came_here_and_what_the_arbiter_does_is_told_at_once() {
        let mut watch = Watch::default();
        let mut seen = status(Role::Primary, Protection::Off, false);
        seen.takeover = Some(Takeover {
            ms: 12.0,
            cut_in_step: None,
            planned_pause_ms: None,
        });
        assert_eq!(watch.news(&seen), [TookOver]);
        seen.arbiter_trouble = Some("it is away".to_owned());
        assert_eq!(watch.news(&seen), [ArbiterSilent, Unprotected]);
        seen.arbiter_trouble = None;
        assert_eq!(watch.news(&seen), [ArbiterBack]);
        seen.takeover.as_mut().expect("above").planned_pause_ms = Some(1.0);
        assert_eq!(watch.news(&seen), [Switchover]);
    }
}
