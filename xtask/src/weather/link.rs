//! The link between the hosts, and fences: slow, hanging, not there. Exactly one host has the VM in the end.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Network;
use rustix::process::Signal;

use super::case::Case;
use super::setup::Setup;
use super::world::{World, shell};
use crate::demo::pair::Side::{self, A, B};
use crate::tools::output_of;

/// A pair whose large frames get lost is watched for so long.
const WATCHED: Duration = Duration::from_secs(20);
/// The longest time that clients may wait for an answer meanwhile, and the most terms that may be used.
const GAP_MAX: Duration = Duration::from_secs(4);
/// The same, if frames begin to get lost under a pair: a sync waits once for `progress_timeout_ms`,
/// which is 5 s.
const GAP_OF_ONE_SYNC_MAX: Duration = Duration::from_secs(5 + 2);
/// Terms of a pair that was made, and of its primary alone.
const TERM_ALONE: u64 = 3;
const TERMS_MAX: u64 = 8;
/// After the link is well again the pair may take so long: attempts that failed back off.
const PROTECTED_AGAIN_MAX: Duration = Duration::from_secs(90);
/// A loser that wakes is watched for so long.
const SILENCE_WATCHED: Duration = Duration::from_secs(3);

/// Kills the other's program as the usual fence does, after `before`.
macro_rules! fences {
    ($before:literal) => {
        concat!(
            "[hosts.a]\nfence_timeout_ms = 15000\nfence = [\"/bin/sh\", \"-c\", '''",
            $before,
            "; kill -KILL $(cat {dir}/b.pid); true''']\n",
            "[hosts.b]\nfence_timeout_ms = 15000\nfence = [\"/bin/sh\", \"-c\", '''",
            $before,
            "; kill -KILL $(cat {dir}/a.pid); true''']\n"
        )
    };
}

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "link-jumbo-frames",
        "ceph PR#15535, xcp#339",
        "hosts at MTU 9000 over a switch of 1500: clients are served all the time, few terms are used; \
         mended: protected",
        jumbo_frames,
    ),
    Case::new(
        "link-large-frames-lost",
        "xcp#339",
        "from one moment on frames of full size get lost between the hosts: clients go on within the limits",
        large_frames_lost,
    ),
    Case::new(
        "link-flaps",
        "ganeti#336",
        "the link goes down and up six times: one VM, and it is protected in the end",
        flaps,
    ),
    Case::new(
        "link-slow-fence",
        "report of an operator",
        "a plain partition, and fences take 5 s: exactly one VM in the end, and nothing is lost",
        partition_with_fences,
    )
    .on(Setup::SHARED.with(fences!("sleep 5"))),
    Case::new(
        "link-slow-fence-of-one",
        "report of an operator",
        "a plain partition, and one fence takes 5 s while the other is quick: exactly one VM in the end",
        partition_with_fences,
    )
    .on(Setup::SHARED.with(
        "[hosts.b]\nfence_timeout_ms = 15000\nfence = [\"/bin/sh\", \"-c\", '''sleep 5; kill -KILL $(cat \
         {dir}/a.pid); true''']",
    )),
    Case::new(
        "link-fence-slower-than-its-limit",
        "report of an operator",
        "a plain partition, and fences take longer than they may: they work in the end, exactly one VM",
        hanging_fences,
    )
    .on(Setup::SHARED.with(HANGING)),
    Case::new(
        "link-fence-not-executable",
        "systemd#9408",
        "the secondary's fence is no program: not ready is said; killed, mended: the VM goes on",
        fence_not_executable,
    )
    .on(Setup::SHARED.with(FENCE_FILE)),
    Case::new(
        "link-fence-missing",
        "systemd#9408",
        "the secondary's fence is removed: not ready is said; killed, mended: the VM goes on",
        fence_missing,
    )
    .on(Setup::SHARED.with(FENCE_FILE)),
    Case::new(
        "link-fence-fails",
        "incus#3556",
        "the secondary's fence fails for a while: the VM waits, and goes on when it works",
        fence_fails,
    )
    .on(Setup::SHARED.with(FENCE_FILE)),
    Case::new(
        "link-frozen-primary-wakes",
        "report of an operator",
        "the primary stands still, is deposed and wakes: its host sends not one frame to the guest's network",
        frozen_primary_wakes,
    ),
    Case::new(
        "link-partition-blind",
        "harvester#4280",
        "the link and the way of one host to the arbiter are cut: the other one has the VM",
        partition_blind,
    )
    .on(Setup::etcd(super::etcd::Flavour::Plain)),
];

