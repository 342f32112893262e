//! The demo's runs: one VM, cut once or again and again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::ending;
use super::options::{ACKNOWLEDGED_AFTER_MIN, Cut, Disk, Fault, Guest, Options, Pace, Service};
use super::pair::{Pair, Place, Role, Side, Status};
use super::result::{Aftermath, Report};
use crate::proof::checker::{Verdict, check};
use crate::proof::client::{Swarm, ping, read_all_keys};
use crate::proof::history::{Clock, History};
use crate::proof::load::{Load, Protocol};
use crate::proof::postgres::health;
use crate::tools::wait_for;
use crate::ui::{Step, Ui};

/// How long clients wait for answers after the cut when the mechanism was broken on purpose.
const BROKEN_RECOVER_MAX: Duration = Duration::from_secs(8);
/// How long is looked for the side that executes the VM after all.
const SURVEY_MAX: Duration = Duration::from_secs(5);

/// One VM on two hosts, and what its clients of earlier runs saw.
pub struct Session<'a> {
    pair: Box<dyn Pair + 'a>,
    options: &'a Options,
    hosts: &'static str,
    pace: Pace,
    /// Where the VM runs.
    primary: Side,
    /// The host that was cut and has not come back.
    cut_off: Option<Side>,
    past: Vec<Past>,
    booted: bool,
}

/// A run that is over.
struct Past {
    load: Load,
    clock: Clock,
    history: History,
}

impl<'a> Session<'a> {
    /// Makes the hosts; an error means that they cannot be made.
    pub fn new(place: &'a mut dyn Place, options: &'a Options, number: u64, ui: &Ui) -> Result<Self> {
        let (hosts, mut pace) = (place.name(), place.pace());
        if options.fault.is_some() {
            // A broken mechanism need not recover; what it has lost is seen at once.
            pace.recover_max = pace.recover_max.min(BROKEN_RECOVER_MAX);
        }
        Ok(Self {
            pair: ui.step("two hosts", |_| place.make(number, options))?,
            options,
            hosts,
            pace,
            primary: Side::A,
            cut_off: None,
            past: Vec::new(),
            booted: false,
        })
    }

    /// Runs the demo once with this VM; after the `last` time it is stopped, and what it leaves is looked at.
    /// Whatever fails is a run that is not ok.
    pub fn run(&mut self, seed: u64, last: bool, ui: &Ui) -> Report {
        let mut aftermath = Aftermath::default();
        let seen = self.work_and_cut(seed, &mut aftermath, ui);
        let (history, verdict) = seen.unwrap_or_else(|e| {
            aftermath.failures.push(format!("{e:#}"));
            <(History, Verdict)>::default()
        });
        let clean = aftermath.failures.is_empty() && verdict.is_clean();
        if last && clean && self.options.fault.is_none() {
            let ended = self.end(ui);
            aftermath.failures.extend(ended.err().map(|e| format!("{e:#}")));
        }
        let report = Report::new(self.options, self.hosts, &history, &verdict, aftermath);
        if !report.result.ok {
            self.pair.save_logs();
        }
        report
    }

    fn work_and_cut(&mut self, seed: u64, aftermath: &mut Aftermath, ui: &Ui) -> Result<(History, Verdict)> {
        let load = self.load(seed);
        self.make_ready(&load, ui)?;
        let (options, pace, pair, victim) = (self.options, self.pace, self.pair.as_mut(), self.primary);
        let clock = Clock::start();
        let swarm = Swarm::start(&load, clock)?;
        let moment = moment_of_cut(seed, pace);
        ui.step(&format!("{} clients write and read", load.connections), |step| {
            await_first_answers(&swarm, pace)?;
            wait_and_count(&swarm, moment, pair, step)
        })?;
        // Who goes on alone counts no syncs any more, and who was cut cannot be asked.
        aftermath.syncs = pair.status(victim)?.map_or(0, |status| status.epoch);
        if options.cut != Cut::None {
            ui.step(&format!("cut: {} of host {}", options.cut, victim.name()), |_| {
                aftermath.cut_at = Some(clock.now());
                pair.cut(victim, options.cut)
            })?;
        }
        aftermath.loss = pair.loss(victim);
        let recovered = match options.cut {
            Cut::Both => ui.step(&format!("the VM boots anew on host {}", victim.name()), |_| {
                swarm.stop();
                boot_anew(pair, victim, &load, pace)
            }),
            _ => ui.step("clients go on", |step| recover(&swarm, pair, pace, step)),
        };
        let (history, failures) = ui.step("everything is read back", |_| {
            finish(swarm, &load, clock, recovered)
        })?;
        aftermath.failures = failures;
        self.survey(victim, aftermath);
        let verdict = check(&history)?;
        if load.protocol == Protocol::Postgres && aftermath.failures.is_empty() {
            let sound = ui.step("PostgreSQL looks for corruption", |_| health::examine(&load));
            aftermath.failures.extend(sound.err().map(|e| format!("{e:#}")));
        }
        self.past.push(Past {
            load,
            clock,
            history: history.clone(),
        });
        Ok((history, verdict))
    }

