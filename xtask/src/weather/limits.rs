//! Limits of the process and of its host: threads, files, memory, paths, and those who knock at its door.

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Descriptors, LittleMemory, TICKS_PER_S, Tasks, processor_ticks, replication_address};

use super::case::Case;
use super::judge::{KNOWN_AFTER, Said};
use super::world::{TO_FILE, World};
use crate::demo::pair::LINK_PORT;
use crate::demo::pair::Side::{self, A, B};
use crate::tools::output_of;

/// Connections that are tried by somebody who wants all files of a secondary.
const CONNECTIONS_MAX: usize = 20;
/// The process is watched at its limit for so long, ...
const WATCHED: Duration = Duration::from_secs(5);
/// ... uses at most so much of a processor, ...
const PROCESSOR_PERCENT_MAX: u64 = 50;
/// ... and logs at most so much.
const LOG_BYTES_MAX: u64 = 64 << 10;
/// A host has no threads for so long after the VM went on there.
const SHORTAGE: Duration = Duration::from_secs(2);
/// Connections that knock and say nothing right.
const KNOCKS: usize = 300;
/// Longest path of a socket, with its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "limit-threads-secondary",
        "influxdb#7333, systemd#7879",
        "no threads on the secondary's host, the primary is killed: the VM goes on with those that were made \
         beforehand",
        |world| no_threads(world, A),
    )
    .quick(),
    Case::new(
        "limit-threads-primary",
        "influxdb#7333, systemd#7879",
        "no threads on the primary's host, the secondary is killed: the primary goes on, and has some after \
         2 s",
        |world| no_threads(world, B),
    ),
    Case::new(
        "limit-files-secondary",
        "pg-status#32, nanomsg#152",
        "the secondary is at its limit of files, and is connected to: it costs little, and the log stays \
         short",
        files_at_limit,
    ),
    Case::new(
        "limit-files-takeover",
        "pg-status#32",
        "the secondary is at its limit of files, the primary is killed: what was said is true",
        files_takeover,
    ),
    Case::new(
        "limit-socket-path",
        "boxlite#1152",
        "paths of the control socket of 90 to 108 bytes: what `check` finds well starts",
        socket_path,
    ),
    Case::new(
        "limit-memory-of-group",
        "harvester#2419",
        "a control group with less memory than the guest: `check` says so",
        memory_of_group,
    ),
    Case::new(
        "limit-locked-memory",
        "varnish#4193",
        "the secondary may not lock memory: `check` says so",
        locked_memory,
    ),
    Case::new(
        "limit-file-size",
        "incus#1343",
        "`ulimit -f` is less than an image has: `check` says so",
        file_size,
    ),
    Case::new(
        "limit-refused-peers",
        "report of an operator",
        "a stranger connects and says rubbish, again and again: the log stays short, and a takeover succeeds",
        refused_peers,
    ),
    Case::new(
        "limit-stale-socket",
        "report of an operator",
        "a killed side has left its socket: nobody is said to be here, and the next one starts",
        stale_socket,
    ),
    Case::new(
        "limit-false-listener",
        "report of an operator",
        "somebody else listens where the peer should: `check` does not take that for the peer",
        false_listener,
    ),
];

/// `dies` is killed while the other gets no threads.
fn no_threads(world: &mut World, dies: Side) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let tasks = Tasks::of(world.pid(dies.other())?)?;
    tasks.allow_no_more()?;
    // Whoever runs the VM then has all that it needs.
    std::thread::sleep(KNOWN_AFTER);
    world.await_ready(A)?;
    if dies == A {
        let drill = output_of(&mut world.command(B, &["drill"]));
        ensure!(drill.is_err(), "the secondary's host has threads: {drill:?}");
    }
    world.kill(dies)?;
    world
        .await_vm(dies.other(), &clients)
        .context("without threads")?;
    clients.work(SHORTAGE)?;
    tasks.allow_all()?;
    clients.finish()
}

/// Lets the secondary on B have no more files than it has, and connects to it.
fn knock_at_limit(world: &mut World) -> Result<(Descriptors, Vec<TcpStream>)> {
    let descriptors = Descriptors::allow_no_more(world.pid(B)?)?;
    let address = (replication_address(B.number()), LINK_PORT);
    let host = world.net.host(A.number()).netns();
    let streams: Vec<TcpStream> = host.run(|| {
        let connect = || TcpStream::connect_timeout(&address.into(), Duration::from_secs(1));
        (0..CONNECTIONS_MAX).map_while(|_| connect().ok()).collect()
    })?;
    ensure!(!streams.is_empty(), "nobody could knock at the secondary");
    Ok((descriptors, streams))
}

