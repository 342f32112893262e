//! Signals: which of them tell this process to end, without harm to the VM, and which do nothing.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::alarms::Alarms;
use super::board::Board;
use crate::control::{Command, Control, Role};
use crate::{log, threads};

/// Exit status after a second signal: the process has not waited for anything.
const STATUS_AT_ONCE: i32 = 1;

/// What they announce comes as an error of the call that met it, too: a file that may not grow, a reader that
/// is gone, a terminal that belongs to others at the moment.
const IGNORED: [i32; 4] = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTIN, libc::SIGTTOU];

/// Whether the process is to end when its side lets it.
#[derive(Clone, Default)]
pub struct Leaving(Arc<AtomicBool>);

impl Leaving {
    /// Whether it is.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// From now on the signals that would end or stop this process for a trifle do nothing.
pub fn ignore_trifles() {
    for signal in IGNORED {
        // SAFETY: no code runs at a signal that is ignored, and each of these may be.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Whether whoever started this process, as nohup(1) does, has set a signal to be ignored.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: the action is written by the call, which changes nothing, and all zeros are a valid one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Begins to take the signals that tell this process to end: the first makes the side leave. A second SIGTERM
/// or SIGINT ends the process at once, as its death would; a terminal that hangs up may well say so twice.
pub fn take(board: Arc<Board>, alarms: Option<Arc<Alarms>>) -> anyhow::Result<Leaving> {
    let mut wanted = vec![SIGTERM, SIGINT];
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = Signals::new(wanted).context("cannot take signals")?;
    let leaving = Leaving::default();
    let (leaves, wishes) = channel();
    let (flag, told) = (leaving.0.clone(), alarms.clone());
    threads::start("leave", move || {
        for () in wishes {
            if !leave(&board, told.as_deref()) {
                flag.store(false, Ordering::SeqCst);
            }
        }
    })
    .context("cannot take signals")?;
    let flag = leaving.0.clone();
    threads::start("signals", move || {
        let mut asked = Asked::default();
        for signal in signals.forever() {
            match asked.on_signal(signal, flag.swap(true, Ordering::SeqCst)) {
                // The receiver lives as long as its thread, and that as long as this sender.
                Answer::Leave => drop(leaves.send(())),
                Answer::Wait => {}
                Answer::EndAtOnce => {
                    tracing::warn!("a second signal: this process ends at once");
                    alarms.iter().for_each(|alarms| {
                        alarms.end_at_once("a second signal has ended this process at once")
                    });
                    log::exit(STATUS_AT_ONCE);
                }
            }
        }
    })
    .context("cannot take signals")?;
    Ok(leaving)
}

/// What the process was told so far.
#[derive(Default)]
struct Asked {
    /// Whether one of the signals that are meant was among them.
    firmly: bool,
}

/// What follows from a signal.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Leave,
    Wait,
    EndAtOnce,
}

impl Asked {
    /// `is_leaving`: the side was told already, and has not refused.
    fn on_signal(&mut self, signal: i32, is_leaving: bool) -> Answer {
        let is_meant = signal != SIGHUP;
        if !is_leaving {
            self.firmly = is_meant;
            return Answer::Leave;
        }
        match (is_meant, self.firmly) {
            (true, true) => Answer::EndAtOnce,
            (true, false) => {
                self.firmly = true;
                Answer::Wait
            }
            (false, _) => Answer::Wait,
        }
    }
}

/// This process is told to end, in order. False: the side does not let go, and has said why.
pub(super) fn leave(board: &Board, alarms: Option<&Alarms>) -> bool {
    tracing::info!("this process was told to end");
    if board.status().role == Role::Starting {
        // It has nothing yet, or again, that could be let go.
        alarms
            .iter()
            .for_each(|alarms| alarms.end_at_once("this process was told to end"));
        log::exit(0);
    }
    match board.command(Command::Leave) {
        Ok(_) => true,
        Err(reason) => {
            tracing::warn!("this process does not end: {reason}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_signal_ends_the_process_but_a_terminal_that_hangs_up_does_not() {
        use Answer::{EndAtOnce, Leave, Wait};
        for (signals, answers) in [
            (vec![SIGTERM, SIGINT], vec![Leave, EndAtOnce]),
            (vec![SIGHUP, SIGHUP, SIGHUP], vec![Leave, Wait, Wait]),
            (vec![SIGTERM, SIGHUP, SIGTERM], vec![Leave, Wait, EndAtOnce]),
            (vec![SIGHUP, SIGTERM, SIGTERM], vec![Leave, Wait, EndAtOnce]),
        ] {
            let mut asked = Asked::default();
            let mut is_leaving = false;
            for (signal, answer) in signals.into_iter().zip(answers) {
                assert_eq!(asked.on_signal(signal, is_leaving), answer);
                is_leaving = true;
            }
        }
    }

    #[test]
    fn a_refused_signal_counts_no_more() {
        let mut asked = Asked::default();
        assert_eq!(asked.on_signal(SIGTERM, false), Answer::Leave);
        // The side has refused.
        assert_eq!(asked.on_signal(SIGTERM, false), Answer::Leave);
        assert_eq!(asked.on_signal(SIGHUP, false), Answer::Leave);
        assert_eq!(asked.on_signal(SIGINT, true), Answer::Wait);
    }
}