    fn load(&self, seed: u64) -> Load {
        let options = self.options;
        let postgres = options.guest != Guest::Bare && options.service == Service::Postgres;
        Load {
            netns: Some(self.pair.clients()),
            connections: options.connections,
            protocol: if postgres {
                Protocol::Postgres
            } else {
                Protocol::Resp
            },
            ..Load::new(self.pair.service(), seed)
        }
    }

    /// Boots the VM, if that was not done, and sees to it that it is protected.
    fn make_ready(&mut self, load: &Load, ui: &Ui) -> Result<()> {
        let (pair, pace) = (self.pair.as_mut(), self.pace);
        if self.booted {
            return self.reunite(ui);
        }
        begin(pair, load, pace, ui)?;
        self.booted = true;
        if load.protocol == Protocol::Postgres && self.options.fault != Some(Fault::NoFsync) {
            ensure!(
                health::is_durable(load)?,
                "PostgreSQL would acknowledge what is not on the disk"
            );
        }
        Ok(())
    }

    /// Brings the host back that was cut.
    fn reunite(&mut self, ui: &Ui) -> Result<()> {
        let Some(victim) = self.cut_off.take() else {
            return Ok(());
        };
        let (pair, pace, primary) = (self.pair.as_mut(), self.pace, self.primary);
        let what = format!("host {} comes back and protects it", primary.other().name());
        ui.step(&what, |step| {
            pair.mend(victim)?;
            protect(pair, primary, pace, step)
        })
    }

    /// Asks the side that executes the VM now what happened.
    fn survey(&mut self, victim: Side, aftermath: &mut Aftermath) {
        let cut = self.options.cut;
        // One that has only just begun may not answer the first time.
        let found = wait_for("a side that executes the VM", SURVEY_MAX, || {
            Ok([victim.other(), victim].into_iter().find_map(|side| {
                let status = self.pair.status(side).ok().flatten().filter(Status::is_primary)?;
                Some((side, status))
            }))
        });
        let found = found.ok();
        let Some((side, status)) = found else {
            aftermath
                .failures
                .push("neither side says that it executes the VM".into());
            return;
        };
        self.primary = side;
        aftermath.syncs = aftermath.syncs.max(status.epoch);
        if cut != Cut::None {
            // After a cut link the other one may have lost, and been fenced.
            self.cut_off = Some(side.other());
            let takeover = status.takeover.filter(|_| side != victim);
            aftermath.takeover_ms = takeover.as_ref().map(|takeover| takeover.ms);
            aftermath.cut_in_step = self
                .pair
                .step_at_cut(victim)
                .or(takeover.and_then(|takeover| takeover.cut_in_step));
        } else if side != victim {
            aftermath
                .failures
                .push("the VM was taken over although nothing was cut".into());
        } else if !status.is_protected() {
            aftermath
                .failures
                .push("the VM is not protected any more although nothing was cut".into());
        }
    }

    /// Reads the runs before the last one back once more, stops the VM, and looks at its disk.
    fn end(&mut self, ui: &Ui) -> Result<()> {
        if self.options.disk == Disk::Replicated {
            self.reunite(ui)?;
        }
        if self.past.len() > 1 {
            ui.step("everything of all runs is read back", |_| {
                self.past.iter().try_for_each(Past::read_again)
            })?;
        }
        let images = ui.step("the VM is stopped", |_| self.pair.stop(self.primary))?;
        ui.step("its disk is looked at", |_| {
            ending::examine(&images, self.options)
        })
    }
}

impl Past {
    fn read_again(&self) -> Result<()> {
        let mut history = self.history.clone();
        history.merge(read_all_keys(&self.load, self.clock, &self.history)?);
        let verdict = check(&history)?;
        let first = verdict.lost.iter().chain(&verdict.contradicted).next();
        ensure!(
            first.is_none(),
            "of an earlier run {} writes are lost now, and {} answers contradicted: {}",
            verdict.lost.len(),
            verdict.contradicted.len(),
            first.map_or("", String::as_str)
        );
        Ok(())
    }
}

