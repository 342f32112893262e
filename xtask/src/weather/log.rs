//! Logs and other files of the program's own that are full, closed, or read by nobody. Diagnostics never end,
//! block or slow a side.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::case::Case;
use super::terminal::Terminal;
use super::world::{TO_FILE, World, fill};
use crate::demo::pair::Side::{self, A, B};

/// A log on a small file system.
const TO_SMALL: &str = "exec \"$0\" \"$@\" >>{dir}/small/log 2>&1";
/// Size of a small file system in KiB.
const SMALL_KIB: u32 = 1024;
/// A primary whose log cannot be written is watched for so long.
const WATCHED: Duration = Duration::from_secs(2);

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "log-full-secondary",
        "tracing#3271, rust#82791",
        "the file system of the secondary's log is full, the primary is killed: the secondary goes on",
        log_full_secondary,
    )
    .quick(),
    Case::new(
        "log-full-primary",
        "rust#82791",
        "the file system of the primary's log is full, the secondary is killed: the primary goes on",
        log_full_primary,
    ),
    Case::new(
        "log-reader-gone-primary",
        "systemd#6620, nixpkgs#16096",
        "the reader of the primary's log is gone, the secondary is killed: the primary goes on",
        log_reader_gone_primary,
    )
    .quick(),
    Case::new(
        "log-reader-gone-secondary",
        "systemd#6620",
        "the reader of the secondary's log is gone, the primary is killed: the secondary goes on",
        log_reader_gone_secondary,
    ),
    Case::new(
        "log-reader-stopped-secondary",
        "moby#31540",
        "nobody reads the secondary's log, whose pipe is full; the primary is killed: the secondary goes on",
        log_reader_stopped_secondary,
    )
    .quick(),
    Case::new(
        "log-reader-stopped-primary",
        "moby#31540",
        "nobody reads the primary's log, whose pipe is full; the secondary is killed: the primary goes on",
        log_reader_stopped_primary,
    ),
    Case::new(
        "log-terminal-stopped",
        "containerd#12462",
        "Ctrl-S on the secondary's terminal, the primary is killed: the secondary goes on",
        log_terminal_stopped,
    ),
    Case::new(
        "log-terminal-gone",
        "nav#244",
        "the secondary's terminal is closed, the primary is killed: the secondary goes on",
        log_terminal_gone,
    ),
    Case::new(
        "log-closed",
        "rust#82791",
        "both have no standard error at all, the primary is killed: the secondary goes on",
        log_closed,
    ),
    Case::new(
        "state-full-secondary",
        "firebird#8048, leveldb#150",
        "the secondary's state directory is full, the primary is killed: the secondary goes on",
        state_full_secondary,
    ),
    Case::new(
        "state-full-from-the-start",
        "leveldb#150",
        "the secondary's state directory is full before it starts: it says so, or takes over",
        state_full_from_the_start,
    ),
    Case::new(
        "state-full-switchover",
        "firebird#8048",
        "the state directories of both are full: the roles change there and back",
        state_full_switchover,
    ),
    Case::new(
        "state-gone-secondary",
        "systemd#9408",
        "the secondary's state directory is removed, the primary is killed: the secondary goes on",
        state_gone_secondary,
    ),
    Case::new(
        "console-full",
        "leveldb#150",
        "the file system of the guest's console is full on both hosts: clients go on, and so does the \
         secondary",
        console_full,
    )
    .on(super::setup::Setup::PLAIN
        .with("[hosts.a]\nconsole = \"file:{dir}/small/a\"\n[hosts.b]\nconsole = \"file:{dir}/small/b\"")),
];

fn log_full_secondary(world: &mut World) -> Result<()> {
    world.mounts.small(&world.path("small"), SMALL_KIB)?;
    world.protect_as([TO_FILE, TO_SMALL])?;
    fill(&world.path("small"), &["log"])?;
    dies_and_goes_on(world, A)
}

fn log_full_primary(world: &mut World) -> Result<()> {
    world.mounts.small(&world.path("small"), SMALL_KIB)?;
    world.protect_as([TO_SMALL, TO_FILE])?;
    fill(&world.path("small"), &["log"])?;
    dies_and_goes_on(world, B)
}

/// A side is killed; the VM goes on at the other, its clients too.
fn dies_and_goes_on(world: &mut World, dies: Side) -> Result<()> {
    let clients = world.clients()?;
    world.kill(dies)?;
    world.await_vm(dies.other(), &clients)?;
    clients.work(WATCHED)?;
    ensure!(
        world.is_running(dies.other()),
        "the process on {} has ended",
        dies.other().name()
    );
    clients.finish()
}

