//! `cargo xtask rehearsal`: drills of a Linux guest between emulated hosts, while clients work. One of its
//! committed state passes and disturbs nobody; those of a state that was damaged on purpose fail, each for
//! its own damage.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::demo;
use crate::demo::emulated::{EmulatedPair, EmulatedPlace};
use crate::demo::options::{Cut, Options as DemoOptions, Pace};
use crate::demo::pair::{Image, Pair, Role, Side};
use crate::demo::run;
use crate::proof::client::Swarm;
use crate::proof::history::Clock;
use crate::proof::load::{Load, Protocol};
use crate::tools::wait_for;
use crate::ui::Ui;

/// The pace.
const PACE: Pace = Pace::LAB;
/// How long answers are counted, alone and beside a drill.
const COUNTED: Duration = Duration::from_secs(20);
/// For how long the guest of a drill runs, in seconds: emulated processors are slow.
const DRILL_SECONDS: &str = "15";
/// What is damaged, as `KEMARI_FAULTS` names it (kemari/src/side/faults.rs).
const DAMAGES: [&str; 2] = ["SpoilVcpus", "SpoilMemoryMib=192"];

/// How it is done.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Makes the load repeatable
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What was seen: the last line printed, as JSON.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// Drills of a whole state that passed.
    passed: u32,
    /// Damaged states that a drill has found.
    found: u32,
    failed: u32,
    /// Answers to the clients in a second, alone and while a drill ran.
    answers_per_s_alone: f64,
    answers_per_s_beside: f64,
    #[serde(flatten)]
    seen: run::Seen,
}

/// Carries it out; whether all went as it should.
pub fn rehearsal(options: &Options) -> Result<bool> {
    let _lock = demo::lock()?;
    let ui = Ui::default();
    let seed = options.seed.unwrap_or_else(rand::random);
    let program = demo::program_for_emulated_hosts(&["faults"], &ui)?;
    ui.say(&format!("  · seed {seed}"));
    let demo_options = DemoOptions {
        cut: Cut::None,
        seed: Some(seed),
        ..DemoOptions::LAB
    };
    let image = ui.step("the guest: Debian's kernel and Redis", |_| {
        Ok(Image::linux(&lab::guest_image(lab::Service::Redis)?, ""))
    })?;
    let place = ui.step("two emulated hosts boot", |_| {
        EmulatedPlace::new(program, image, &demo_options, false)
    })?;
    let mut pair = ui.step("two hosts", |_| place.pair(seed, None))?;
    let mut outcome = Outcome::default();
    let ended = undergo(&mut pair, seed, &mut outcome, &ui);
    if let Err(error) = &ended {
        outcome.failed += 1;
        println!("  ! {error:#}");
        pair.save_logs();
        demo::keep_logs(seed);
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ended.is_ok())
}

fn undergo(pair: &mut EmulatedPair<'_>, seed: u64, outcome: &mut Outcome, ui: &Ui) -> Result<()> {
    let load = Load {
        netns: Some(pair.clients()),
        protocol: Protocol::Resp,
        ..Load::new(pair.service(), seed)
    };
    run::begin(pair, &load, PACE, ui)?;
    let clock = Clock::start();
    let swarm = Swarm::start(&load, clock)?;
    let result = drills(pair, &swarm, outcome, ui);
    outcome.seen.judge(swarm, &load, clock, result)?;
    ui.step("the VM is stopped", |_| pair.stop(Side::A).map(drop))
}

fn drills(pair: &mut EmulatedPair<'_>, swarm: &Swarm, outcome: &mut Outcome, ui: &Ui) -> Result<()> {
    outcome.answers_per_s_alone = ui.step("answers are counted", |_| {
        rate(swarm, || {
            std::thread::sleep(COUNTED);
            Ok(())
        })
    })?;
    outcome.answers_per_s_beside = ui.step("a drill of what is committed", |_| {
        rate(swarm, || {
            let said = pair.order(Side::B, &["drill", "--seconds", DRILL_SECONDS])?;
            ui.say(&format!("      {}", said.trim()));
            ensure!(said.contains("passed"), "the drill did not pass: {said}");
            outcome.passed += 1;
            Ok(())
        })
    })?;
    for damage in DAMAGES {
        ui.step(
            &format!("another secondary, whose drills meet {damage}"),
            |step| {
                pair.end(Side::B)?;
                pair.break_programs(damage);
                pair.start(Side::B, Role::Secondary)?;
                run::protect(pair, Side::A, PACE, step)
            },
        )?;
        ui.step("a drill of what is damaged", |_| {
            let said = match pair.order(Side::B, &["drill", "--seconds", DRILL_SECONDS]) {
                Ok(said) => said,
                Err(error) => format!("{error:#}"),
            };
            ui.say(&format!("      {}", said.trim()));
            ensure!(said.contains("FAILED"), "{damage} was not found: {said}");
            outcome.found += 1;
            not_ready(pair).context("the pair of a damaged state")
        })?;
    }
    Ok(())
}

/// Waits until the primary says that a takeover would not succeed.
fn not_ready(pair: &mut EmulatedPair<'_>) -> Result<()> {
    wait_for("a primary that says `not ready`", PACE.protect_max, || {
        pair.check_alive()?;
        let checked = pair.order(Side::A, &["status", "--check"]);
        Ok(checked
            .is_err_and(|error| format!("{error:#}").contains("the last drill failed"))
            .then_some(()))
    })
}

/// Answers in a second while something is done.
fn rate(swarm: &Swarm, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let answers = || swarm.acknowledged().iter().sum::<u64>();
    let (before, begin) = (answers(), Instant::now());
    work()?;
    Ok((answers() - before) as f64 / begin.elapsed().as_secs_f64())
}
