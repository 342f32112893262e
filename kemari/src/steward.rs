//! The steward: a process of its own beside a side's, which keeps the rights that the side gives up.
//!
//! A side's process gives up its capabilities and the right to start programs. What cuts the other host off
//! needs the latter and much more: it may speak to any device, be any program, gain rights by `sudo`. To
//! attach to a TAP takes CAP_NET_ADMIN. So the steward is started before, from the same program with an
//! address space of its own: it has never seen a byte of the guest or of a peer. It is told what the parsed
//! configuration says of fences, TAPs and hooks once, and takes nothing but names of that afterwards: of a
//! peer, of a card; and what the hooks are to read. It ends with its side, or when the last hook has been
//! told of that.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hooks;
mod protocol;
mod serve;
#[cfg(test)]
mod serve_test;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use kemari_vmm::disk::{self, OpenImage};
use kemari_vmm::virtio::tap::{TapDevice, TapError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair, sockopt};

use crate::config::{Config, HostNet};
use crate::side;
use hooks::{Hooks, Runner, SAID_MAX};
use protocol::{
    Answer, Image, Opening, Orders, Refusal, Request, now_ns, receive, receive_packet, send, send_packet,
};

pub(crate) use hooks::Waiting;
pub use hooks::{Alarm, Told};
pub use serve::{ARGUMENT, serve};

/// An answer that is so much later than the end of a fence's time is not waited for.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Longest wait for what is no fence.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Longest wait for what is to be opened.
const OPEN_MAX: Duration = Duration::from_secs(2);

/// This process's steward, if it has one.
static STEWARD: OnceLock<Steward> = OnceLock::new();
/// Runs the hooks of a process without a steward.
static RUNNER: OnceLock<Mutex<Runner>> = OnceLock::new();

struct Steward {
    line: Mutex<Line>,
    openings: Mutex<Openings>,
    /// The same sockets, to be looked at while they are in use.
    sockets: [OwnedFd; 2],
    /// The disk whose image is at a path.
    disks: BTreeMap<PathBuf, String>,
}

/// By which fences are asked for.
struct Line {
    socket: UnixStream,
    /// Number of the last request: answers to others came too late.
    last: u64,
    /// What such an answer said of hooks: it says so once.
    said: Vec<String>,
}

/// By which descriptors come.
struct Openings {
    socket: OwnedFd,
    /// As above.
    last: u64,
}

/// Starts the steward for the host `host`. From then on [`fence`] goes through it. To be called while this
/// process may still start programs.
///
/// # Errors
/// If there is no process, or no socket, for it.
pub fn start(config: &Config, host: &str) -> anyhow::Result<()> {
    let (socket, its) = UnixStream::pair().context("no socket for the steward can be made")?;
    let (openings, its_openings) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("no socket for the steward can be made")?;
    // The kernel's name of this program: the file may have been replaced by another version.
    Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .stdin(OwnedFd::from(its))
        .stdout(its_openings)
        .spawn()
        .context(
            "the steward, the process that keeps the rights which this one gives up, cannot be started",
        )?;
    send(&mut &socket, &orders(config, host)).context("the steward does not listen")?;
    let mut steward = Steward::with(socket, openings)?;
    steward.disks = config
        .disks_of(host)
        .into_iter()
        .map(|disk| (disk.path, disk.disk.id.clone()))
        .collect();
    // There is one start a process.
    let _ = STEWARD.set(steward);
    disk::set_opener(open_device);
    Ok(())
}

fn orders(config: &Config, host: &str) -> Orders {
    let own = config.host(host);
    let fences = config
        .peers(host)
        .map(|(peer, _)| (peer.to_owned(), own.fence_against(peer)));
    let taps = config
        .nets_of(host)
        .into_iter()
        .map(|HostNet { net, tap }| (net.id.clone(), tap));
    let disks = config.disks_of(host).into_iter().map(|disk| {
        let image = Image {
            path: disk.path,
            read_only: disk.disk.read_only,
        };
        (disk.disk.id.clone(), image)
    });
    Orders {
        fences: fences.collect(),
        taps: taps.collect(),
        disks: disks.collect(),
        hooks: hooks_of(config, host),
    }
}

fn hooks_of(config: &Config, host: &str) -> Option<Hooks> {
    (!config.hooks.is_empty()).then(|| Hooks {
        vm: config.vm.clone(),
        host: host.to_owned(),
        hooks: config.hooks.clone(),
    })
}

