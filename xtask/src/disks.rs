//! `cargo xtask disks`: one VM with a replicated disk, whose hosts' disks become slow, fail or are full, and
//! whose copies are cut off, while clients of its database watch: the VM lives, and `kemari status` says what
//! is the matter. And a VM by itself that uses all that its disk offers.

mod discard;
pub mod replay;
mod trial;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::demo;
use crate::demo::emulated::{EmulatedPair, EmulatedPlace};
use crate::demo::options::{Cut, Flush, Options as DemoOptions, Pace, Service};
use crate::demo::pair::{Image, Pair, Side};
use crate::demo::{ending, run};
use crate::proof::client::Swarm;
use crate::proof::history::Clock;
use crate::proof::load::{Load, Protocol};
use crate::proof::postgres::health;
use crate::tools::wait_for;
use crate::ui::Ui;
use trial::Trial;

/// The pace.
const PACE: Pace = Pace::LAB;
/// How much longer each request of a slow disk takes.
const DELAY: Duration = Duration::from_millis(100);
/// How long a disk stays slow.
const SLOW_FOR: Duration = Duration::from_secs(10);
/// Longest wait until a disk's trouble has shown.
const NOTICED_MAX: Duration = Duration::from_secs(60);
/// Answers that each connection must get for the VM to count as alive.
const ANSWERS_MIN: u64 = 2;

/// Which trials.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only this trial (may be repeated); otherwise all, one after the other, with one VM
    #[arg(long = "trial", value_enum)]
    pub trials: Vec<Trial>,
    /// When the guest's flush is done
    #[arg(long, value_enum, default_value_t = Flush::Memory)]
    pub flush: Flush,
    /// Makes moments and load repeatable
    #[arg(long)]
    pub seed: Option<u64>,
    /// Instead: records what reaches an image, its record and the file arbiter, and looks at every power cut
    /// that could have happened; the last line is JSON
    #[arg(long, conflicts_with_all = ["trials", "flush"])]
    pub replay: bool,
    /// For how long cuts are tried
    #[arg(long, default_value_t = 60, requires = "replay")]
    pub seconds: u64,
}

/// What all trials have shown: the last line printed, as JSON.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    trials: u32,
    failed: u32,
    #[serde(flatten)]
    seen: run::Seen,
    #[serde(skip_serializing_if = "Option::is_none")]
    discard: Option<discard::Seen>,
}

/// Runs the trials; whether all went as they should.
pub fn disks(options: &Options) -> Result<bool> {
    if options.replay {
        let time = Duration::from_secs(options.seconds);
        let ui = Ui::default();
        let mut outcome = replay::replay(time, options.seed, &ui)?;
        if let Err(error) = replay::replay_stores(time, &mut outcome, &ui) {
            outcome.failed += 1;
            println!("  ! {error:#}");
        }
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(outcome.failed == 0);
    }
    let _lock = demo::lock()?;
    let ui = Ui::default();
    let seed = options.seed.unwrap_or_else(rand::random);
    let program = demo::program_for_emulated_hosts(&[], &ui)?;
    ui.say(&format!("  · seed {seed}"));
    let wanted = match options.trials.is_empty() {
        true => Trial::ALL.to_vec(),
        false => options.trials.clone(),
    };
    let (alone, trials): (Vec<Trial>, Vec<Trial>) =
        wanted.into_iter().partition(|trial| *trial == Trial::Discard);
    let mut outcome = Outcome::default();
    let mut ended = Ok(());
    if !trials.is_empty() {
        ended = with_a_database(&program, &trials, seed, options.flush, &mut outcome, &ui);
    }
    if ended.is_ok() && !alone.is_empty() {
        outcome.trials += 1;
        let seen = discard::undergo(program, seed, options.flush, &ui);
        ended = seen
            .map(|seen| outcome.discard = Some(seen))
            .context(Trial::Discard);
    }
    if let Err(error) = &ended {
        outcome.failed += 1;
        println!("  ! {error:#}");
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ended.is_ok())
}

/// The trials that one VM undergoes, one after the other.
fn with_a_database(
    program: &Path,
    trials: &[Trial],
    seed: u64,
    flush: Flush,
    outcome: &mut Outcome,
    ui: &Ui,
) -> Result<()> {
    let demo_options = DemoOptions {
        service: Service::Postgres,
        flush,
        cut: Cut::None,
        seed: Some(seed),
        ..DemoOptions::LAB
    };
    let image = ui.step("the guest: Debian's kernel and PostgreSQL", |_| {
        Ok(Image::linux(&lab::guest_image(lab::Service::Postgres)?, ""))
    })?;
    let place = ui.step("two emulated hosts boot", |_| {
        EmulatedPlace::new(program.to_owned(), image, &demo_options, true)
    })?;
    let pair = ui.step("two hosts", |_| place.pair(seed, None))?;
    let load = Load {
        netns: Some(pair.clients()),
        protocol: Protocol::Postgres,
        ..Load::new(pair.service(), seed)
    };
    let mut ordeal = Ordeal {
        place: &place,
        pair,
        primary: Side::A,
        random: ChaCha8Rng::seed_from_u64(seed),
        reasons: BTreeSet::new(),
    };
    let ended = ordeal.undergo(trials, &load, &demo_options, outcome, ui);
    if ended.is_err() {
        ordeal.pair.save_logs();
        demo::keep_logs(seed);
    }
    ended
}