/// Starts the VM on host a, waits for its service, and has host b protect it.
pub(crate) fn begin(pair: &mut dyn Pair, load: &Load, pace: Pace, ui: &Ui) -> Result<()> {
    ui.step("the guest boots on host a", |_| boot(pair, load, pace))?;
    ui.step("host b protects it", |step| {
        pair.start(Side::B, Role::Secondary)?;
        protect(pair, Side::A, pace, step)
    })
}

/// Starts the VM on host a, and waits for its service.
pub(crate) fn boot(pair: &mut dyn Pair, load: &Load, pace: Pace) -> Result<()> {
    pair.start(Side::A, Role::Primary)?;
    await_service(pair, load, pace)
}

fn boot_anew(pair: &mut dyn Pair, side: Side, load: &Load, pace: Pace) -> Result<()> {
    pair.boot_anew(side)?;
    await_service(pair, load, pace)
}

/// Waits until the guest has booted.
pub(crate) fn await_service(pair: &mut dyn Pair, load: &Load, pace: Pace) -> Result<()> {
    wait_for("an answer of the guest's service", pace.boot_max, || {
        pair.check_alive()?;
        Ok(ping(load).ok())
    })
    .map(drop)
}

/// Waits until the VM, which runs on `primary`, is protected.
pub(crate) fn protect(pair: &mut dyn Pair, primary: Side, pace: Pace, step: &Step) -> Result<()> {
    let mut last = None;
    let protected = wait_for("protection", pace.protect_max, || {
        std::thread::sleep(pace.look_interval);
        pair.check_alive()?;
        last = pair.status(primary)?;
        if let Some(percent) = last.as_ref().and_then(Status::copy_percent) {
            step.note(&format!("{percent} % of its memory copied"));
        }
        let protected = |status: &&Status| status.is_primary() && status.is_protected();
        Ok(last.as_ref().filter(protected).map(drop))
    });
    protected.with_context(|| match last {
        Some(status) => format!("the primary's last status: {status:?}"),
        None => "the primary gave no status".into(),
    })
}

/// The moment of the cut, counted from when every client has got an answer.
fn moment_of_cut(seed: u64, pace: Pace) -> Duration {
    let (min, max) = (
        pace.before_cut_min.as_nanos() as u64,
        pace.before_cut_max.as_nanos() as u64,
    );
    Duration::from_nanos(ChaCha8Rng::seed_from_u64(seed).random_range(min..=max))
}

/// Waits until each connection has got a write acknowledged: only then may it be asked to go on.
fn await_first_answers(swarm: &Swarm, pace: Pace) -> Result<()> {
    wait_for("a first answer to each connection", pace.recover_max, || {
        ensure!(
            swarm.lost() == 0,
            "{} connections were lost before anything was cut",
            swarm.lost()
        );
        let all = swarm.acknowledged().iter().all(|count| *count > 0);
        Ok(all.then_some(()))
    })
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

/// Waits until each connection that lives has got answers since; an error is a failure of the run,
/// not of the demo.
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

/// Stops the clients and reads everything back.
pub(crate) fn finish(
    swarm: Swarm,
    load: &Load,
    clock: Clock,
    recovered: Result<()>,
) -> Result<(History, Vec<String>)> {
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

/// What the clients of a VM have seen, as a command's last line says it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Seen {
    acknowledged: u64,
    lost: u64,
    contradicted: u64,
    connections_lost: u64,
}

impl Seen {
    /// Stops the clients, and judges what they have seen while the VM did what `done` says.
    ///
    /// # Errors
    /// If `done` is one, if not everything can be read back, or anything is lost or contradicted.
    pub(crate) fn judge(&mut self, swarm: Swarm, load: &Load, clock: Clock, done: Result<()>) -> Result<()> {
        self.connections_lost = swarm.lost() as u64;
        let (history, failures) = finish(swarm, load, clock, done)?;
        let verdict = check(&history)?;
        self.acknowledged = verdict.acknowledged;
        self.lost = verdict.lost.len() as u64;
        self.contradicted = verdict.contradicted.len() as u64;
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        ensure!(
            verdict.is_clean(),
            "{:?} {:?}",
            verdict.lost,
            verdict.contradicted
        );
        Ok(())
    }
}
