//! The steward's process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::disk::OpenImage;
use kemari_vmm::virtio::tap::{self, TapError};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::RecvFlags;
use rustix::stdio::{dup2_stdin, dup2_stdout, stdin, stdout};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::hooks::Runner;
use super::protocol::{
    Answer, Image, Opening, Orders, Refusal, Request, now_ns, receive, receive_packet, send, send_packet,
};
use crate::{sandbox, side};

/// The first argument of a program that is to be a steward.
pub const ARGUMENT: &str = "steward";

/// The last of the standard descriptors.
const STANDARD_MAX: i32 = 2;

/// Serves the side at the other ends of the standard input and output, until that is gone.
pub fn serve() -> ExitCode {
    // Those that are meant for the side come to its whole group. They are caught and not ignored, since a
    // program that is started would go on ignoring them.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A fence may take long, and what is to be opened meanwhile does not wait for it: each has a thread.
fn begin() -> io::Result<()> {
    let (socket, openings) = sockets()?;
    let orders: Arc<Orders> = Arc::new(receive(&mut &socket)?);
    if orders.fences.values().all(Vec::is_empty) && orders.hooks.is_none() {
        let devices = orders.disks.values();
        sandbox::keep_only_what_opens(devices.map(|image| (image.path.as_path(), image.read_only)))?;
    }
    let its = orders.clone();
    let opener = thread::Builder::new().name("opener".into());
    let opener = opener.spawn(move || open_for(openings, &its))?;
    let mut runner = Runner::start(orders.hooks.as_ref())?;
    while let Ok((number, request)) = receive::<(u64, Request)>(&mut &socket) {
        if send(&mut &socket, &(number, answer(&orders, &mut runner, request))).is_err() {
            break;
        }
    }
    // The side is gone, and with it the other ends of both; or it has sent what is no request, and sees by
    // this that nobody serves it any more.
    drop(socket);
    runner.finish();
    opener
        .join()
        .map_err(|_| io::Error::other("the opener has panicked"))
}

/// Standard input and output, each held once, so that its other end sees the end of whoever reads it, and by
/// no program that is started.
fn sockets() -> io::Result<(UnixStream, OwnedFd)> {
    let held = |descriptor| fcntl_dupfd_cloexec(descriptor, STANDARD_MAX + 1);
    let (socket, openings) = (held(stdin())?, held(stdout())?);
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    Ok((socket.into(), openings))
}

/// Does what is asked.
pub(super) fn answer(orders: &Orders, runner: &mut Runner, request: Request) -> Answer {
    match request {
        Request::Fence { peer, until_ns } => Answer::Fenced(match orders.fences.get(&peer) {
            Some(command) => {
                let left = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
                side::fence(command, Instant::now() + left)
            }
            None => Err(format!("there is no host `{peer}` in the configuration")),
        }),
        Request::Look => {
            let program = orders.fences.values().find_map(|command| command.first());
            Answer::Looked(program.map_or(Ok(()), |program| side::executable(program).map(drop)))
        }
        Request::Alarm(alarm) => {
            runner.raise(&alarm);
            Answer::Told(runner.told())
        }
        Request::Hooks => {
            runner.note_life();
            Answer::Told(runner.told())
        }
    }
}

/// Opens what is asked for, until the other end of the socket is gone or what it sends is no request.
pub(super) fn open_for(socket: OwnedFd, orders: &Orders) {
    while let Ok(((number, opening), _)) = receive_packet::<(u64, Opening)>(&socket, RecvFlags::empty()) {
        let opened = open(orders, &opening);
        let (descriptor, answer) = match &opened {
            Ok(file) => (Some(file.as_fd()), Ok(())),
            Err(refusal) => (None, Err(refusal)),
        };
        if send_packet(&socket, &(number, answer), descriptor).is_err() {
            return;
        }
        // This end's copy is closed before the next request is read: what was opened is the side's alone.
    }
}

/// Opens what the orders name.
pub(super) fn open(orders: &Orders, opening: &Opening) -> Result<File, Refusal> {
    match opening {
        Opening::Tap(card) => {
            let name = orders.taps.get(card).ok_or(Refusal::Unknown)?;
            tap::attach(name).map_err(|error| match error {
                TapError::Missing(_) | TapError::Name(_) => Refusal::NoTap,
                TapError::Refused { step, source, .. } => {
                    Refusal::Tap(step, source.raw_os_error().unwrap_or(libc::EIO))
                }
            })
        }
        Opening::Disk {
            id,
            write,
            direct,
            exclusive,
        } => {
            let image = orders.disks.get(id).ok_or(Refusal::Unknown)?;
            let how = OpenImage {
                write: *write,
                direct: *direct,
                exclusive: *exclusive,
            };
            open_device(image, how).map_err(|error| Refusal::Disk(error.raw_os_error().unwrap_or(libc::EIO)))
        }
    }
}

/// Files are the side's own affair: only a block device is opened for it.
fn open_device(image: &Image, how: OpenImage) -> io::Result<File> {
    let errno = io::Error::from_raw_os_error;
    if how.write && image.read_only {
        return Err(errno(libc::EROFS));
    }
    if !fs::metadata(&image.path)?.file_type().is_block_device() {
        return Err(errno(libc::ENOTBLK));
    }
    let file = how.by_itself(&image.path)?;
    // It may have been replaced meanwhile.
    match file.metadata()?.file_type().is_block_device() {
        true => Ok(file),
        false => Err(errno(libc::ENOTBLK)),
    }
}
