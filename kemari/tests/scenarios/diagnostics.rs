//! Where a side's words go to, its threads and its descriptors are no part of the VM: none of them ends it.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Descriptors, Tasks, processor_ticks, replication_address};
use rustix::pipe::pipe;
use rustix::process::Signal;

use crate::support::{Host, LINK_PORT, Plan, play};

/// A pipe that is full: the end that is written to, and the one that nobody reads.
fn stuck_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    let mut file = File::from(writer);
    while file.write(&[b'x'; 4096]).is_ok() {}
    let writer = OwnedFd::from(file);
    rustix::io::ioctl_fionbio(&writer, false)?;
    Ok((writer, reader))
}

/// The primary dies while the secondary's log is `log`.
fn take_over_with_log(log: impl FnOnce() -> Result<(OwnedFd, Option<OwnedFd>)>) {
    play(&Plan::default(), |scene| {
        let (log, _kept) = log()?;
        scene.run(Host::A)?;
        scene.start_logging_to(Host::B, &["secondary"], log)?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_log_that_nobody_reads_keeps_no_secondary_from_taking_over() {
    take_over_with_log(|| stuck_pipe().map(|(writer, reader)| (writer, Some(reader))));
}

#[test]
fn a_log_on_a_full_disk_keeps_no_secondary_from_taking_over() {
    take_over_with_log(|| Ok((File::options().write(true).open("/dev/full")?.into(), None)));
}

#[test]
fn a_log_whose_reader_is_gone_ends_no_primary() {
    play(&Plan::default(), |scene| {
        let (reader, writer) = pipe()?;
        scene.start_logging_to(Host::A, &["run"], writer)?;
        scene.secondary(Host::B)?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        drop(reader);
        let clients = scene.clients()?;
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        clients.go_on()?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

#[test]
fn a_log_that_nobody_reads_keeps_no_process_from_ending() {
    play(&Plan::default(), |scene| {
        let (log, _reader) = stuck_pipe()?;
        scene.start_logging_to(Host::B, &["secondary"], log)?;
        scene.await_status("waiting", Host::B, |status| status.waiting_because.is_some())?;
        scene.signal(Host::B, Signal::TERM)?;
        scene.await_clean_end(Host::B)
    });
}

/// A terminal says that it has hung up, and its shell says so again.
#[test]
fn a_primary_whose_terminal_hangs_up_switches_over() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.signal(Host::A, Signal::HUP)?;
        scene.signal(Host::A, Signal::HUP)?;
        scene.await_clean_end(Host::A)?;
        let status = scene.await_alone(Host::B)?;
        let is_planned = |takeover: kemari::control::Takeover| takeover.planned_pause_ms.is_some();
        ensure!(
            status.takeover.is_some_and(is_planned),
            "the VM came by something else than a switchover"
        );
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn signals_that_announce_an_error_do_nothing() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        for host in Host::BOTH {
            for signal in [Signal::XFSZ, Signal::PIPE, Signal::TTIN, Signal::TTOU] {
                scene.signal(host, signal)?;
            }
        }
        clients.work(Duration::from_millis(300))?;
        for host in Host::BOTH {
            ensure!(scene.is_running(host), "the process on {} has ended", host.name());
        }
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

/// How long a host has no threads left: long enough for all that a side begins several times a second.
const SHORTAGE: Duration = Duration::from_secs(2);

#[test]
fn a_primary_without_threads_goes_on_alone_and_takes_a_secondary_when_there_are_some() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let tasks = Tasks::of(scene.pid(Host::A)?)?;
        tasks.allow_no_more()?;
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        clients.work(SHORTAGE)?;
        clients.go_on()?;
        tasks.allow_all()?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

#[test]
fn a_secondary_without_threads_takes_over_with_those_of_its_reserve() {
    let plan = Plan {
        disk_keys: "rate = { operations_per_s = 100000 }\n",
        net_keys: "rate = { operations_per_s = 100000 }\n",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let tasks = Tasks::of(scene.pid(Host::B)?)?;
        tasks.allow_no_more()?;
        scene.take_over_from(Host::A, &clients)?;
        clients.work(SHORTAGE)?;
        tasks.allow_all()?;
        clients.finish()
    });
}

/// What a side may use of a processor in a second while it can take nobody, in ticks of 10 ms, and write to
/// its log, in bytes. Its heartbeats and looks at the host are among it.
const TICKS_MAX: u64 = 40;
const LOG_BYTES_MAX: usize = 4096;

#[test]
fn a_secondary_at_its_limit_of_files_waits_quietly_and_takes_over_when_there_is_room() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let pid = scene.pid(Host::B)?;
        let descriptors = Descriptors::allow_no_more(pid)?;
        let netns = scene.net.host(Host::A.number()).netns().clone();
        let address: SocketAddr = (replication_address(Host::B.number()), LINK_PORT).into();
        let _stranger = netns.run(|| TcpStream::connect(address))??;
        let _client = UnixStream::connect(scene.socket(Host::B))?;
        let (ticks, log) = (processor_ticks(pid)?, scene.log(Host::B).len());
        thread::sleep(Duration::from_secs(1));
        let (ticks, log) = (processor_ticks(pid)? - ticks, scene.log(Host::B).len() - log);
        ensure!(
            ticks <= TICKS_MAX && log <= LOG_BYTES_MAX,
            "it used {ticks} ticks and wrote {log} bytes"
        );
        descriptors.allow_all()?;
        let clients = scene.clients()?;
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_control_socket_that_is_cleaned_away_is_made_again() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("waiting", Host::B, |status| status.waiting_because.is_some())?;
        fs::remove_file(scene.socket(Host::B))?;
        ensure!(scene.status(Host::B).is_none(), "somebody answers");
        scene.await_status("an answer", Host::B, |_| true)?;
        scene.await_log(Host::B, "is made again")
    });
}

/// Strangers that come one after the other, and the lines about them that may be logged: some at once, then
/// few.
const STRANGERS: usize = 400;
const LINES_MAX: usize = 150;

#[test]
fn strangers_do_not_fill_the_log() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("waiting", Host::B, |status| status.waiting_because.is_some())?;
        let netns = scene.net.host(Host::A.number()).netns().clone();
        let address: SocketAddr = (replication_address(Host::B.number()), LINK_PORT).into();
        for _ in 0..STRANGERS {
            let mut stranger = netns.run(|| TcpStream::connect(address))??;
            // It may be refused before all of it is sent.
            let _ = stranger.write_all(&[7; 64]);
        }
        scene.await_log(Host::B, "comes too often")?;
        let log = scene.log(Host::B);
        let lines = log.lines().filter(|line| line.contains("was refused")).count();
        ensure!(
            (50..LINES_MAX).contains(&lines),
            "{lines} lines about {STRANGERS} strangers"
        );
        Ok(())
    });
}
