//! When `kemari status --check` says 0 and what has happened is some seconds old, a death of the primary is
//! followed by a takeover: one VM lives through as many deaths as asked for, at any moments, with weather in
//! between. Who was killed comes back as the secondary, and the next death is the other's.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::etcd::Flavour;
use super::judge::Said;
use super::setup::Setup;
use super::squall::Squall;
use super::world::{Programs, World};
use crate::demo::pair::Side;
use crate::proof::clients::Clients;
use crate::tools::target_dir;

/// Deaths of one VM, after which a fresh one begins: each period's clients write keys of their own, and the
/// bare guest has a table of 4096.
const KILLS_OF_ONE_VM_MAX: u32 = 400;
/// Further deaths in calm weather for each round of all weathers: they come at any moment,
/// soon after one another.
const CALM_BETWEEN: usize = 6;
/// The longest time until a moment that is chosen for a death.
const MOMENT_MAX: Duration = Duration::from_millis(500);
/// Most VMs that may be lost before this ends.
const FAILURES_MAX: u32 = 10;
/// A script that logs to a small file system, which is full now and then.
const TO_SMALL: &str = "exec \"$0\" \"$@\" >>{dir}/small/{host} 2>&1";
/// The sizes of that, which must do for a VM's whole life, and of the state directories, in KiB.
const SMALL: [(&str, u32); 3] = [("small", 32 << 10), ("a.state", 4 << 10), ("b.state", 4 << 10)];
/// Several pairs and what else runs here share few processors: a host that gets none for a while has not
/// died. Who is killed is known by its connections, which are reset.
const PATIENT: &str = "[protection]\nsuspicion_timeout_ms = 8000";
/// A pair is ready again after so long: that is no part of what is proved, but it must end.
const READY_MAX: Duration = Duration::from_secs(90);
/// Deaths between two words about them.
const TOLD_EVERY: u32 = 50;

/// What was seen: the last line, as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Deaths of a primary while `status --check` said 0.
    kills: u32,
    /// Those that were followed by a takeover.
    takeovers: u32,
    /// Those that were not.
    false_protected: u32,
    /// Looks at which weather had been found out: the primary was killed when it was over,
    /// and 0 was said again.
    not_ready: u32,
    doubt: u32,
    /// VMs that nobody had in the end.
    lost_vm: u32,
    failed: u32,
    /// Deaths by the weather in which they came, or after which.
    by_weather: BTreeMap<String, u32>,
    /// How long the whole took.
    pub seconds: u64,
    seed: u64,
}

impl Tally {
    /// Nothing was seen yet.
    pub(crate) fn of(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Another pair's is added.
    pub(crate) fn add(&mut self, other: Tally) {
        self.kills += other.kills;
        self.takeovers += other.takeovers;
        self.false_protected += other.false_protected;
        self.not_ready += other.not_ready;
        self.doubt += other.doubt;
        self.lost_vm += other.lost_vm;
        self.failed += other.failed;
        for (weather, kills) in other.by_weather {
            *self.by_weather.entry(weather).or_default() += kills;
        }
    }

    fn count_kill(&mut self, weather: String) {
        self.kills += 1;
        *self.by_weather.entry(weather).or_default() += 1;
    }
}

/// Kills the primary so often; whether each death was followed by a takeover.
pub(crate) fn kills(count: u32, programs: &Programs, seed: u64) -> Result<bool> {
    let begin = Instant::now();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tally = Tally::of(seed);
    while tally.kills < count && tally.failed < FAILURES_MAX {
        let enough = count.min(tally.kills + KILLS_OF_ONE_VM_MAX);
        let setup = Setup::etcd(Flavour::Named).with(PATIENT);
        let world = World::new(&setup, programs, random.random())?;
        let mut life = Life {
            world,
            primary: Side::A,
            random: &mut random,
            tally: &mut tally,
        };
        let lived = life.live(enough);
        // A process that was to die would be missed by nobody.
        if let Err(error) = life.world.breaches().and(lived) {
            let shown = life.autopsy(seed);
            println!("FAILED {error:#}\n{shown}");
        }
    }
    tally.seconds = begin.elapsed().as_secs();
    println!("{}", serde_json::to_string(&tally)?);
    Ok(tally.failed == 0)
}

/// One VM.
struct Life<'a> {
    world: World,
    /// Who has it.
    primary: Side,
    random: &'a mut ChaCha8Rng,
    tally: &'a mut Tally,
}

