//! Limits of the process and of its host: threads, files, memory, paths, and those who knock at its door.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::replication_address;

use super::case::Case;
use super::judge::{KNOWN_AFTER, Said};
use super::world::{TO_FILE, World, shell};
use crate::demo::pair::LINK_PORT;
use crate::demo::pair::Side::{self, A, B};

/// Connections that are tried by somebody who wants all files of a secondary.
const CONNECTIONS_MAX: usize = 20;
/// The process is watched at its limit for so long, ...
const WATCHED: Duration = Duration::from_secs(5);
/// ... uses at most so much of a processor, ...
const PROCESSOR_PERCENT_MAX: u64 = 50;
/// ... and logs at most so much.
const LOG_BYTES_MAX: u64 = 64 << 10;
/// Clock ticks of /proc in a second.
const TICKS_PER_S: u64 = 100;
/// Connections that knock and say nothing right.
const KNOCKS: usize = 300;
/// Longest path of a socket, with its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The cases.
pub const CASES: &[Case] = &[
    Case::new(
        "limit-threads-secondary",
        "influxdb#7333, systemd#7879",
        "no threads for 2 s on the secondary's host, the primary is killed meanwhile: the secondary goes on",
        |world| no_threads(world, A),
    )
    .quick(),
    Case::new(
        "limit-threads-primary",
        "influxdb#7333, systemd#7879",
        "no threads for 2 s on the primary's host, the secondary is killed meanwhile: the primary goes on",
        |world| no_threads(world, B),
    ),
    Case::new(
        "limit-files-secondary",
        "pg-status#32, nanomsg#152",
        "the secondary is at its limit of files, and is connected to: it costs little, and the log stays short",
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

/// A control group (version 1) of its own, with a limit; it ends with the value.
struct Group {
    directory: PathBuf,
}

impl Group {
    fn new(controller: &str, name: &str) -> Result<Self> {
        let parent = PathBuf::from("/sys/fs/cgroup").join(controller);
        let directory = parent.join(format!("kemari-weather-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make the control group {}", directory.display()))?;
        Ok(Self { directory })
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    fn number(&self, file: &str) -> Result<u64> {
        Ok(fs::read_to_string(self.directory.join(file))?.trim().parse()?)
    }

    /// A script that starts a program inside it.
    fn script(&self) -> String {
        format!("echo $$ >{}/cgroup.procs && {TO_FILE}", self.directory.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let procs = self.directory.join("cgroup.procs");
        for pid in fs::read_to_string(procs).unwrap_or_default().lines() {
            let parent = self.directory.parent().unwrap_or(&self.directory);
            let _ = fs::write(parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// `dies` is killed while the other gets no threads.
fn no_threads(world: &mut World, dies: Side) -> Result<()> {
    let group = Group::new("pids", "threads")?;
    let script = group.script();
    let scripts = match dies {
        A => [TO_FILE, script.as_str()],
        B => [script.as_str(), TO_FILE],
    };
    world.protect_as(scripts)?;
    let clients = world.clients()?;
    group.set("pids.max", &group.number("pids.current")?.to_string())?;
    std::thread::sleep(Duration::from_millis(200));
    world.kill(dies)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(
        world.is_running(dies.other()),
        "the process on {} has ended for want of a thread",
        dies.other().name()
    );
    group.set("pids.max", "max")?;
    world.await_vm(dies.other(), &clients)?;
    clients.finish()
}

/// Lets the secondary on B have no more files than it has, and connects to it.
fn knock_at_limit(world: &mut World) -> Result<Vec<TcpStream>> {
    let pid = world.pid(B)?;
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    shell(&format!("prlimit --pid {pid} --nofile={files}:"))?;
    let address = (replication_address(B.number()), LINK_PORT);
    let host = world.net.host(A.number()).netns();
    let streams = host.run(|| {
        let connect = || TcpStream::connect_timeout(&address.into(), Duration::from_secs(1));
        (0..CONNECTIONS_MAX).map_while(|_| connect().ok()).collect()
    })?;
    Ok(streams)
}

/// Ends the shortage of files.
fn raise_limit(pid: u32) -> Result<()> {
    shell(&format!("prlimit --pid {pid} --nofile=1024:"))
}

fn files_at_limit(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let (knocking, pid) = (knock_at_limit(world)?, world.pid(B)?);
    let (ticks, bytes, begin) = (ticks_of(pid)?, world.log(B).len(), Instant::now());
    clients.work(WATCHED)?;
    let percent =
        (ticks_of(pid)? - ticks) * 100 * 1000 / TICKS_PER_S / (begin.elapsed().as_millis() as u64).max(1);
    ensure!(
        percent <= PROCESSOR_PERCENT_MAX,
        "the secondary takes {percent} % of a processor"
    );
    let bytes = (world.log(B).len() - bytes) as u64;
    ensure!(bytes <= LOG_BYTES_MAX, "the secondary has logged {bytes} bytes");
    drop(knocking);
    raise_limit(pid)?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

/// Time that a process has had of the processors, in ticks.
fn ticks_of(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = text.rsplit(") ").next().context("a process has a name")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let number = |n: usize| -> Result<u64> { Ok(fields.get(n).context("too few fields")?.parse()?) };
    // User and system time are the 14th and the 15th field; the 3rd comes first here.
    Ok(number(11)? + number(12)?)
}

fn files_takeover(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let mut knocking = knock_at_limit(world)?;
    std::thread::sleep(KNOWN_AFTER);
    world.kill_and_tell(A, &clients, |world| {
        knocking.clear();
        raise_limit(world.pid(B)?)
    })?;
    clients.finish()
}

fn socket_path(world: &mut World) -> Result<()> {
    let base = world.path("s");
    fs::create_dir_all(&base)?;
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
        let Some(name) = bytes.checked_sub(base.as_os_str().len() + 1) else {
            continue;
        };
        if name == 0 {
            continue;
        }
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
    }
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
    let group = Group::new("memory", "memory")?;
    group.set("memory.limit_in_bytes", "33554432")?;
    must_be_found(world, A, &group.script(), &["memory"])
}

fn locked_memory(world: &mut World) -> Result<()> {
    let script = format!(
        "ulimit -l 64 && {}",
        TO_FILE.replace(
            "exec",
            "exec setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock"
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
            .any(|line| !line.starts_with("ok") && words.iter().any(|word| line.contains(word)))
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
    host.run(|| {
        for n in 0..KNOCKS {
            let Ok(mut stream) = TcpStream::connect_timeout(&address.into(), Duration::from_secs(1)) else {
                continue;
            };
            let rubbish: &[u8] = if n % 2 == 0 {
                b"GET / HTTP/1.0\r\n\r\n"
            } else {
                &[0xff; 64]
            };
            let _ = std::io::Write::write_all(&mut stream, rubbish);
            std::thread::sleep(Duration::from_millis(10));
        }
    })?;
    let bytes = (world.log(B).len() - bytes) as u64;
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
    let lower = said.to_lowercase();
    let taken = lower
        .lines()
        .any(|line| line.starts_with("ok") && line.contains("peer"));
    ensure!(!taken, "a stranger is taken for the peer:\n{said}");
    Ok(())
}
