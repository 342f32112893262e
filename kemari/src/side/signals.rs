//! SIGTERM and SIGINT: this process is to end, without harm to the VM.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::board::Board;
use crate::control::{Command, Control, Role};

/// Exit status after a second signal: the process has not waited for anything.
const STATUS_AT_ONCE: i32 = 1;

/// Whether the process is to end when its side lets it.
#[derive(Clone, Default)]
pub struct Leaving(Arc<AtomicBool>);

impl Leaving {
    /// Whether it is.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Begins to take the two signals. The first makes the side leave; a second one ends the process at once, as its death
/// would.
pub fn take(board: Arc<Board>) -> anyhow::Result<Leaving> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot take signals")?;
    let leaving = Leaving::default();
    let flag = leaving.0.clone();
    let begin = move || {
        for _ in signals.forever() {
            if flag.swap(true, Ordering::SeqCst) {
                tracing::warn!("a second signal: this process ends at once");
                process::exit(STATUS_AT_ONCE);
            }
            let (board, flag) = (board.clone(), flag.clone());
            thread::spawn(move || leave(&board, &flag));
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(begin)
        .context("cannot take signals")?;
    Ok(leaving)
}

fn leave(board: &Board, flag: &AtomicBool) {
    tracing::info!("this process was told to end");
    if board.status().role == Role::Starting {
        // It has nothing yet that could be let go.
        process::exit(0);
    }
    if let Err(reason) = board.command(Command::Leave) {
        tracing::warn!("this process does not end: {reason}");
        flag.store(false, Ordering::SeqCst);
    }
}
