//! The guest's way out: TAPs, bridges, and what lies behind. On the secondary what is missing is said before
//! it is needed; on the primary it is noticed, and the VM goes where it has a way out.

use anyhow::{Context, Result, ensure};

use super::case::Case;
use super::judge::KNOWN_AFTER;
use super::world::World;
use crate::demo::pair::GUEST_MAC;
use crate::demo::pair::Side::{A, B};
use crate::proof::clients::Clients;

/// A TAP as hosts have them.
pub(crate) const MADE: &str =
    "tuntap add dev tap0 mode tap vnet_hdr\nlink set tap0 master br0\nlink set tap0 up";
/// A TAP of another kind: whoever opens it as the other kind is refused.
const MADE_WITH_QUEUES: &str =
    "tuntap add dev tap0 mode tap vnet_hdr multi_queue\nlink set tap0 master br0\nlink set tap0 up";
const DELETED: &str = "link del tap0";

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "tap-missing-secondary",
        "systemd#9408",
        "the secondary has no TAP: not ready is said; the primary is killed, the TAP is made: the VM goes on",
        |world| secondary_without(world, DELETED, MADE, &["tap0"]),
    )
    .quick(),
    Case::new(
        "tap-queues-secondary",
        "systemd#9408",
        "the secondary's TAP has several queues: not ready; killed, the TAP is made anew: the VM goes on",
        |world| {
            let other = format!("{DELETED}\n{MADE_WITH_QUEUES}");
            let anew = format!("{DELETED}\n{MADE}");
            secondary_without(world, &other, &anew, &["tap0"])
        },
    ),
    Case::new(
        "tap-unbridged-secondary",
        "ovs-issues#126",
        "the secondary's TAP is off its bridge: not ready; killed, mended: the VM goes on",
        |world| {
            secondary_without(
                world,
                "link set tap0 nomaster",
                "link set tap0 master br0",
                &["bridge", "tap0"],
            )
        },
    ),
    Case::new(
        "tap-down-secondary",
        "microvm.nix#247",
        "the secondary's TAP is down: what is said of it is true; killed, mended: the VM goes on",
        |world| truth_of_secondary(world, "link set tap0 down", "link set tap0 up"),
    ),
    Case::new(
        "tap-bridge-down-secondary",
        "microvm.nix#247",
        "the secondary's bridge is down: not ready; killed, mended: the VM goes on",
        |world| secondary_without(world, "link set br0 down", "link set br0 up", &["bridge", "br0"]),
    ),
    Case::new(
        "tap-no-way-out-secondary",
        "ovs-issues#126",
        "the secondary's bridge has lost its way to the network: not ready; killed, mended: the VM goes on",
        |world| {
            secondary_without(
                world,
                "link set guests nomaster",
                "link set guests master br0",
                &["uplink"],
            )
        },
    ),
    Case::new(
        "tap-address-of-guest-secondary",
        "zos PR#1653, hypeman PR#476",
        "the secondary's TAP has the guest's own address: not ready; killed, mended: the VM goes on",
        |world| {
            let same = format!("link set tap0 address {GUEST_MAC}");
            secondary_without(
                world,
                &same,
                "link set tap0 address 02:00:00:00:00:01",
                &["address"],
            )
        },
    ),
    Case::new(
        "tap-made-anew-secondary",
        "xcp#339",
        "the secondary's TAP is deleted and made anew: ready again, and a takeover succeeds",
        made_anew_secondary,
    ),
    Case::new(
        "tap-unbridged-primary",
        "ganeti#336",
        "the primary's TAP is pulled off its bridge: the VM goes to the secondary",
        |world| primary_without(world, "link set tap0 nomaster"),
    )
    .quick(),
    Case::new(
        "tap-down-primary",
        "ganeti#336",
        "the primary's TAP is taken down: the VM goes to the secondary, or the TAP is brought up again",
        |world| primary_without(world, "link set tap0 down"),
    ),
    Case::new(
        "tap-bridge-down-primary",
        "ganeti#336",
        "the primary's bridge goes down: the VM goes to the secondary",
        |world| primary_without(world, "link set br0 down"),
    ),
    Case::new(
        "tap-deleted-primary",
        "fc-nixos PR#1763",
        "the primary's TAP is deleted: the VM goes to the secondary",
        |world| primary_without(world, DELETED),
    ),
    Case::new(
        "tap-no-way-out-primary",
        "ganeti#336",
        "the primary's bridge has lost its way to the network: the VM goes to the secondary",
        |world| primary_without(world, "link set guests nomaster"),
    ),
    Case::new(
        "tap-made-anew-primary",
        "fc-nixos PR#1763",
        "the primary's TAP is deleted and made anew at once: the VM is reachable, wherever it runs",
        |world| {
            let anew = format!("{DELETED}\n{MADE}");
            primary_without(world, &anew)
        },
    ),
    Case::new(
        "tap-made-anew-alone",
        "fc-nixos PR#1763",
        "the TAP of a VM without a secondary is deleted and made anew: it is attached again",
        made_anew_alone,
    ),
    Case::new(
        "tap-unbridged-both",
        "ganeti#336",
        "the TAPs of both are off their bridges: the VM stays, not ready is said; mended: clients go on",
        unbridged_both,
    ),
];

/// The secondary loses something, says so and why, the primary dies, what was lost comes back.
fn secondary_without(world: &mut World, lost: &str, mended: &str, words: &[&str]) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.ip(B, lost)?;
    for side in [A, B] {
        world.await_not_ready(side, words)?;
    }
    clients
        .go_on()
        .context("the guest needs nothing of what was lost")?;
    world.kill_and_tell(A, &clients, |world| world.ip(B, mended))?;
    world.revive(A)?;
    clients.finish()
}

/// The secondary loses something that it may be able to bring back by itself.
fn truth_of_secondary(world: &mut World, lost: &str, mended: &str) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.ip(B, lost)?;
    std::thread::sleep(KNOWN_AFTER);
    world.kill_and_tell(A, &clients, |world| world.ip(B, mended))?;
    clients.finish()
}

fn made_anew_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.ip(B, DELETED)?;
    world.await_not_ready(A, &["tap0"])?;
    world.ip(B, MADE)?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

/// The primary loses its way out: where the secondary has one, clients notice no more than a pause.
fn primary_without(world: &mut World, lost: &str) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.ip(A, lost)?;
    let runs = answered(world, &clients)?;
    ensure!(world.is_running(runs.other()), "the other's process has ended");
    clients.finish()
}

/// Clients are answered, by whichever host; that one alone has the VM.
fn answered(world: &mut World, clients: &Clients) -> Result<crate::demo::pair::Side> {
    // What was on its way before is no answer.
    std::thread::sleep(std::time::Duration::from_millis(500));
    clients.go_on()?;
    world.await_one_vm(clients)
}

fn made_anew_alone(world: &mut World) -> Result<()> {
    world.start(A, "run", super::world::TO_FILE)?;
    world.await_service()?;
    let clients = world.clients()?;
    world.ip(A, DELETED)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    world.ip(A, MADE)?;
    answered(world, &clients)?;
    clients.finish()
}

fn unbridged_both(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    for side in [B, A] {
        world.ip(side, "link set tap0 nomaster")?;
    }
    world.await_not_ready(A, &["bridge", "tap0"])?;
    std::thread::sleep(KNOWN_AFTER);
    for side in [A, B] {
        world.ip(side, "link set tap0 master br0")?;
    }
    let runs = answered(world, &clients)?;
    world.await_ready(runs)?;
    clients.finish()
}