fn files_at_limit(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let ((descriptors, knocking), pid) = (knock_at_limit(world)?, world.pid(B)?);
    let (ticks, bytes, begin) = (processor_ticks(pid)?, world.log(B).len(), Instant::now());
    clients.work(WATCHED)?;
    let percent = (processor_ticks(pid)? - ticks) * 100 * 1000
        / TICKS_PER_S
        / (begin.elapsed().as_millis() as u64).max(1);
    ensure!(
        percent <= PROCESSOR_PERCENT_MAX,
        "the secondary takes {percent} % of a processor"
    );
    let bytes = (world.log(B).len() - bytes) as u64;
    ensure!(bytes <= LOG_BYTES_MAX, "the secondary has logged {bytes} bytes");
    drop(knocking);
    descriptors.allow_all()?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn files_takeover(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let (descriptors, mut knocking) = knock_at_limit(world)?;
    std::thread::sleep(KNOWN_AFTER);
    world.kill_and_tell(A, &clients, |_| {
        knocking.clear();
        Ok(descriptors.allow_all()?)
    })?;
    clients.finish()
}

fn socket_path(world: &mut World) -> Result<()> {
    // The case's own directory has too long a path already.
    let base = world.socket(B).with_extension("d");
    fs::create_dir_all(&base)?;
    let mut started = Vec::new();
    for bytes in [
        90,
        99,
        100,
        101,
        102,
        103,
        104,
        105,
        106,
        SOCKET_PATH_BYTES_MAX,
        108,
    ] {
        let name = bytes.checked_sub(base.as_os_str().len() + 1);
        let name = name
            .filter(|name| *name > 0)
            .with_context(|| format!("{} is too long", base.display()))?;
        let socket = base.join("x".repeat(name));
        let overlay = format!("[hosts.b]\ncontrol = {socket:?}");
        world.configure(&overlay)?;
        let (is_well, said) = world.kemari_check(B, TO_FILE)?;
        world.secondary(B)?;
        std::thread::sleep(Duration::from_millis(700));
        let starts = world.is_running(B) && world.status(B).is_some();
        world.end(B)?;
        ensure!(
            starts == said_well_of_socket(is_well, &said),
            "a path of {bytes} bytes: it {}, and `check` says:\n{said}",
            if starts { "starts" } else { "does not start" }
        );
        started.push(starts);
    }
    ensure!(
        started.first() == Some(&true) && started.last() == Some(&false),
        "the shortest starts and the longest does not, but it was: {started:?}"
    );
    Ok(())
}

/// `check` may have found something else, as that nobody runs the VM yet.
fn said_well_of_socket(is_well: bool, said: &str) -> bool {
    let lower = said.to_lowercase();
    let blames = lower
        .lines()
        .any(|line| !line.starts_with("ok") && (line.contains("socket") || line.contains("xxx")));
    is_well || !blames
}

fn memory_of_group(world: &mut World) -> Result<()> {
    let group = LittleMemory::new(32 << 20)?;
    let script = format!("echo $$ >{} && {TO_FILE}", group.procs().display());
    must_be_found(world, A, &script, &["memory"])
}

fn locked_memory(world: &mut World) -> Result<()> {
    let script = format!(
        "ulimit -l 64 && {}",
        TO_FILE.replace(
            "exec",
            "exec setpriv --bounding-set -ipc_lock,-sys_resource --inh-caps -ipc_lock,-sys_resource"
        )
    );
    must_be_found(world, B, &script, &["lock"])
}

fn file_size(world: &mut World) -> Result<()> {
    // In units of 512 bytes: the image has 16 MiB.
    must_be_found(
        world,
        B,
        &format!("ulimit -f 2048 && {TO_FILE}"),
        &["size", "ulimit", "fsize"],
    )
}

/// `kemari check` under a limit finds it, and does not without.
fn must_be_found(world: &mut World, side: Side, script: &str, words: &[&str]) -> Result<()> {
    let blames = |said: &str| {
        said.to_lowercase()
            .lines()
            .filter(|line| !line.starts_with("ok") && !line.starts_with("warning"))
            .any(|line| words.iter().any(|word| line.contains(word)))
    };
    let (_, without) = world.kemari_check(side, TO_FILE)?;
    ensure!(!blames(&without), "it is blamed without reason:\n{without}");
    let (is_well, said) = world.kemari_check(side, script)?;
    ensure!(!is_well, "`check` finds everything well:\n{said}");
    ensure!(blames(&said), "none of {words:?} is blamed:\n{said}");
    Ok(())
}

fn refused_peers(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let bytes = world.log(B).len();
    let address = (replication_address(B.number()), LINK_PORT);
    let host = world.net.host(A.number()).netns().clone();
    let connected = host.run(|| {
        let mut connected = 0;
        for n in 0..KNOCKS {
            let Ok(mut stream) = TcpStream::connect_timeout(&address.into(), Duration::from_secs(1)) else {
                continue;
            };
            connected += 1;
            let rubbish: &[u8] = if n % 2 == 0 {
                b"GET / HTTP/1.0\r\n\r\n"
            } else {
                &[0xff; 64]
            };
            let _ = std::io::Write::write_all(&mut stream, rubbish);
            std::thread::sleep(Duration::from_millis(10));
        }
        connected
    })?;
    ensure!(
        connected >= KNOCKS / 2,
        "only {connected} strangers of {KNOCKS} came in"
    );
    let bytes = (world.log(B).len() - bytes) as u64;
    ensure!(bytes > 0, "no word of {connected} strangers");
    ensure!(
        bytes <= LOG_BYTES_MAX / 2,
        "{KNOCKS} strangers cost {bytes} bytes of log"
    );
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn stale_socket(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.kill(B)?;
    ensure!(
        world.check(B)? == Said::Nobody,
        "a socket that was left behind counts as a side: {:?}",
        world.check(B)?
    );
    world.revive(B)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn false_listener(world: &mut World) -> Result<()> {
    let address = (replication_address(B.number()), LINK_PORT);
    let listening = world
        .net
        .host(B.number())
        .netns()
        .run(|| std::net::TcpListener::bind(address))?;
    let _listener = listening.context("nobody could listen in place of B")?;
    let (_, said) = world.kemari_check(A, TO_FILE)?;
    let mut of_peer = said.lines().filter(|line| line.contains("`b`")).peekable();
    ensure!(of_peer.peek().is_some(), "no word of the peer:\n{said}");
    ensure!(
        of_peer.all(|line| !line.starts_with("ok")),
        "a stranger is taken for the peer:\n{said}"
    );
    Ok(())
}
