//! `cargo xtask soak`: one VM whose hosts fail again and again, in every way, while clients watch.
//!
//! A period: clients connect and work, a cut of some kind at some moment, the clients go on, the other host is made the
//! secondary again, the clients stop, everything is read back and judged. The VM lives on from period to period. After
//! a period that failed a fresh pair of hosts is made.

mod cut;
mod tally;

use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::demo;
use crate::demo::local::{LocalPair, LocalPlace};
use crate::demo::options::{ACKNOWLEDGED_AFTER_MIN, Pace};
use crate::demo::pair::{Image, Pair, Role, Side, Status};
use crate::packages;
use crate::proof::checker::check;
use crate::proof::client::{Swarm, ping, read_all_keys};
use crate::proof::history::{Clock, History};
use crate::proof::load::Load;
use crate::tools::{self, wait_for};
use crate::ui::Ui;
use cut::{Cut, GUEST_BUSY_MAX, orders_to};
use tally::{Period, Tally};

/// Periods of one VM, after which a fresh one begins: each writes keys of its own, and the bare guest has a table of
/// 4096.
const PERIODS_MAX: u32 = 240;
/// Keys that each connection writes in a period; with the number of connections and [`PERIODS_MAX`] they fit the table.
const KEYS_PER_CONNECTION: u32 = 2;
/// Pairs of hosts in a row that may fail before anything was cut.
const BARREN_PAIRS_MAX: u32 = 3;
/// Clients work for a time in this range before a cut: long enough for the pair to be at any step, and short, so that
/// many cuts fit into an hour.
const BEFORE_CUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_millis(700);
/// The pace.
const PACE: Pace = Pace::LOCAL;

/// How long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// For how many minutes; the period that has begun is finished
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub minutes: u32,
    /// Makes kinds and moments of the cuts and the load repeatable
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Runs until the time is over. Whether every period was good; an error means that there are no hosts to fail.
pub fn soak(options: &Options) -> Result<bool> {
    let _lock = demo::lock()?;
    let ui = Ui::default();
    ui.step("packages", |_| {
        packages::ensure_installed(&[packages::IP, packages::ETCD])
    })?;
    let program = ui.step("building kemari", |_| build())?;
    let image = ui.step("building the bare guest", |_| tools::build_bare_guest())?;
    let place = LocalPlace::new(program, Image::bare(image))?;

    let begin = Instant::now();
    let seed = options.seed.unwrap_or_else(rand::random);
    ui.say(&format!("  · seed {seed}"));
    let mut soak = Soak {
        place: &place,
        random: ChaCha8Rng::seed_from_u64(seed),
        bag: Vec::new(),
        begin,
        end: begin + Duration::from_secs(60 * u64::from(options.minutes)),
        tally: Tally::default(),
    };
    let mut without_a_period = 0;
    while Instant::now() < soak.end {
        let before = soak.tally.periods();
        let number = soak.random.random();
        if let Err(error) = soak.on_fresh_hosts(number) {
            soak.tally.fail(&error);
            demo::keep_logs(number);
        }
        without_a_period = match soak.tally.periods() > before {
            true => 0,
            false => without_a_period + 1,
        };
        ensure!(
            without_a_period < BARREN_PAIRS_MAX,
            "{without_a_period} pairs of hosts in a row have not come up"
        );
    }
    soak.tally.print(seed, begin.elapsed())?;
    Ok(soak.tally.is_clean())
}

/// Builds the program, and takes a copy: whoever builds in the meantime must not change what is running here.
fn build() -> Result<PathBuf> {
    let directory = tools::target_dir().join("soak");
    fs::create_dir_all(&directory)?;
    let copy = directory.join("kemari");
    let _ = fs::remove_file(&copy);
    fs::copy(tools::build_kemari(&[])?, &copy)
        .with_context(|| format!("{} cannot be written", copy.display()))?;
    Ok(copy)
}

struct Soak<'a> {
    place: &'a LocalPlace,
    random: ChaCha8Rng,
    /// The kinds of cut that are still to come before all come again.
    bag: Vec<Cut>,
    begin: Instant,
    end: Instant,
    tally: Tally,
}

impl Soak<'_> {
    /// One VM, until the time is over, its table is full, or something fails.
    fn on_fresh_hosts(&mut self, number: u64) -> Result<()> {
        let place = self.place;
        let mut pair = place.pair(number, None, None)?;
        let mut primary = Side::A;
        pair.launch(primary, Role::Primary)?;
        await_service(&mut pair)?;
        pair.launch(primary.other(), Role::Secondary)?;
        await_protected(&mut pair, primary)?;
        for _ in 0..PERIODS_MAX {
            if Instant::now() >= self.end {
                break;
            }
            let cut = self.draw();
            let mut period = Period::new(cut);
            let ended = self.period(&mut pair, &mut primary, &mut period);
            let context = format!(
                "cut `{cut}`, in step {}",
                period.step.as_deref().unwrap_or("unknown")
            );
            let is_bad = period.is_bad();
            eprintln!("  {:>6.1} s  {period}", self.begin.elapsed().as_secs_f64());
            self.tally.add(period);
            ended.context(context.clone())?;
            ensure!(!is_bad, "{context}: see above");
        }
        Ok(())
    }

    fn period(&mut self, pair: &mut LocalPair<'_>, primary: &mut Side, period: &mut Period) -> Result<()> {
        let load = self.load(pair);
        let clock = Clock::start();
        let swarm = Swarm::start(&load, clock)?;
        let moment = self.random.random_range(BEFORE_CUT);
        std::thread::sleep(moment);
        // What ends connections by itself finds the clients stopped.
        let (swarm, seen) = match period.cut.ends_connections() {
            true => (None, swarm.finish(true)?),
            false => (Some(swarm), History::default()),
        };
        let moment = self.random.random_range(Duration::ZERO..=GUEST_BUSY_MAX);
        let gone_on = cut_and_recover(self.place, pair, primary, period, moment, swarm.as_ref());
        let mut history = seen;
        if let Some(swarm) = swarm {
            // Where nothing answers any more, clients must not wait for their time-out.
            period.lost_connections = swarm.lost() as u64;
            history = swarm.finish(gone_on.is_ok())?;
        }
        period.lost_connections = period.lost_connections.max(history.connections_lost());
        period.longest_gap_ms = history.longest_gap() as f64 / 1e6;
        let read = read_all_keys(&load, clock, &history).map(|read| history.merge(read));
        let verdict = check(&history)?;
        period.judge(&verdict);
        gone_on.and(read)
    }

    /// A load whose keys no other has.
    fn load(&mut self, pair: &LocalPair<'_>) -> Load {
        Load {
            netns: Some(pair.clients()),
            keys_per_connection: KEYS_PER_CONNECTION,
            ..Load::new(pair.service(), self.random.random())
        }
    }

    fn draw(&mut self) -> Cut {
        if self.bag.is_empty() {
            self.bag = Cut::ALL.to_vec();
            self.bag.shuffle(&mut self.random);
        }
        self.bag.pop().unwrap_or(Cut::Kill)
    }
}

