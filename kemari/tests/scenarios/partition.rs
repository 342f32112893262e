//! Both sides live and cannot hear each other, or one of them slept: one wins, the other shows nothing more.

use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::{Protection, Role, Status};
use lab::{LocalNet, Network};
use rustix::process::Signal;
use xtask::tools::output_of;

use crate::support::{Fence, Host, PATIENCE, Plan, Scene, play, wait_for};

/// How long the loser's silence is watched.
const SILENCE_WATCHED: Duration = Duration::from_secs(1);

/// The loser lives, so that it can be watched.
fn plan() -> Plan {
    Plan {
        fence: Fence::ProvesNothing,
        ..Plan::default()
    }
}

#[test]
fn when_the_link_is_cut_exactly_one_goes_on_and_the_other_is_silent() {
    one_goes_on(
        |net| net.cut(Host::A.number(), Network::Replication),
        |net| net.join(Host::A.number(), Network::Replication),
    );
}

#[test]
fn when_the_secondary_hears_nothing_any_more_exactly_one_goes_on() {
    let (from, to) = (Host::A.number(), Host::B.number());
    one_goes_on(|net| net.cut_one_way(from, to), |net| net.join_one_way(from, to));
}

#[test]
fn when_the_primary_hears_nothing_any_more_exactly_one_goes_on() {
    let (from, to) = (Host::B.number(), Host::A.number());
    one_goes_on(|net| net.cut_one_way(from, to), |net| net.join_one_way(from, to));
}

#[test]
fn when_link_and_arbiter_are_away_output_waits_until_one_may_go_on() {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.take_arbiter_away()?;
        scene.net.cut(Host::A.number(), Network::Replication)?;
        for host in Host::BOTH {
            scene.await_status("waiting for the arbiter", host, |status| {
                status
                    .waiting_because
                    .as_ref()
                    .is_some_and(|because| because.contains("arbiter"))
            })?;
        }
        let acknowledged = clients.acknowledged();
        std::thread::sleep(SILENCE_WATCHED);
        ensure!(
            clients.acknowledged() == acknowledged,
            "somebody answers without consent"
        );
        scene.bring_arbiter_back()?;
        await_winner(scene)?;
        clients.go_on()?;
        clients.finish()
    });
}

/// Cuts, sees that one side alone goes on, joins, and sees that the other protects it again.
fn one_goes_on(
    cut: impl FnOnce(&LocalNet) -> lab::Result<()>,
    join: impl FnOnce(&LocalNet) -> lab::Result<()>,
) {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        cut(&scene.net)?;
        let winner = await_winner(scene)?;
        let loser = winner.other();
        clients.go_on()?;
        await_no_carrier(scene, loser)?;
        std::thread::sleep(SILENCE_WATCHED);
        ensure!(
            role(scene, loser) == Some(Role::Secondary),
            "the loser is {:?}",
            role(scene, loser)
        );
        ensure!(!has_carrier(scene, loser)?, "the loser's TAP is in use again");
        clients.go_on()?;
        join(&scene.net)?;
        scene.await_protected(winner)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_primary_that_slept_finds_itself_deposed_and_becomes_the_secondary() {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let term = scene.await_protected(Host::A)?.term;
        scene.signal(Host::A, Signal::STOP)?;
        scene.await_primary(Host::B)?;
        clients.work(Duration::from_secs(2))?;
        scene.signal(Host::A, Signal::CONT)?;
        let protected = scene.await_protected(Host::B)?;
        ensure!(
            protected.term == term + 2,
            "won, then paired: term {} after {term}",
            protected.term
        );
        ensure!(
            role(scene, Host::A) == Some(Role::Secondary),
            "A is {:?}",
            role(scene, Host::A)
        );
        ensure!(
            !has_carrier(scene, Host::A)?,
            "the deposed primary's TAP is in use"
        );
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_primary_that_naps_for_less_than_the_suspicion_time_keeps_the_vm() {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let term = scene.await_protected(Host::A)?.term;
        for _ in 0..3 {
            scene.signal(Host::A, Signal::STOP)?;
            std::thread::sleep(Duration::from_millis(400));
            scene.signal(Host::A, Signal::CONT)?;
            clients.work(Duration::from_millis(300))?;
        }
        ensure!(
            scene.await_protected(Host::A)?.term == term,
            "somebody asked for nothing"
        );
        clients.finish()
    });
}

#[test]
fn a_secondary_that_slept_finds_itself_left_out_and_is_taken_back() {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.signal(Host::B, Signal::STOP)?;
        clients.go_on()?;
        scene.await_alone(Host::A)?;
        clients.work(Duration::from_secs(1))?;
        scene.signal(Host::B, Signal::CONT)?;
        scene.await_protected(Host::A)?;
        ensure!(
            role(scene, Host::B) == Some(Role::Secondary),
            "B is {:?}",
            role(scene, Host::B)
        );
        clients.go_on()?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

fn role(scene: &Scene, host: Host) -> Option<Role> {
    scene.status(host).map(|status| status.role)
}

/// Waits until one side runs the VM alone.
fn await_winner(scene: &mut Scene) -> Result<Host> {
    wait_for("a winner", PATIENCE, || {
        let decided = |status: &Status| status.role == Role::Primary && status.protection == Protection::Off;
        let winners: Vec<Host> = Host::BOTH
            .into_iter()
            .filter(|host| scene.status(*host).is_some_and(|it| decided(&it)))
            .collect();
        ensure!(winners.len() < 2, "both sides run the VM");
        Ok(winners.first().copied())
    })
}

fn await_no_carrier(scene: &Scene, host: Host) -> Result<()> {
    wait_for("the end of the loser's TAP", PATIENCE, || {
        Ok((!has_carrier(scene, host)?).then_some(()))
    })
}

/// Whether a process has the host's TAP open.
fn has_carrier(scene: &Scene, host: Host) -> Result<bool> {
    let host = scene.net.host(host.number());
    let mut command = host.netns().command("ip");
    let shown = output_of(command.args(["-oneline", "link", "show", "dev", &host.tap(0)]))?;
    Ok(!shown.contains("NO-CARRIER"))
}

#[test]
fn a_slow_fence_is_waited_for_by_the_one_that_it_strikes() {
    let plan = Plan {
        fence: Fence::Slow,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        let asked = scene.ask(Host::B, &["takeover"])?;
        ensure!(asked.success, "the takeover was refused: {}", asked.text);
        scene.await_primary(Host::B)?;
        ensure!(
            !scene.log(Host::A).contains("the VM runs on unprotected"),
            "A went on while it was about to be struck"
        );
        clients.finish()
    });
}