const HANGING: &str = "[hosts.a]\nfence_timeout_ms = 1500\n\
    fence = [\"/bin/sh\", \"-c\", '''[ -e {dir}/works ] || sleep 600; kill -KILL $(cat {dir}/b.pid); \
    true''']\n[hosts.b]\nfence_timeout_ms = 1500\n\
    fence = [\"/bin/sh\", \"-c\", '''[ -e {dir}/works ] || sleep 600; kill -KILL $(cat {dir}/a.pid); \
    true''']\n";

const FENCE_FILE: &str = "[hosts.b]\nfence = [\"{dir}/fence\"]\n";

/// What the file of a fence says that works: a process that is gone already is as good as killed.
const FENCE_SCRIPT: &str = "#!/bin/sh\nkill -KILL $(cat \"$(dirname \"$0\")/a.pid\") 2>/dev/null\nexit 0\n";

fn write_fence(world: &World) -> Result<()> {
    let path = world.path("fence");
    fs::write(&path, FENCE_SCRIPT)?;
    shell(&format!("chmod 755 {}", path.display()))
}

fn jumbo_frames(world: &mut World) -> Result<()> {
    world.net.set_replication_mtu(9000)?;
    world.start(A, "run", super::world::TO_FILE)?;
    world.await_service()?;
    let clients = world.clients()?;
    world.secondary(B)?;
    let begin = Instant::now();
    while begin.elapsed() < WATCHED {
        clients.work(Duration::from_millis(500))?;
    }
    let term = world.status(A).context("A does not answer")?.term;
    ensure!(term <= TERMS_MAX, "{term} terms were used");
    world.await_not_ready(A, &["frame", "mtu", "bytes"])?;
    let mut seen = clients.stop()?;
    let gap = seen.longest_gap();
    ensure!(gap <= GAP_MAX, "a client waited {gap:?} for an answer");
    seen.judge()?;
    world.net.set_replication_mtu(1500)?;
    crate::tools::wait_for("protection", PROTECTED_AGAIN_MAX, || {
        Ok((world.check(A)? == super::judge::Said::Ready).then_some(()))
    })?;
    let clients = world.clients()?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn large_frames_lost(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.net.set_replication_mtu(1500)?;
    let ports = |mtu: u32| format!("link set h0-repl mtu {mtu}\nlink set h1-repl mtu {mtu}");
    world.net.outside().ip(&ports(600))?;
    clients.work(WATCHED)?;
    let mut seen = clients.stop()?;
    let gap = seen.longest_gap();
    ensure!(
        gap <= GAP_OF_ONE_SYNC_MAX,
        "a client waited {gap:?} for an answer"
    );
    seen.judge()?;
    let term = world.status(A).context("A does not answer")?.term;
    ensure!(term <= TERM_ALONE, "terms were used up: {term}");
    let clients = world.clients()?;
    world.net.outside().ip(&ports(1500))?;
    let runs = world.await_one_vm(&clients)?;
    if !world.is_running(runs.other()) {
        world.secondary(runs.other())?;
    }
    crate::tools::wait_for("protection", PROTECTED_AGAIN_MAX, || {
        Ok((world.check(runs)? == super::judge::Said::Ready).then_some(()))
    })?;
    clients.finish()
}

fn flaps(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    for n in 0..6u64 {
        world.ip(A, "link set replication down")?;
        std::thread::sleep(Duration::from_millis(100 + 200 * n));
        world.ip(A, "link set replication up")?;
        std::thread::sleep(Duration::from_millis(500));
    }
    let runs = world.await_one_vm(&clients)?;
    crate::tools::wait_for("protection", PROTECTED_AGAIN_MAX, || {
        Ok((world.check(runs)? == super::judge::Said::Ready).then_some(()))
    })?;
    world.kill(runs)?;
    world.await_vm(runs.other(), &clients)?;
    clients.finish()
}

fn partition_with_fences(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.net.cut(A.number(), Network::Replication)?;
    // Longer than the fences, and than any replacement of one that stalls.
    std::thread::sleep(Duration::from_secs(10));
    let runs = world.await_one_vm(&clients)?;
    world.net.join(A.number(), Network::Replication)?;
    // Nothing strikes late.
    clients.work(Duration::from_secs(6))?;
    ensure!(world.is_running(runs), "the one that had the VM was ended");
    clients.finish()
}

fn hanging_fences(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.net.cut(A.number(), Network::Replication)?;
    std::thread::sleep(Duration::from_secs(6));
    fs::write(world.path("works"), "")?;
    let runs = world.await_one_vm(&clients)?;
    clients.work(Duration::from_secs(3))?;
    ensure!(world.is_running(runs), "the one that had the VM was ended");
    clients.finish()
}

fn fence_not_executable(world: &mut World) -> Result<()> {
    write_fence(world)?;
    let path = world.path("fence");
    let off = format!("chmod 644 {}", path.display());
    fence_lost(world, &off)
}

fn fence_missing(world: &mut World) -> Result<()> {
    write_fence(world)?;
    let off = format!("rm {}", world.path("fence").display());
    fence_lost(world, &off)
}

fn fence_lost(world: &mut World, off: &str) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    shell(off)?;
    world.await_not_ready(A, &["fence"])?;
    world.await_not_ready(B, &["fence"])?;
    world.kill_and_tell(A, &clients, |world| write_fence(world))?;
    clients.finish()
}