/// Cuts, sees every client go on, makes a pair again, and sees them go on with that.
fn cut_and_recover(
    place: &LocalPlace,
    pair: &mut LocalPair<'_>,
    primary: &mut Side,
    period: &mut Period,
    moment: Duration,
    swarm: Option<&Swarm>,
) -> Result<()> {
    let victim = *primary;
    let at_cut = swarm.map(Swarm::acknowledged);
    period.cut.apply(place, pair, victim, moment)?;
    period.step = period.cut.ends_primary().then(|| pair.step_of(victim)).flatten();
    if let (Some(swarm), Some(at_cut)) = (swarm, at_cut) {
        answered(swarm, &at_cut, "after the cut")?;
    }
    let runs = await_survivor(pair, period.cut, victim)?;
    let expected = period.cut.survivor(victim);
    ensure!(
        expected.is_none_or(|side| side == runs),
        "the VM runs on host {} now",
        runs.name()
    );
    *primary = runs;
    period.took_over = runs != victim && !period.cut.is_planned();
    period.cut.repair(place.net(), victim)?;
    if period.cut == Cut::Term {
        wait_for(
            "the end of the process that was told to end",
            PACE.recover_max,
            || Ok((!pair.is_running(victim)).then_some(())),
        )?;
    }
    if !pair.is_running(runs.other()) {
        pair.launch(runs.other(), Role::Secondary)?;
    }
    await_protected(pair, runs)?;
    match swarm {
        Some(swarm) => answered(swarm, &swarm.acknowledged(), "after it was protected again"),
        None => await_service(pair),
    }
}

/// Waits until the guest has booted.
fn await_service(pair: &mut LocalPair<'_>) -> Result<()> {
    let load = orders_to(pair);
    wait_for("an answer of the guest's service", PACE.boot_max, || {
        pair.check_alive()?;
        Ok(ping(&load).ok())
    })
}

/// Waits until each connection has got answers since.
fn answered(swarm: &Swarm, since: &[u64], when: &str) -> Result<()> {
    wait_for(
        &format!("an answer to each connection {when}"),
        PACE.recover_max,
        || {
            let lost = swarm.lost();
            ensure!(lost == 0, "{lost} connections were lost {when}");
            let now = swarm.acknowledged();
            let mut pairs = now.iter().zip(since);
            Ok(pairs
                .all(|(now, since)| now - since >= ACKNOWLEDGED_AFTER_MIN)
                .then_some(()))
        },
    )
}

/// Waits until it is clear who runs the VM: alone, or, where nobody died, protected.
fn await_survivor(pair: &mut LocalPair<'_>, cut: Cut, victim: Side) -> Result<Side> {
    wait_for("a host that runs the VM", PACE.recover_max, || {
        let mut found = Vec::new();
        for side in Side::BOTH {
            // Who was frozen and is not fenced yet does not answer.
            if !pair.is_running(side) || (cut == Cut::Freeze && side == victim) {
                continue;
            }
            // Before it has given the VM away, a host still says that it runs it.
            if cut.is_planned() && cut.survivor(victim) != Some(side) {
                continue;
            }
            let is_alone = |status: &Status| status.is_primary() && status.protection == "off";
            let decided = |status: &Status| match cut.is_planned() || cut.may_pass() {
                true => is_alone(status) || (status.is_primary() && status.is_protected()),
                false => is_alone(status),
            };
            found.extend(pair.status(side)?.filter(decided).map(|_| side));
        }
        // One that slept may not know yet that the VM has gone on elsewhere.
        ensure!(found.len() < 2 || cut.may_pass(), "both hosts run the VM");
        Ok((found.len() == 1).then(|| found[0]))
    })
}

fn await_protected(pair: &mut LocalPair<'_>, primary: Side) -> Result<()> {
    let mut last = None;
    let protected = wait_for("protection", PACE.protect_max, || {
        for side in Side::BOTH {
            ensure!(
                pair.is_running(side),
                "the program on host {} has ended",
                side.name()
            );
        }
        last = pair.status(primary)?;
        Ok(last
            .as_ref()
            .filter(|status| status.is_primary() && status.is_protected())
            .map(drop))
    });
    protected.with_context(|| format!("the last status of host {}: {last:?}", primary.name()))
}