/// Has this process run its hooks itself: it has no steward.
///
/// # Errors
/// If there are no threads for them.
pub(crate) fn run_hooks_here(config: &Config, host: &str) -> io::Result<()> {
    let runner = Runner::start(hooks_of(config, host).as_ref())?;
    // There is one start a process.
    let _ = RUNNER.set(Mutex::new(runner));
    Ok(())
}

/// Why a steward said nothing of alarms.
#[derive(Debug)]
pub struct Silence {
    /// As a sentence.
    pub reason: String,
    /// Whether it has what it was asked, though. What reaches it is taken in turn:
    /// it is not to be sent again.
    pub was_sent: bool,
}

/// Tells the hooks of this, and waits for none of them.
///
/// # Errors
/// If the steward does not answer.
pub fn raise(alarm: &Alarm) -> Result<Told, Silence> {
    ask_of_hooks(Request::Alarm(alarm.clone()), |runner| runner.raise(alarm))
}

/// What became of alarms. From the first time on the hooks are told if this process ends.
///
/// # Errors
/// If the steward does not answer.
pub(crate) fn hooks_told() -> Result<Told, Silence> {
    ask_of_hooks(Request::Hooks, Runner::note_life)
}

fn ask_of_hooks(request: Request, here: impl FnOnce(&mut Runner)) -> Result<Told, Silence> {
    if let Some(steward) = STEWARD.get() {
        return match steward.ask(request, LOOK_MAX)? {
            Answer::Told(told) => Ok(told),
            Answer::Fenced(_) | Answer::Looked(_) => Err(Silence {
                reason: "the steward answers something else".into(),
                was_sent: true,
            }),
        };
    }
    let runner = RUNNER.get().ok_or_else(|| Silence {
        reason: "nobody runs hooks here".into(),
        was_sent: false,
    })?;
    let mut runner = runner.lock().unwrap_or_else(PoisonError::into_inner);
    here(&mut runner);
    Ok(runner.told())
}

/// Opens the TAP of a card of this host.
///
/// # Errors
/// As [`TapDevice::open`]; or if the steward does not answer.
pub(crate) fn open_tap(net: &HostNet<'_>) -> anyhow::Result<TapDevice> {
    let name = &net.tap;
    let Some(steward) = STEWARD.get() else {
        return Ok(TapDevice::open(name)?);
    };
    match steward.open(Opening::Tap(net.net.id.clone()))? {
        Ok(descriptor) => Ok(TapDevice::attached(name, descriptor.into())?),
        Err(Refusal::NoTap) => Err(TapError::Missing(name.clone()).into()),
        Err(Refusal::Tap(step, errno)) => Err(TapError::Refused {
            name: name.clone(),
            step,
            source: io::Error::from_raw_os_error(errno),
        }
        .into()),
        Err(Refusal::Unknown | Refusal::Disk(_)) => bail!("the steward knows no card `{}`", net.net.id),
    }
}

/// Opens the block device at this path, if it is the image of a disk of this host.
fn open_device(path: &Path, how: OpenImage) -> io::Result<File> {
    let Some((steward, id)) = STEWARD
        .get()
        .and_then(|steward| Some((steward, steward.disks.get(path)?)))
    else {
        return Err(io::ErrorKind::PermissionDenied.into());
    };
    match steward.open(Opening::disk(id.clone(), how)) {
        Ok(Ok(descriptor)) => Ok(descriptor.into()),
        Ok(Err(Refusal::Disk(errno))) => Err(io::Error::from_raw_os_error(errno)),
        Ok(Err(_)) => Err(io::ErrorKind::PermissionDenied.into()),
        Err(error) => Err(io::Error::other(format!("{error:#}"))),
    }
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
    let asked = steward.ask(request, left + LATE_MAX);
    match asked.map_err(|silence| silence.reason)? {
        Answer::Fenced(result) => result.map(said),
        Answer::Looked(_) | Answer::Told(_) => Err("the steward answers something else".into()),
    }
}

fn said(words: String) {
    tracing::info!("{words}");
}

/// What this side could not do in a takeover that the steward does for it, as a sentence.
pub fn trouble(config: &Config, host: &str) -> Option<String> {
    let steward = STEWARD.get();
    if steward.is_some_and(Steward::has_ended) {
        return Some(
            "the steward of this process, which opens TAPs and block devices and runs the fence, has ended: \
             restart this side"
                .into(),
        );
    }
    let shares_disk = config.disks.iter().any(|disk| disk.shared && !disk.read_only);
    let program = config.host(host).fence.first().filter(|_| shares_disk)?;
    let looked = match steward {
        None => side::executable(program).map(drop),
        // It runs a fence, or is slow: there is something to say only when there is an answer.
        Some(steward) => steward.look()?,
    };
    let why = looked.err()?;
    Some(format!(
        "the fence command `{program}` {why}: install it, or correct `fence`"
    ))
}

