//! One run of the demo.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::options::{ACKNOWLEDGED_AFTER_MIN, Cut, Options, Pace};
use super::pair::{Pair, Place, Side, Status};
use super::result::{Aftermath, Report};
use crate::proof::checker::{Verdict, check};
use crate::proof::client::{Swarm, ping, read_all_keys};
use crate::proof::history::{Clock, History};
use crate::proof::load::Load;
use crate::tools::wait_for;
use crate::ui::{Step, Ui};

/// How long clients wait for answers after the cut when the mechanism was broken on purpose.
const BROKEN_RECOVER_MAX: Duration = Duration::from_secs(8);

/// Runs the demo once. Hosts that cannot be made are an error; whatever fails on them is a run that is not ok.
pub fn run(place: &mut dyn Place, options: &Options, seed: u64, ui: &Ui) -> Result<Report> {
    let (hosts, mut pace) = (place.name(), place.pace());
    if options.fault.is_some() {
        // A broken mechanism need not recover; what it has lost is seen at once.
        pace.recover_max = pace.recover_max.min(BROKEN_RECOVER_MAX);
    }
    let mut pair = ui.step("two hosts", |_| place.make(seed, options.fault))?;
    let report = on_hosts(pair.as_mut(), options, seed, ui, hosts, pace);
    let report = report.unwrap_or_else(|e| {
        let failures = vec![format!("{e:#}")];
        let aftermath = Aftermath {
            failures,
            ..Aftermath::default()
        };
        Report::new(
            options.guest,
            hosts,
            options.cut,
            &History::default(),
            &Verdict::default(),
            aftermath,
        )
    });
    if !report.result.ok {
        pair.save_logs();
    }
    Ok(report)
}

fn on_hosts(
    pair: &mut dyn Pair,
    options: &Options,
    seed: u64,
    ui: &Ui,
    hosts: &str,
    pace: Pace,
) -> Result<Report> {
    let load = Load {
        netns: Some(pair.clients()),
        connections: options.connections,
        ..Load::new(pair.service(), seed)
    };
    ui.step("the guest boots on host a", |_| boot(pair, &load, pace))?;
    ui.step("host b protects it", |step| protect(pair, pace, step))?;

    let clock = Clock::start();
    let swarm = Swarm::start(&load, clock)?;
    let moment = moment_of_cut(seed, pace);
    ui.step(&format!("{} clients write and read", load.connections), |step| {
        wait_and_count(&swarm, moment, pair, step)
    })?;
    // Who goes on alone counts no syncs any more, and who was cut cannot be asked.
    let syncs_before = pair.status(Side::A)?.map_or(0, |status| status.epoch);
    let mut aftermath = Aftermath {
        syncs: syncs_before,
        ..Aftermath::default()
    };
    if options.cut != Cut::None {
        ui.step(&format!("cut: {}", options.cut), |_| {
            aftermath.cut_at = Some(clock.now());
            pair.cut(options.cut)
        })?;
    }
    let recovered = ui.step("clients go on", |step| recover(&swarm, pair, pace, step));
    let (history, failures) = ui.step("everything is read back", |_| {
        finish(swarm, &load, clock, recovered)
    })?;
    aftermath.failures = failures;
    survey(pair, options.cut, &mut aftermath);
    let verdict = check(&history)?;
    Ok(Report::new(
        options.guest,
        hosts,
        options.cut,
        &history,
        &verdict,
        aftermath,
    ))
}

fn boot(pair: &mut dyn Pair, load: &Load, pace: Pace) -> Result<()> {
    pair.start_primary()?;
    wait_for("an answer of the guest's service", pace.boot_max, || {
        pair.check_alive()?;
        Ok(ping(load).ok())
    })
    .map(drop)
}