/// A VM, its hosts, and what they have said.
struct Ordeal<'a> {
    place: &'a EmulatedPlace,
    pair: EmulatedPair<'a>,
    primary: Side,
    random: ChaCha8Rng,
    /// What `kemari status` gave as reasons during a trial.
    reasons: BTreeSet<String>,
}

impl Ordeal<'_> {
    fn undergo(
        &mut self,
        trials: &[Trial],
        load: &Load,
        options: &DemoOptions,
        outcome: &mut Outcome,
        ui: &Ui,
    ) -> Result<()> {
        run::begin(&mut self.pair, load, PACE, ui)?;
        let clock = Clock::start();
        let swarm = Swarm::start(load, clock)?;
        answered(&swarm, &swarm.acknowledged())?;
        let mut result = Ok(());
        for trial in trials {
            self.reasons.clear();
            outcome.trials += 1;
            let done = ui.step(&trial.to_string(), |_| trial.undergo(self, &swarm));
            for reason in &self.reasons {
                ui.say(&format!("      status: {reason}"));
            }
            result = done.with_context(|| trial.to_string());
            if result.is_err() {
                break;
            }
        }
        outcome.seen.judge(swarm, load, clock, result)?;
        ui.step("PostgreSQL looks for corruption", |_| {
            health::examine(load).map(drop)
        })?;
        let images = ui.step("the VM is stopped", |_| self.pair.stop(self.primary))?;
        ui.step("its disk is looked at", |_| ending::examine(&images, options))
    }

    fn secondary(&self) -> Side {
        self.primary.other()
    }

    /// Lets the guest's disk on a host behave in some way.
    fn behave(&self, side: Side, behaviour: lab::Behaviour) -> Result<()> {
        let disk = self.place.host(side).volatile_disk(0);
        disk.context("the disk cannot be told how to behave")?
            .behave(behaviour);
        Ok(())
    }

    /// Notes what both sides give as reasons, and whether the VM is protected.
    fn look(&mut self) -> Result<bool> {
        let mut protected = false;
        for side in Side::BOTH {
            let Some(status) = self.pair.status(side)? else {
                continue;
            };
            protected |= status.is_primary() && status.is_protected();
            let reason = status.waiting_because;
            let without_numbers = |reason: String| reason.replace(|c: char| c.is_ascii_digit(), "N");
            self.reasons
                .extend(reason.map(|reason| format!("{}: {}", side.name(), without_numbers(reason))));
        }
        Ok(protected)
    }

    /// Waits until the VM is not protected any more.
    fn await_parting(&mut self) -> Result<()> {
        wait_for("the end of protection", NOTICED_MAX, || {
            Ok((!self.look()?).then_some(()))
        })
    }

    /// Waits until the VM is protected, wherever it runs, and finds out where.
    fn await_protection(&mut self) -> Result<()> {
        self.primary = wait_for("protection", PACE.protect_max, || {
            for side in Side::BOTH {
                let status = self.pair.status(side)?;
                if status.is_some_and(|status| status.is_primary() && status.is_protected()) {
                    return Ok(Some(side));
                }
            }
            Ok(None)
        })?;
        Ok(())
    }

    /// Looks for a while.
    fn watch(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.look()?;
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Fails unless one of the reasons that were given says so.
    fn ensure_said(&self, words: &str) -> Result<()> {
        let said = self.reasons.iter().any(|reason| reason.contains(words));
        ensure!(
            said,
            "`kemari status` did not say `{words}`; the logs end with:\n{}\n{}",
            self.pair.log(Side::A),
            self.pair.log(Side::B)
        );
        Ok(())
    }
}

/// Waits until each connection has got answers since: the VM lives.
fn answered(swarm: &Swarm, since: &[u64]) -> Result<()> {
    wait_for("an answer to each connection", PACE.recover_max, || {
        let lost = swarm.lost();
        ensure!(lost == 0, "{lost} connections were lost");
        let now = swarm.acknowledged();
        let mut pairs = now.iter().zip(since);
        Ok(pairs.all(|(now, since)| now - since >= ANSWERS_MIN).then_some(()))
    })
}
