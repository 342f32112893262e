//! The steward's process.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::stdio::stdin;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::protocol::{Answer, Orders, Request, now_ns, receive, send};
use crate::side;

/// The first argument of a program that is to be a steward.
pub const ARGUMENT: &str = "steward";

/// Serves the side at the other end of the standard input, until that is gone.
pub fn serve() -> ExitCode {
    // Those that are meant for the side come to its whole group. They are caught and not ignored, since a program that is
    // started would go on ignoring them.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    let Ok(socket) = rustix::io::dup(stdin()) else {
        return ExitCode::FAILURE;
    };
    let socket = UnixStream::from(socket);
    let Ok(orders) = receive::<Orders>(&mut &socket) else {
        return ExitCode::FAILURE;
    };
    while let Ok((number, request)) = receive::<(u64, Request)>(&mut &socket) {
        if send(&mut &socket, &(number, answer(&orders, request))).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

fn answer(orders: &Orders, request: Request) -> Answer {
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
    }
}