fn protect(pair: &mut dyn Pair, pace: Pace, step: &Step) -> Result<()> {
    pair.start_secondary()?;
    let mut last = None;
    let protected = wait_for("protection", pace.protect_max, || {
        pair.check_alive()?;
        last = pair.status(Side::A)?;
        if let Some(percent) = last.as_ref().and_then(Status::copy_percent) {
            step.note(&format!("{percent} % of its memory copied"));
        }
        Ok(last.as_ref().filter(|status| status.is_protected()).map(drop))
    });
    protected.map_err(|e| match last {
        Some(status) => e.context(format!("the primary's last status: {status:?}")),
        None => e.context("the primary gave no status"),
    })
}

/// The moment of the cut, counted from the first request.
fn moment_of_cut(seed: u64, pace: Pace) -> Duration {
    let (min, max) = (
        pace.before_cut_min.as_nanos() as u64,
        pace.before_cut_max.as_nanos() as u64,
    );
    Duration::from_nanos(ChaCha8Rng::seed_from_u64(seed).random_range(min..=max))
}

fn wait_and_count(swarm: &Swarm, time: Duration, pair: &mut dyn Pair, step: &Step) -> Result<()> {
    const LOOKS: u32 = 10;
    for _ in 0..LOOKS {
        std::thread::sleep(time / LOOKS);
        step.note(&format!(
            "{} writes acknowledged",
            swarm.acknowledged().iter().sum::<u64>()
        ));
    }
    ensure!(
        swarm.lost() == 0,
        "{} connections were lost before anything was cut",
        swarm.lost()
    );
    pair.check_alive()
}

/// Waits until each connection that lives has got answers since; an error is a failure of the run, not of the demo.
fn recover(swarm: &Swarm, pair: &mut dyn Pair, pace: Pace, step: &Step) -> Result<()> {
    let at_cut = swarm.acknowledged();
    std::thread::sleep(pace.after_cut_min);
    wait_for(
        "an answer to each connection after the cut",
        pace.recover_max,
        || {
            pair.check_alive()?;
            ensure!(
                swarm.lost() == 0,
                "{} connections were lost after the cut",
                swarm.lost()
            );
            let now = swarm.acknowledged();
            step.note(&format!("{} writes acknowledged", now.iter().sum::<u64>()));
            let enough = now
                .iter()
                .zip(&at_cut)
                .all(|(now, then)| now - then >= ACKNOWLEDGED_AFTER_MIN);
            Ok(enough.then_some(()))
        },
    )
}

/// Stops the clients and reads all keys.
fn finish(swarm: Swarm, load: &Load, clock: Clock, recovered: Result<()>) -> Result<(History, Vec<String>)> {
    let mut failures = Vec::new();
    // Where nothing answers any more, clients must not wait for their time-out.
    let answering = recovered.is_ok();
    failures.extend(recovered.err().map(|e| format!("{e:#}")));
    let mut history = swarm.finish(answering)?;
    match read_all_keys(load, clock, &history) {
        Ok(read) => history.merge(read),
        Err(e) => failures.push(format!("{e:#}")),
    }
    Ok((history, failures))
}

/// Asks the side that executes the VM now what happened.
fn survey(pair: &mut dyn Pair, cut: Cut, aftermath: &mut Aftermath) {
    let found = Side::BOTH.into_iter().rev().find_map(|side| {
        let status = pair.status(side).ok().flatten().filter(Status::is_primary)?;
        Some((side, status))
    });
    let Some((side, status)) = found else {
        aftermath
            .failures
            .push("neither side says that it executes the VM".into());
        return;
    };
    aftermath.syncs = aftermath.syncs.max(status.epoch);
    if cut != Cut::None {
        let takeover = status.takeover.filter(|_| side == Side::B);
        aftermath.takeover_ms = takeover.as_ref().map(|takeover| takeover.ms);
        aftermath.cut_in_step = pair
            .step_at_cut()
            .or(takeover.and_then(|takeover| takeover.cut_in_step));
    } else if side != Side::A {
        aftermath
            .failures
            .push("the VM was taken over although nothing was cut".into());
    } else if !status.is_protected() {
        aftermath
            .failures
            .push("the VM is not protected any more although nothing was cut".into());
    }
}
