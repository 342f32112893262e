//! The arbiter: silent, wiped, full, with other certificates, users, or none at all. It is watched while all
//! is well.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::case::Case;
use super::etcd::Flavour;
use super::judge::KNOWN_AFTER;
use super::setup::{Arbiter, Setup};
use super::world::{World, fill, make_room};
use crate::demo::pair::Side::{A, B};
use crate::proof::clients::Clients;
use crate::proof::clients::PATIENCE;
use crate::tools::{output_of, wait_for};

const PLAIN: Setup = Setup::etcd(Flavour::Plain);
/// A pair is watched for so long.
const WATCHED: Duration = Duration::from_secs(2);

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "arbiter-away",
        "patroni#1931",
        "etcd is killed under a pair that is well: clients go on, doubt is said; it is back: ready is said",
        away,
    )
    .on(PLAIN),
    Case::new(
        "arbiter-away-told-to-end",
        "patroni#1195, a word of the operator",
        "etcd is away, A is told to switch over and to go on alone, before that is said and after it, and \
         both to end: refused, and clients go on; it is back: the roles change",
        away_told_to_end,
    )
    .on(PLAIN),
    Case::new(
        "arbiter-frozen",
        "etcd#12093",
        "etcd stands still with its connections open: doubt is said; the primary dies, it goes on: the VM \
         goes on",
        frozen,
    )
    .on(PLAIN),
    Case::new(
        "arbiter-wiped",
        "etcd#12093",
        "etcd has lost all it knew: it is said, and after `kemari adopt-record` a takeover succeeds",
        wiped,
    )
    .on(PLAIN),
    Case::new(
        "arbiter-restarted",
        "etcd#7576",
        "etcd is killed and started with its data: later the primary is killed, and the secondary goes on",
        restarted,
    )
    .on(PLAIN),
    Case::new(
        "arbiter-no-space",
        "etcd#8207, etcd#16337",
        "etcd's alarm of no space: it is said while all is well; disarmed, a takeover succeeds",
        no_space,
    )
    .on(PLAIN),
    Case::new(
        "arbiter-certificates-renewed",
        "etcd#7576, kubeadm#1651",
        "all certificates are renewed on disk, the old ones end; the primary is killed: the secondary goes \
         on",
        certificates_renewed,
    )
    .on(Setup::etcd(Flavour::ClientCertificate)),
    Case::new(
        "arbiter-roles-changed-kill",
        "etcd#13300, jetcd#1344",
        "an administrator adds a role: every token is of an old revision; the primary is killed: the \
         secondary goes on",
        roles_changed_kill,
    )
    .on(Setup::etcd(Flavour::Users)),
    Case::new(
        "arbiter-roles-changed-secondary",
        "patroni PR#2911",
        "an administrator adds a role; the secondary is killed: the primary goes on",
        roles_changed_secondary,
    )
    .on(Setup::etcd(Flavour::Users)),
    Case::new(
        "arbiter-file-full",
        "etcd#8207",
        "the storage of a file arbiter is full: it is said while all is well; room is made, a takeover \
         succeeds",
        file_full,
    ),
    Case::new(
        "arbiter-file-away",
        "etcd#12093",
        "the storage of a file arbiter is not mounted: doubt is said; it is back, a takeover succeeds",
        file_away,
    ),
    Case::new(
        "arbiter-none-kill",
        "a word of the operator",
        "no arbiter: the primary is killed, the secondary goes on, and back",
        none_kill,
    )
    .on(NONE),
    Case::new(
        "arbiter-none-secondary",
        "a word of the operator",
        "no arbiter: the secondary is killed, the primary goes on and takes it back",
        none_secondary,
    )
    .on(NONE),
    Case::new(
        "arbiter-none-restart",
        "a word of the operator",
        "no arbiter: the VM is stopped cleanly, and starts again",
        none_restart,
    )
    .on(NONE),
];

const NONE: Setup = Setup {
    arbiter: Arbiter::None,
    ..Setup::PLAIN
};

