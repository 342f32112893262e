//! `cargo xtask soak`: one VM whose hosts fail again and again, in every way, while clients watch.
//!
//! A period: clients connect and work, a cut of some kind at some moment, the clients go on, the other host
//! is made the secondary again, the clients stop, everything is read back and judged. The VM lives on from
//! period to period. After a period that failed a fresh pair of hosts is made.

mod blocks;
mod cut;
mod tally;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::demo::options::{
    ACKNOWLEDGED_AFTER_MIN, Arbiter, Disk, Guest, Hosts, Options as DemoOptions, Pace,
};
use crate::demo::pair::{Pair, Place as Hosting, Role, Side, Status};
use crate::demo::{self, ending, run};
use crate::proof::checker::check;
use crate::proof::client::{Swarm, read_all_keys};
use crate::proof::history::{Clock, History};
use crate::proof::load::Load;
use crate::tools::wait_for;
use crate::ui::{Step, Ui};
use blocks::BlockTests;
use cut::{Cut, GUEST_BUSY_MAX, orders_to};
use tally::{Period, Tally};

/// Periods of one VM, after which a fresh one begins: each writes keys of its own,
/// and the bare guest has a table of
/// 4096.
const PERIODS_MAX: u32 = 240;
/// Keys that each connection writes in a period; with the number of connections and [`PERIODS_MAX`] they fit
/// the table.
const KEYS_PER_CONNECTION: u32 = 2;
/// Pairs of hosts in a row that may fail before anything was cut.
const BARREN_PAIRS_MAX: u32 = 3;

/// Where, and how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the hosts are
    #[arg(long, value_enum, default_value_t = Place::Here)]
    pub place: Place,
    /// For how many minutes; the period that has begun is finished
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub minutes: u32,
    /// The guest's disk; if not said: shared here, which needs a fence, and replicated in the lab
    #[arg(long, value_enum)]
    pub disk: Option<Disk>,
    /// Who decides which side goes on; nfs takes --place lab
    #[arg(long, value_enum, default_value_t = Arbiter::Etcd)]
    pub arbiter: Arbiter,
    /// Only this kind of cut (may be repeated); otherwise all that the place knows
    #[arg(long = "cut", value_enum)]
    pub cuts: Vec<Cut>,
    /// Makes kinds and moments of the cuts and the load repeatable
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Where the hosts are, and what they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// Namespaces on this machine, with the bare guest
    Here,
    /// Emulated hosts, with Linux and Redis
    Lab,
}

impl Place {
    /// Clients work for a time in this range before a cut: long enough for the pair to be at any step, and
    /// short, so that many cuts fit into an hour.
    fn before_cut(self) -> RangeInclusive<Duration> {
        let (min_ms, max_ms) = match self {
            Place::Here => (100, 700),
            Place::Lab => (1000, 4000),
        };
        Duration::from_millis(min_ms)..=Duration::from_millis(max_ms)
    }
}

impl Options {
    fn of_hosts(&self) -> DemoOptions {
        let (guest, hosts, disk) = match self.place {
            Place::Here => (Guest::Bare, Hosts::Local, Disk::Shared),
            Place::Lab => (Guest::Linux, Hosts::Lab, Disk::Replicated),
        };
        DemoOptions {
            guest,
            hosts,
            disk: self.disk.unwrap_or(disk),
            arbiter: self.arbiter,
            ..DemoOptions::LAB
        }
    }

    /// The kinds of cut that are wanted and possible.
    fn kinds(&self) -> Result<Vec<Cut>> {
        let possible = |cut: &Cut| match self.place {
            Place::Here => !cut.needs_emulated_hosts(),
            Place::Lab => !cut.needs_bare_guest(),
        };
        let all = Cut::value_variants().iter().copied();
        let kinds: Vec<Cut> = match self.cuts.is_empty() {
            true => all.filter(possible).collect(),
            false => self.cuts.clone(),
        };
        let impossible = kinds.iter().find(|cut| !possible(cut));
        ensure!(
            impossible.is_none(),
            "the cut `{}` is not for this --place: a namespace cannot stand still, and Linux does to its \
             machine what it wants",
            impossible.map_or("", |cut| cut.name())
        );
        Ok(kinds)
    }
}