fn fence_fails(world: &mut World) -> Result<()> {
    write_fence(world)?;
    world.protect()?;
    let clients = world.clients()?;
    fs::write(world.path("fence"), "#!/bin/sh\nexit 1\n")?;
    // That it will fail cannot be known before.
    world.end(A)?;
    std::thread::sleep(Duration::from_secs(4));
    ensure!(world.is_running(B), "B has ended for a fence that failed");
    ensure!(
        world.status(B).is_some_and(|status| !status.is_primary()),
        "B runs the VM although its fence failed"
    );
    write_fence(world)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn frozen_primary_wakes(world: &mut World) -> Result<()> {
    world.protect()?;
    // Nothing is under way when it stops: what was acknowledged before may leave after it wakes.
    world.clients()?.finish()?;
    std::thread::sleep(Duration::from_millis(500));
    world.owe(A);
    world.signal(A, Signal::STOP)?;
    await_primary(world, B)?;
    let clients = world.clients()?;
    let before = frames_from(world, A)?;
    world.signal(A, Signal::CONT)?;
    clients.work(SILENCE_WATCHED)?;
    let sent = frames_from(world, A)? - before;
    ensure!(
        sent == 0,
        "the host that woke up has sent {sent} frames to the guest's network"
    );
    world.await_vm(B, &clients)?;
    clients.finish()
}

/// Frames that a host has sent to the guests' network.
fn frames_from(world: &World, side: Side) -> Result<u64> {
    let mut command = world.net.outside().command("ip");
    let port = format!("h{}-guest", side.number());
    let json = output_of(command.args(["-json", "-statistics", "link", "show", "dev", &port]))?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    json[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .context("`ip` tells no number of frames")
}

/// Waits until a host says that it runs the VM, whatever the other one, that cannot know better, says.
fn await_primary(world: &World, side: Side) -> Result<()> {
    crate::tools::wait_for(
        "the VM on the other host",
        crate::proof::clients::PATIENCE,
        || Ok(world.status(side).filter(|status| status.is_primary()).map(drop)),
    )
}

fn partition_blind(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.net.cut(A.number(), Network::Control)?;
    world.net.cut(A.number(), Network::Replication)?;
    await_primary(world, B)?;
    clients.go_on()?;
    world.net.join(A.number(), Network::Control)?;
    world.net.join(A.number(), Network::Replication)?;
    world.await_vm(B, &clients)?;
    world.await_ready(B)?;
    clients.finish()
}
