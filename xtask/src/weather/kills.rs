//! Whenever `kemari status --check` says 0, a death of the primary is followed by a takeover: one VM lives through as
//! many deaths as asked for, at any moments, with weather in between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::etcd::Flavour;
use super::judge::{KNOWN_AFTER, Said};
use super::setup::Setup;
use super::squall::Squall;
use super::world::{Programs, World};
use crate::demo::pair::Side;
use crate::tools::target_dir;

/// Deaths of one VM, after which a fresh one begins: each period's clients write keys of their own, and the bare guest has
/// a table of 4096.
const KILLS_OF_ONE_VM_MAX: u32 = 400;
/// Further deaths in calm weather for each round of all weathers: they come at any moment, soon after one another.
const CALM_BETWEEN: usize = 6;
/// The longest time between a look and another, while a moment is chosen.
const MOMENT_MAX: Duration = Duration::from_millis(500);
/// Most VMs that may be lost before this ends.
const FAILURES_MAX: u32 = 10;
/// A script that logs to a small file system, which is full now and then.
const TO_SMALL: &str = "exec \"$0\" \"$@\" >>{dir}/small/{host} 2>&1";
/// Its size, and that of the state directories, in KiB.
const SMALL_KIB: u32 = 4096;

/// What was seen: the last line, as JSON.
#[derive(Debug, Default, Serialize)]
struct Tally {
    /// Deaths of a primary while `status --check` said 0.
    kills: u32,
    /// Those that were followed by a takeover.
    takeovers: u32,
    /// Those that were not.
    false_protected: u32,
    /// Looks at which weather had been found out: nobody was killed.
    not_ready: u32,
    doubt: u32,
    /// VMs that nobody had in the end.
    lost_vm: u32,
    failed: u32,
    /// Deaths by the weather in which they came.
    by_weather: BTreeMap<&'static str, u32>,
    seconds: u64,
    seed: u64,
}

/// Kills the primary so often; whether each death was followed by a takeover.
pub fn kills(count: u32, programs: &Programs, seed: u64) -> Result<bool> {
    let begin = Instant::now();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tally = Tally {
        seed,
        ..Tally::default()
    };
    while tally.kills < count && tally.failed < FAILURES_MAX {
        let enough = count.min(tally.kills + KILLS_OF_ONE_VM_MAX);
        let mut world = World::new(&Setup::etcd(Flavour::Named), programs, random.random())?;
        if let Err(error) = one_vm(&mut world, enough, &mut random, &mut tally) {
            let kept = target_dir().join(format!("weather/kills-{seed}-{}", tally.kills));
            println!(
                "FAILED {error:#}\n{}--- all of it in {}",
                world.evidence(&kept),
                kept.display()
            );
            tally.failed += 1;
            tally.false_protected += u32::from(world.owed.is_some());
            tally.lost_vm += u32::from(!world.somebody_has_it());
        }
    }
    tally.seconds = begin.elapsed().as_secs();
    println!("{}", serde_json::to_string(&tally)?);
    Ok(tally.failed == 0)
}

/// One VM lives until `enough` deaths were counted.
fn one_vm(world: &mut World, enough: u32, random: &mut ChaCha8Rng, tally: &mut Tally) -> Result<()> {
    for directory in ["small", "a.state", "b.state"] {
        world.mounts.small(&world.path(directory), SMALL_KIB)?;
    }
    world.protect_as([&script(Side::A), &script(Side::B)])?;
    let (mut primary, mut bag) = (Side::A, Vec::new());
    while tally.kills < enough {
        if bag.is_empty() {
            bag = Squall::ALL.to_vec();
            bag.extend([Squall::Calm; CALM_BETWEEN]);
            bag.shuffle(random);
        }
        let squall = bag.pop().unwrap_or(Squall::Calm);
        let died = one_squall(world, squall, primary, random, tally);
        if died.with_context(|| format!("in {}, the VM was on {}", squall.name(), primary.name()))? {
            primary = primary.other();
        }
    }
    Ok(())
}

/// Weather comes; after a while, at a moment of any kind, the primary is killed if ready is said. Whether it was.
fn one_squall(
    world: &mut World,
    squall: Squall,
    primary: Side,
    random: &mut ChaCha8Rng,
    tally: &mut Tally,
) -> Result<bool> {
    let clients = world.clients()?;
    squall.begin(world, primary)?;
    // What has just happened nobody can know yet.
    let known_after = if squall == Squall::Calm {
        Duration::ZERO
    } else {
        KNOWN_AFTER
    };
    std::thread::sleep(known_after + random.random_range(Duration::ZERO..MOMENT_MAX));
    let said = world.check(primary.other())?;
    match said {
        Said::Ready => {}
        Said::Doubt => tally.doubt += 1,
        Said::NotReady => tally.not_ready += 1,
        Said::Nobody => anyhow::bail!("the secondary's process has gone"),
    }
    if said != Said::Ready {
        squall.end(world, primary)?;
        world.await_ready(primary)?;
        clients.finish()?;
        return Ok(false);
    }
    tally.kills += 1;
    *tally.by_weather.entry(squall.name()).or_default() += 1;
    world.owe(primary);
    world.end(primary)?;
    world.await_vm(primary.other(), &clients)?;
    tally.takeovers += 1;
    squall.end(world, primary)?;
    world.start(primary, "secondary", &script(primary))?;
    world.await_ready(primary.other())?;
    clients.finish()?;
    ensure!(world.owed.is_none(), "a takeover is owed");
    if tally.kills.is_multiple_of(50) {
        println!("       {} deaths, {} takeovers", tally.kills, tally.takeovers);
    }
    Ok(true)
}

fn script(side: Side) -> String {
    TO_SMALL.replace("{host}", side.name())
}