fn away(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.kill()?;
    for side in [A, B] {
        await_doubt(world, side)?;
    }
    clients.work(WATCHED)?;
    world.etcd()?.launch()?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn away_told_to_end(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.await_ready(A)?;
    world.etcd()?.kill()?;
    // Before anybody has noticed.
    refuses_orders(world, &clients)?;
    for side in [A, B] {
        await_doubt(world, side)?;
    }
    refuses_orders(world, &clients)?;
    for side in [B, A] {
        world.signal(side, Signal::TERM)?;
        clients.work(WATCHED)?;
        ensure!(world.is_running(side), "{} has ended", side.name());
    }
    world.etcd()?.launch()?;
    world.await_ready(A)?;
    world.owe(A);
    world.signal(A, Signal::TERM)?;
    world.await_vm(B, &clients)?;
    world.await_end(A)?;
    clients.finish()
}

/// A does not let its secondary go.
fn refuses_orders(world: &mut World, clients: &Clients) -> Result<()> {
    for order in ["switchover", "unprotect"] {
        let told = output_of(&mut world.command(A, &[order]));
        ensure!(told.is_err(), "{order}: {told:?}");
        clients.go_on()?;
    }
    Ok(())
}

/// Waits until a side says that the arbiter keeps it from being ready, or leaves that in doubt.
fn await_doubt(world: &mut World, side: crate::demo::pair::Side) -> Result<()> {
    world.await_not_ready(side, &["arbiter", "etcd"])
}

fn frozen(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.set_running(false)?;
    await_doubt(world, B)?;
    world.end(A)?;
    std::thread::sleep(KNOWN_AFTER);
    ensure!(
        world.status(B).is_some_and(|status| !status.is_primary()),
        "B goes on without the arbiter's word"
    );
    world.etcd()?.set_running(true)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn wiped(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.wipe()?;
    for side in [A, B] {
        world.await_not_ready(side, &["record"])?;
    }
    clients.work(WATCHED)?;
    output_of(&mut world.command(A, &["adopt-record"]))?;
    world.await_ready(A)?;
    clients.go_on()?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn restarted(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.kill()?;
    world.etcd()?.launch()?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn no_space(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.set_no_space(true)?;
    for side in [A, B] {
        world.await_not_ready(side, &["space"])?;
    }
    clients.go_on()?;
    world.etcd()?.set_no_space(false)?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn certificates_renewed(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.renew_certificates()?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn roles_changed_kill(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.change_roles("auditor")?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    world.etcd()?.change_roles("gardener")?;
    world.revive(A)?;
    clients.finish()
}

fn roles_changed_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.etcd()?.change_roles("auditor")?;
    world.kill(B)?;
    world.await_alone(A)?;
    world.await_vm(A, &clients)?;
    clients.finish()
}

fn file_full(world: &mut World) -> Result<()> {
    let storage = world.path("arbiter");
    world.mounts.small(&storage, 1024)?;
    fs::File::create(storage.join("kemari-arbiter"))?;
    world.protect()?;
    let clients = world.clients()?;
    fill(&storage, &[])?;
    for side in [A, B] {
        world.await_not_ready(side, &["arbiter", "space"])?;
    }
    clients.go_on()?;
    make_room(&storage)?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn file_away(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let marker = world.path("arbiter/kemari-arbiter");
    fs::remove_file(&marker)?;
    for side in [A, B] {
        await_doubt(world, side)?;
    }
    clients.work(WATCHED)?;
    fs::File::create(marker)?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn none_kill(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    for side in [A, B] {
        world.kill(side)?;
        world.await_vm(side.other(), &clients)?;
        world.revive(side)?;
    }
    clients.finish()
}

fn none_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.kill(B)?;
    world.await_alone(A)?;
    world.revive(B)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn none_restart(world: &mut World) -> Result<()> {
    world.protect()?;
    output_of(&mut world.command(A, &["stop"]))?;
    wait_for("the end of both", PATIENCE, || {
        Ok((!world.is_running(A) && !world.is_running(B)).then_some(()))
    })?;
    world.protect()?;
    let clients = world.clients()?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}