/// A pipe for a log, and the script that writes to it. The program finds its end by the number in this
/// process.
fn pipe() -> Result<(PipeReader, PipeWriter, String)> {
    let (reader, writer) = std::io::pipe()?;
    let script = format!(
        "exec \"$0\" \"$@\" >/proc/{}/fd/{} 2>&1",
        std::process::id(),
        writer.as_raw_fd()
    );
    Ok((reader, writer, script))
}

/// Writes into a pipe until it takes no more.
fn stop_up(writer: &PipeWriter) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(writer)?;
    rustix::fs::fcntl_setfl(writer, flags | rustix::fs::OFlags::NONBLOCK)?;
    for bytes in [4096, 1] {
        let block = vec![b'\n'; bytes];
        while rustix::io::write(writer, &block).is_ok() {}
    }
    // The flag belongs to what is shared with nobody: the program has opened the pipe by its path.
    Ok(())
}

fn log_reader_gone_primary(world: &mut World) -> Result<()> {
    let (reader, writer, script) = pipe()?;
    world.protect_as([&script, TO_FILE])?;
    drop((reader, writer));
    dies_and_goes_on(world, B)
}

fn log_reader_gone_secondary(world: &mut World) -> Result<()> {
    let (reader, writer, script) = pipe()?;
    world.protect_as([TO_FILE, &script])?;
    drop((reader, writer));
    dies_and_goes_on(world, A)
}

fn log_reader_stopped_secondary(world: &mut World) -> Result<()> {
    let (_reader, writer, script) = pipe()?;
    world.protect_as([TO_FILE, &script])?;
    stop_up(&writer)?;
    dies_and_goes_on(world, A)
}

fn log_reader_stopped_primary(world: &mut World) -> Result<()> {
    let (_reader, writer, script) = pipe()?;
    world.protect_as([&script, TO_FILE])?;
    stop_up(&writer)?;
    dies_and_goes_on(world, B)
}

fn log_terminal_stopped(world: &mut World) -> Result<()> {
    let terminal = Terminal::open()?;
    world.protect_as([TO_FILE, &terminal.script()])?;
    terminal.stop()?;
    dies_and_goes_on(world, A)
}

fn log_terminal_gone(world: &mut World) -> Result<()> {
    let terminal = Terminal::open()?;
    world.protect_as([TO_FILE, &terminal.script()])?;
    drop(terminal);
    dies_and_goes_on(world, A)
}

fn log_closed(world: &mut World) -> Result<()> {
    let closed = "exec \"$0\" \"$@\" >&- 2>&-";
    world.protect_as([closed, closed])?;
    dies_and_goes_on(world, A)
}

fn state_full_secondary(world: &mut World) -> Result<()> {
    world.mounts.small(&world.path("b.state"), SMALL_KIB)?;
    world.protect()?;
    fill(&world.path("b.state"), &[])?;
    dies_and_goes_on(world, A)
}

fn state_full_from_the_start(world: &mut World) -> Result<()> {
    world.mounts.small(&world.path("b.state"), SMALL_KIB)?;
    fill(&world.path("b.state"), &[])?;
    let (is_well, said) = world.kemari_check(B, TO_FILE)?;
    let blames = |line: &str| line.contains("b.state") && line.to_lowercase().contains("space");
    if said.lines().any(blames) {
        ensure!(!is_well, "`check` finds everything well:\n{said}");
        return Ok(());
    }
    world.protect()?;
    dies_and_goes_on(world, A)
}

fn state_full_switchover(world: &mut World) -> Result<()> {
    for side in ["a.state", "b.state"] {
        world.mounts.small(&world.path(side), SMALL_KIB)?;
    }
    world.protect()?;
    for side in ["a.state", "b.state"] {
        fill(&world.path(side), &[])?;
    }
    let clients = world.clients()?;
    world.switchover(A, &clients)?;
    world.switchover(B, &clients)?;
    clients.finish()
}

fn state_gone_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    std::fs::remove_dir_all(world.path("b.state"))?;
    dies_and_goes_on(world, A)
}

fn console_full(world: &mut World) -> Result<()> {
    world.mounts.small(&world.path("small"), SMALL_KIB)?;
    world.protect()?;
    fill(&world.path("small"), &["a", "b"])?;
    // It boots again, which it prints.
    world.order(&["REBOOT"])?;
    world.await_service()?;
    dies_and_goes_on(world, A)
}