impl Life<'_> {
    /// Goes on until so many deaths were counted.
    fn live(&mut self, enough: u32) -> Result<()> {
        for (directory, kib) in SMALL {
            let path = self.world.path(directory);
            self.world.mounts.small(&path, kib)?;
        }
        self.world.start(Side::A, "run", &script(Side::A))?;
        self.world.await_service()?;
        self.world.start(Side::B, "secondary", &script(Side::B))?;
        self.world.await_ready_within(Side::A, READY_MAX)?;
        let mut bag = Vec::new();
        while self.tally.kills < enough {
            if bag.is_empty() {
                bag = Squall::ALL.to_vec();
                bag.extend([Squall::Calm; CALM_BETWEEN]);
                bag.shuffle(self.random);
            }
            let (squall, primary) = (bag.pop().unwrap_or(Squall::Calm), self.primary);
            self.one_squall(squall)
                .with_context(|| format!("in {}, the VM was on {}", squall.name(), primary.name()))?;
            if self.tally.kills.is_multiple_of(TOLD_EVERY) {
                let (kills, takeovers) = (self.tally.kills, self.tally.takeovers);
                println!("       {kills} deaths, {takeovers} takeovers");
            }
        }
        Ok(())
    }

    /// Weather comes. At a moment of any kind, when it must be known, the primary is killed if ready is said;
    /// else after the weather.
    fn one_squall(&mut self, squall: Squall) -> Result<()> {
        let clients = self.world.clients()?;
        let primary = self.primary;
        squall.begin(&mut self.world, primary)?;
        std::thread::sleep(squall.known_after());
        if self.kill_if_ready(squall.name().to_owned(), &clients)? {
            squall.end(&mut self.world, primary)?;
        } else {
            squall.end(&mut self.world, primary)?;
            self.world.await_ready_within(primary, READY_MAX)?;
            let after = format!("after {}", squall.name());
            ensure!(
                self.kill_if_ready(after, &clients)?,
                "ready was said, and is not any more"
            );
        }
        self.world.start(primary, "secondary", &script(primary))?;
        self.world.await_ready_within(self.primary, READY_MAX)?;
        clients.finish()
    }

    /// Kills the primary if either side says ready, and sees the takeover; whether it was said.
    fn kill_if_ready(&mut self, weather: String, clients: &Clients) -> Result<bool> {
        std::thread::sleep(self.random.random_range(Duration::ZERO..MOMENT_MAX));
        let said = Side::BOTH.map(|side| self.world.check(side));
        let [a, b] = said;
        let said = [a?, b?];
        if said.contains(&Said::Nobody) {
            bail!("a process has gone");
        }
        if !said.contains(&Said::Ready) {
            let is_doubt = said.contains(&Said::Doubt);
            self.tally.doubt += u32::from(is_doubt);
            self.tally.not_ready += u32::from(!is_doubt);
            return Ok(false);
        }
        self.tally.count_kill(weather);
        let (dies, goes_on) = (self.primary, self.primary.other());
        self.world.owe(dies);
        self.world.end(dies)?;
        self.world.await_vm(goes_on, clients)?;
        ensure!(self.world.owed.is_none(), "a takeover is owed");
        self.tally.takeovers += 1;
        self.primary = goes_on;
        Ok(true)
    }

    /// Counts a failure; what is shown of it.
    fn autopsy(&mut self, seed: u64) -> String {
        let kept = target_dir().join(format!("weather/kills-{seed}-{}", self.tally.kills));
        for side in Side::BOTH {
            let log = self.world.path("small").join(side.name());
            let _ = fs::copy(log, self.world.log_path(side));
        }
        let shown = self.world.evidence(&kept);
        self.tally.failed += 1;
        self.tally.false_protected += u32::from(self.world.owed.is_some());
        self.tally.lost_vm += u32::from(!self.world.somebody_has_it());
        format!("{shown}--- all of it in {}", kept.display())
    }
}

fn script(side: Side) -> String {
    TO_SMALL.replace("{host}", side.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_pairs_have_seen_is_added() {
        let mut total = Tally::of(7);
        for _ in 0..2 {
            let mut tally = Tally::of(1);
            tally.count_kill("calm".into());
            tally.failed = 1;
            total.add(tally);
        }
        assert_eq!((total.kills, total.failed, total.seed), (2, 2, 7));
        assert_eq!(total.by_weather["calm"], 2);
    }
}
