//! The steward: a process of its own beside a side's, which runs the fence.
//!
//! A side's process gives up the right to start programs. What cuts the other host off needs that and much more: it may
//! speak to any device, be any program, gain rights by `sudo`. So the steward is started before, from the same program
//! with an address space of its own: it has never seen a byte of the guest or of a peer. It is given the fence commands of
//! the parsed configuration once, and takes nothing but names of peers afterwards. It ends with its side.

mod protocol;
mod serve;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::Config;
use crate::side;
use protocol::{Answer, Orders, Request, now_ns, receive, send};

pub use serve::{ARGUMENT, serve};

/// An answer that is so much later than the end of a fence's time is not waited for.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Longest wait for what is no fence.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// This process's steward, if it has one.
static STEWARD: OnceLock<Steward> = OnceLock::new();

struct Steward {
    line: Mutex<Line>,
    /// The same socket, to be looked at while it is in use.
    socket: UnixStream,
}

struct Line {
    socket: UnixStream,
    /// Number of the last request: answers to others came too late.
    last: u64,
}

/// Starts the steward for the host `host`. From then on [`fence`] goes through it. To be called while this process may
/// still start programs.
///
/// # Errors
/// If there is no process, or no socket, for it.
pub fn start(config: &Config, host: &str) -> anyhow::Result<()> {
    let own = config.host(host);
    let fences = config
        .peers(host)
        .map(|(peer, _)| (peer.to_owned(), own.fence_against(peer)))
        .collect();
    let (socket, its) = UnixStream::pair().context("no socket for the steward can be made")?;
    // The kernel's name of this program: the file may have been replaced by another version.
    Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .stdin(OwnedFd::from(its))
        .stdout(Stdio::null())
        .spawn()
        .context("the steward, the process that runs the fence, cannot be started")?;
    send(&mut &socket, &Orders { fences }).context("the steward does not listen")?;
    let line = Mutex::new(Line {
        socket: socket.try_clone()?,
        last: 0,
    });
    // There is one start a process.
    let _ = STEWARD.set(Steward { line, socket });
    Ok(())
}

/// Runs the fence of `host` against `peer`, as [`side::fence`] does.
///
/// # Errors
/// If it failed, or it is not known whether it succeeded.
pub fn fence(config: &Config, host: &str, peer: &str, until: Instant) -> Result<(), String> {
    let Some(steward) = STEWARD.get() else {
        return side::fence(&config.host(host).fence_against(peer), until).map(said);
    };
    let left = until.saturating_duration_since(Instant::now());
    let request = Request::Fence {
        peer: peer.to_owned(),
        until_ns: now_ns() + left.as_nanos() as u64,
    };
    match steward.ask(request, left + LATE_MAX)? {
        Answer::Fenced(result) => result.map(said),
        Answer::Looked(_) => Err("the steward answers something else".into()),
    }
}

fn said(words: String) {
    tracing::info!("{words}");
}

/// Why the fence of `host` could not be run, as a sentence, if a takeover needs it.
pub fn fence_trouble(config: &Config, host: &str) -> Option<String> {
    let shares_disk = config.disks.iter().any(|disk| disk.shared && !disk.read_only);
    let program = config.host(host).fence.first().filter(|_| shares_disk)?;
    let looked = match STEWARD.get() {
        None => side::executable(program).map(drop),
        Some(steward) if steward.has_ended() => {
            return Some(
                "the steward of this process, which runs the fence, has ended: restart this side".into(),
            );
        }
        // It runs a fence, or is slow: there is something to say only when there is an answer.
        Some(steward) => steward.look()?,
    };
    let why = looked.err()?;
    Some(format!(
        "the fence command `{program}` {why}: install it, or correct `fence`"
    ))
}

impl Steward {
    fn has_ended(&self) -> bool {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut sockets, Some(&at_once)), Ok(1..))
    }

    /// Whether the fence could be started, if nothing else is asked at the moment.
    fn look(&self) -> Option<Result<(), String>> {
        let mut line = self.line.try_lock().ok()?;
        match line.ask(Request::Look, LOOK_MAX) {
            Ok(Answer::Looked(result)) => Some(result),
            _ => None,
        }
    }

    fn ask(&self, request: Request, limit: Duration) -> Result<Answer, String> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.ask(request, limit).map_err(|error| {
            format!("the steward, the process that runs the fence, does not answer: {error}")
        })
    }
}

impl Line {
    fn ask(&mut self, request: Request, limit: Duration) -> io::Result<Answer> {
        self.last += 1;
        let until = Instant::now() + limit;
        send(&mut &self.socket, &(self.last, request))?;
        loop {
            // Zero would mean no limit.
            let left = until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            let (number, answer): (u64, Answer) = receive(&mut &self.socket)?;
            if number == self.last {
                return Ok(answer);
            }
        }
    }
}