impl Steward {
    fn with(socket: UnixStream, openings: OwnedFd) -> io::Result<Self> {
        let sockets = [socket.try_clone()?.into(), openings.try_clone()?];
        let line = Line::new(socket);
        let openings = Openings {
            socket: openings,
            last: 0,
        };
        Ok(Self {
            line: Mutex::new(line),
            openings: Mutex::new(openings),
            sockets,
            disks: BTreeMap::new(),
        })
    }

    fn has_ended(&self) -> bool {
        let mut sockets = self
            .sockets
            .each_ref()
            .map(|socket| PollFd::new(socket, PollFlags::RDHUP));
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

    fn ask(&self, request: Request, limit: Duration) -> Result<Answer, Silence> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.ask(request, limit)
    }

    /// What was opened, or why it was not. The error: the steward does not answer.
    fn open(&self, what: Opening) -> anyhow::Result<Result<OwnedFd, Refusal>> {
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        openings.ask(what, OPEN_MAX).map_err(|error| {
            anyhow!("the steward, the process that opens TAPs and block devices, does not answer: {error}")
        })
    }
}

/// Counts what goes through.
struct Counted<'a> {
    socket: &'a UnixStream,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.socket.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl Line {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            last: 0,
            said: Vec::new(),
        }
    }

    fn ask(&mut self, request: Request, limit: Duration) -> Result<Answer, Silence> {
        let until = Instant::now() + limit;
        let silence = |was_sent: bool| {
            move |error: io::Error| Silence {
                reason: format!("the steward, the process that runs the fence, does not answer: {error}"),
                was_sent,
            }
        };
        self.send(request, limit).map_err(silence(false))?;
        self.wait(until).map_err(silence(true))
    }

    /// Sends it whole or not at all. Behind a part of one nothing could be read as what it is:
    /// then nothing more is sent.
    fn send(&mut self, request: Request, limit: Duration) -> io::Result<()> {
        self.last += 1;
        self.socket.set_write_timeout(Some(limit))?;
        let mut counted = Counted {
            socket: &self.socket,
            bytes: 0,
        };
        match send(&mut counted, &(self.last, request)) {
            Err(error) if counted.bytes > 0 => {
                self.socket.shutdown(Shutdown::Both)?;
                Err(io::Error::other(format!(
                    "a request was cut off ({error}), and nothing is asked of it any more"
                )))
            }
            sent => sent,
        }
    }

    /// Waits for the answer to the last request. Those to others come too late.
    fn wait(&mut self, until: Instant) -> io::Result<Answer> {
        loop {
            // Zero would mean no limit.
            let left = until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            let (number, mut answer): (u64, Answer) = receive(&mut &self.socket)?;
            if let Answer::Told(told) = &mut answer {
                told.said.splice(0..0, self.said.drain(..));
                told.said.truncate(SAID_MAX);
            }
            match answer {
                answer if number == self.last => return Ok(answer),
                Answer::Told(told) => self.said = told.said,
                _ => {}
            }
        }
    }
}

impl Openings {
    fn ask(&mut self, what: Opening, limit: Duration) -> io::Result<Result<OwnedFd, Refusal>> {
        // What came too late is closed: a TAP would be in use as long as it waits here.
        while receive_packet::<(u64, Result<(), Refusal>)>(&self.socket, RecvFlags::DONTWAIT).is_ok() {}
        self.last += 1;
        let until = Instant::now() + limit;
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, Some(limit))?;
        send_packet(&self.socket, &(self.last, what), None)?;
        loop {
            // Zero would mean no limit.
            let left = until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(left))?;
            let (answer, descriptor) = receive_packet(&self.socket, RecvFlags::empty())?;
            let (number, opened): (u64, Result<(), Refusal>) = answer;
            if number != self.last {
                continue;
            }
            return match (opened, descriptor) {
                (Ok(()), Some(descriptor)) => Ok(Ok(descriptor)),
                (Ok(()), None) => Err(io::Error::other("an answer without its descriptor")),
                (Err(refusal), _) => Ok(Err(refusal)),
            };
        }
    }
}