/// Runs until the time is over. Whether every period was good;
/// an error means that there are no hosts to fail.
pub fn soak(options: &Options) -> Result<bool> {
    let _lock = demo::lock()?;
    let (kinds, of_hosts) = (options.kinds()?, options.of_hosts());
    of_hosts.validate()?;
    let ui = Ui::default();
    let mut place = demo::prepare(&of_hosts, &ui)?;

    let begin = Instant::now();
    let seed = options.seed.unwrap_or_else(rand::random);
    ui.say(&format!("  · seed {seed}"));
    let mut soak = Soak {
        of_hosts,
        pace: place.pace(),
        before_cut: options.place.before_cut(),
        random: ChaCha8Rng::seed_from_u64(seed),
        kinds,
        bag: Vec::new(),
        begin,
        end: begin + Duration::from_secs(60 * u64::from(options.minutes)),
        tally: Tally::default(),
    };
    let mut without_a_period = 0;
    while Instant::now() < soak.end {
        let before = soak.tally.periods();
        let number = soak.random.random();
        if let Err(error) = soak.on_fresh_hosts(place.as_mut(), number) {
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

struct Soak {
    of_hosts: DemoOptions,
    pace: Pace,
    before_cut: RangeInclusive<Duration>,
    random: ChaCha8Rng,
    kinds: Vec<Cut>,
    /// The kinds of cut that are still to come before all come again.
    bag: Vec<Cut>,
    begin: Instant,
    end: Instant,
    tally: Tally,
}

impl Soak {
    /// One VM, until the time is over, its table is full, or something fails.
    fn on_fresh_hosts(&mut self, place: &mut dyn Hosting, number: u64) -> Result<()> {
        let mut pair = place.make(number, &self.of_hosts)?;
        let result = self.with_vm(pair.as_mut());
        if result.is_err() {
            pair.save_logs();
        }
        result
    }

    fn with_vm(&mut self, pair: &mut dyn Pair) -> Result<()> {
        let (mut primary, pace) = (Side::A, self.pace);
        let load = self.load(pair);
        run::boot(pair, &load, pace)?;
        pair.start(primary.other(), Role::Secondary)?;
        run::protect(pair, primary, pace, &Step::hidden())?;
        for _ in 0..PERIODS_MAX {
            if Instant::now() >= self.end {
                break;
            }
            let cut = self.draw();
            let mut period = Period::new(cut);
            let ended = self.period(pair, &mut primary, &mut period);
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
        let images = pair.stop(primary).context("after the last cut")?;
        ending::examine(&images, &self.of_hosts).context("the VM was stopped, and its disk looked at")
    }

    fn period(&mut self, pair: &mut dyn Pair, primary: &mut Side, period: &mut Period) -> Result<()> {
        let (load, pace) = (self.load(pair), self.pace);
        let clock = Clock::start();
        let swarm = Swarm::start(&load, clock)?;
        let tests = (self.of_hosts.guest == Guest::Bare && !period.cut.ends_disk_tests())
            .then(|| BlockTests::start(orders_to(pair), self.random.random()));
        let moment = self.random.random_range(self.before_cut.clone());
        std::thread::sleep(moment);
        // What ends connections by itself finds the clients stopped.
        let (swarm, seen) = match period.cut.ends_connections() {
            true => (None, swarm.finish(true)?),
            false => (Some(swarm), History::default()),
        };
        let moment = self.random.random_range(Duration::ZERO..=GUEST_BUSY_MAX);
        let fences = self.of_hosts.disk == Disk::Shared;
        let gone_on = cut_and_recover(pair, pace, fences, primary, period, moment, swarm.as_ref());
        let tested = tests.map_or(Ok(0), BlockTests::finish);
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
        gone_on.and(read)?;
        period.disk_tests = tested?;
        Ok(())
    }

    /// A load whose keys no other has.
    fn load(&mut self, pair: &dyn Pair) -> Load {
        Load {
            netns: Some(pair.clients()),
            keys_per_connection: KEYS_PER_CONNECTION,
            ..Load::new(pair.service(), self.random.random())
        }
    }

    fn draw(&mut self) -> Cut {
        if self.bag.is_empty() {
            self.bag = self.kinds.clone();
            self.bag.shuffle(&mut self.random);
        }
        self.bag.pop().unwrap_or(Cut::Kill)
    }
}

/// Cuts, sees every client go on, makes a pair again, and sees them go on with that. `fences`: a winner ends
/// the loser's process.
fn cut_and_recover(
    pair: &mut dyn Pair,
    pace: Pace,
    fences: bool,
    primary: &mut Side,
    period: &mut Period,
    moment: Duration,
    swarm: Option<&Swarm>,
) -> Result<()> {
    let victim = *primary;
    let at_cut = swarm.map(Swarm::acknowledged);
    period.cut.apply(pair, victim, pace, moment)?;
    if let (Some(swarm), Some(at_cut)) = (swarm, at_cut) {
        answered(swarm, &at_cut, pace, "after the cut")?;
    }
    let (runs, status) = await_survivor(pair, period.cut, victim, pace)?;
    let expected = period.cut.survivor(victim);
    ensure!(
        expected.is_none_or(|side| side == runs),
        "the VM runs on host {} now",
        runs.name()
    );
    *primary = runs;
    period.took_over = runs != victim && !period.cut.is_planned();
    if period.took_over {
        let noted = period
            .cut
            .ends_primary()
            .then(|| pair.step_at_cut(victim))
            .flatten();
        period.step = noted.or(status.takeover.and_then(|takeover| takeover.cut_in_step));
    }
    period.cut.repair(pair, victim)?;
    if period.cut.ends_process() || (period.took_over && fences) {
        // Whoever wins fences first, and a process that dies may take a while.
        wait_for(
            "the end of the process that was told to end, or fenced",
            pace.recover_max,
            || Ok((!pair.is_running(victim)?).then_some(())),
        )?;
    }
    // The one that runs has only its networks mended.
    for side in [runs, runs.other()] {
        pair.mend(side)?;
    }
    run::protect(pair, runs, pace, &Step::hidden())?;
    match swarm {
        Some(swarm) => answered(swarm, &swarm.acknowledged(), pace, "after it was protected again"),
        None => {
            let load = orders_to(pair);
            run::await_service(pair, &load, pace)
        }
    }
}

/// Waits until each connection has got answers since.
fn answered(swarm: &Swarm, since: &[u64], pace: Pace, when: &str) -> Result<()> {
    wait_for(
        &format!("an answer to each connection {when}"),
        pace.recover_max,
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
fn await_survivor(pair: &mut dyn Pair, cut: Cut, victim: Side, pace: Pace) -> Result<(Side, Status)> {
    wait_for("a host that runs the VM", pace.recover_max, || {
        std::thread::sleep(pace.look_interval);
        let mut found = Vec::new();
        for side in Side::BOTH {
            // Who stands still or is out of reach does not answer.
            if (side == victim && cut.silences()) || !pair.is_running(side)? {
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
            found.extend(pair.status(side)?.filter(decided).map(|status| (side, status)));
        }
        // One that slept may not know yet that the VM has gone on elsewhere.
        ensure!(found.len() < 2 || cut.may_pass(), "both hosts run the VM");
        Ok(match found.len() {
            1 => found.pop(),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(place: Place, cuts: &[Cut]) -> Options {
        Options {
            place,
            minutes: 1,
            disk: None,
            arbiter: Arbiter::Etcd,
            cuts: cuts.to_vec(),
            seed: None,
        }
    }

    #[test]
    fn each_place_has_the_kinds_of_cut_that_it_can_do() {
        let here = options(Place::Here, &[]).kinds().unwrap();
        let lab = options(Place::Lab, &[]).kinds().unwrap();
        assert!(here.contains(&Cut::Reboot) && !here.contains(&Cut::Stall));
        assert!(lab.contains(&Cut::Stall) && !lab.contains(&Cut::Reboot));
        assert!(here.contains(&Cut::Power) && lab.contains(&Cut::Power));
        let wanted = [Cut::Kill, Cut::Stall];
        assert_eq!(options(Place::Lab, &wanted).kinds().unwrap(), wanted);
        let refused = options(Place::Here, &wanted).kinds().unwrap_err().to_string();
        assert!(refused.contains("`stall`"), "{refused}");
    }

    #[test]
    fn an_arbiter_on_nfs_takes_emulated_hosts() {
        let with_nfs = |place| Options {
            arbiter: Arbiter::Nfs,
            ..options(place, &[])
        };
        assert!(with_nfs(Place::Lab).of_hosts().validate().is_ok());
        assert!(with_nfs(Place::Here).of_hosts().validate().is_err());
    }
}
