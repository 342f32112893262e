//! An arbiter that is known by its names, and name service that dies. The last good addresses stay in use.

use anyhow::{Result, ensure};

use super::case::Case;
use super::etcd::{Flavour, NAME, SECOND_ADDRESS};
use super::setup::Setup;
use super::world::{TO_FILE, World};
use crate::demo::pair::Side::{A, B};

const NAMED: Setup = Setup::etcd(Flavour::Named);

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "names-dead-kill",
        "etcd#3428",
        "name service dies under a protected pair, the primary is killed: the secondary goes on",
        dead_kill,
    )
    .on(NAMED)
    .quick(),
    Case::new(
        "names-dead-secondary",
        "etcd#3428",
        "name service dies, the secondary is killed: the primary goes on alone",
        dead_secondary,
    )
    .on(NAMED),
    Case::new(
        "names-dead-switchover",
        "etcd#3428",
        "name service dies: the roles change there and back, and no process ends",
        dead_switchover,
    )
    .on(NAMED),
    Case::new(
        "names-one-unknown",
        "patroni#1931",
        "one of the three names of the arbiter is unknown when both start: they start, and a takeover \
         succeeds",
        one_unknown,
    )
    .on(Setup::etcd(Flavour::OneNameUnknown)),
    Case::new(
        "names-one-unknown-check",
        "patroni#1931",
        "one of the three names of the arbiter is unknown: `check` names it",
        one_unknown_check,
    )
    .on(Setup::etcd(Flavour::OneNameUnknown)),
    Case::new(
        "names-member-moved",
        "etcd#7576",
        "the arbiter gets another address under its name; later the primary is killed: the secondary goes on",
        member_moved,
    )
    .on(NAMED),
    Case::new(
        "names-dead-at-start",
        "patroni#1931",
        "the arbiter's name is known only after the secondary has started: the pair becomes ready",
        dead_at_start,
    )
    .on(NAMED),
];

fn names_die(world: &World) -> Result<()> {
    world.set_names("")
}

fn dead_kill(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    names_die(world)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn dead_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    names_die(world)?;
    world.kill(B)?;
    world.await_alone(A)?;
    world.await_vm(A, &clients)?;
    clients.finish()
}

fn dead_switchover(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    names_die(world)?;
    world.switchover(A, &clients)?;
    world.switchover(B, &clients)?;
    clients.finish()
}

fn one_unknown(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    world.revive(A)?;
    clients.finish()
}

fn one_unknown_check(world: &mut World) -> Result<()> {
    let (_, said) = world.kemari_check(B, TO_FILE)?;
    ensure!(
        said.contains("nowhere"),
        "`check` says nothing of the name:\n{said}"
    );
    Ok(())
}

fn member_moved(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.move_away()?;
    world.set_names(&format!("{SECOND_ADDRESS} {NAME}"))?;
    // It takes them a while to find it, and they say so; then all is as before.
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn dead_at_start(world: &mut World) -> Result<()> {
    world.start(A, "run", TO_FILE)?;
    world.await_service()?;
    names_die(world)?;
    world.secondary(B)?;
    std::thread::sleep(super::judge::KNOWN_AFTER);
    ensure!(
        world.is_running(B),
        "the secondary has ended instead of waiting for name service"
    );
    world.name_arbiter()?;
    world.await_ready(A)?;
    let clients = world.clients()?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}
