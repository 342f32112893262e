//! The kinds of trouble.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use lab::Behaviour;
use rand::Rng;

use super::{DELAY, Ordeal, SLOW_FOR, answered};
use crate::demo::options::Cut;
use crate::demo::pair::{Pair, Side, Status};
use crate::proof::client::Swarm;
use crate::tools::wait_for;

/// A copy is cut off at the latest so long after it has begun.
const COPY_CUT_MAX: Duration = Duration::from_secs(15);
/// A reason is waited for so long: meanwhile the secondary is tried again and again.
const SHOWN_FOR: Duration = Duration::from_secs(5);
/// A secondary without room for its image is watched for so long.
const FULL_FOR: Duration = Duration::from_secs(20);

/// What is done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Trial {
    /// The secondary's disk is slow.
    SlowSecondary,
    /// The primary's disk is slow.
    SlowPrimary,
    /// Every write to the secondary's disk fails.
    FailingSecondary,
    /// The secondary loses its power, and again during the copy that brings it up to date.
    CutCopy,
    /// The secondary's image is on a file system that is full.
    FullSecondary,
    /// Every write to the primary's disk fails.
    FailingPrimary,
    /// A VM by itself, with two vCPUs and two queues, discards and zeroes parts of its disk.
    Discard,
}

impl Trial {
    /// All kinds.
    pub const ALL: [Trial; 7] = [
        Trial::SlowSecondary,
        Trial::SlowPrimary,
        Trial::FailingSecondary,
        Trial::CutCopy,
        Trial::FullSecondary,
        Trial::FailingPrimary,
        Trial::Discard,
    ];

    /// Undergoes it: the VM is protected before, and afterwards, and its clients are answered all the time.
    pub(super) fn undergo(self, ordeal: &mut Ordeal<'_>, swarm: &Swarm) -> Result<()> {
        match self {
            Trial::SlowSecondary => slow(ordeal, ordeal.secondary(), swarm),
            Trial::SlowPrimary => slow(ordeal, ordeal.primary, swarm),
            Trial::FailingSecondary => failing_secondary(ordeal, swarm),
            Trial::CutCopy => cut_copy(ordeal, swarm),
            Trial::FullSecondary => full_secondary(ordeal, swarm),
            Trial::FailingPrimary => failing_primary(ordeal, swarm),
            Trial::Discard => anyhow::bail!("it has a VM of its own"),
        }?;
        answered(swarm, &swarm.acknowledged())
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trial::SlowSecondary => "the secondary's disk is slow",
            Trial::SlowPrimary => "the primary's disk is slow",
            Trial::FailingSecondary => "the secondary's disk fails",
            Trial::CutCopy => "the copy to the secondary is cut off",
            Trial::FullSecondary => "the secondary's disk is full",
            Trial::FailingPrimary => "the primary's disk fails",
            Trial::Discard => "a guest uses two queues, discards and zeroes",
        })
    }
}

const FAILS: Behaviour = Behaviour {
    delay: Duration::ZERO,
    fails_writes: true,
};

fn slow(ordeal: &mut Ordeal<'_>, side: Side, swarm: &Swarm) -> Result<()> {
    let since = swarm.acknowledged();
    ordeal.behave(
        side,
        Behaviour {
            delay: DELAY,
            fails_writes: false,
        },
    )?;
    ordeal.watch(SLOW_FOR)?;
    answered(swarm, &since)?;
    ordeal.behave(side, Behaviour::default())?;
    // They may have parted over it.
    ordeal.pair.mend(ordeal.secondary())?;
    ordeal.await_protection()
}

fn failing_secondary(ordeal: &mut Ordeal<'_>, swarm: &Swarm) -> Result<()> {
    ordeal.behave(ordeal.secondary(), FAILS)?;
    ordeal.await_parting()?;
    answered(swarm, &swarm.acknowledged())?;
    ordeal.watch(SHOWN_FOR)?;
    ordeal.ensure_said("cannot be written")?;
    ordeal.behave(ordeal.secondary(), Behaviour::default())?;
    ordeal.pair.mend(ordeal.secondary())?;
    ordeal.await_protection()
}

fn cut_copy(ordeal: &mut Ordeal<'_>, swarm: &Swarm) -> Result<()> {
    let secondary = ordeal.secondary();
    ordeal.pair.cut(secondary, Cut::Power)?;
    ordeal.await_parting()?;
    answered(swarm, &swarm.acknowledged())?;
    ordeal.pair.mend(secondary)?;
    let limit = super::PACE.protect_max;
    wait_for("the begin of a copy", limit, || {
        ordeal.look()?;
        let status = ordeal.pair.status(ordeal.primary)?;
        Ok(status.as_ref().and_then(Status::copy_percent))
    })?;
    let moment = ordeal.random.random_range(Duration::ZERO..COPY_CUT_MAX);
    ordeal.watch(moment)?;
    ordeal.pair.cut(secondary, Cut::Power)?;
    answered(swarm, &swarm.acknowledged())?;
    ordeal.pair.mend(secondary)?;
    ordeal.await_protection()
}

fn full_secondary(ordeal: &mut Ordeal<'_>, swarm: &Swarm) -> Result<()> {
    let secondary = ordeal.secondary();
    ordeal.pair.cut(secondary, Cut::Kill)?;
    ordeal.await_parting()?;
    ordeal.pair.start_with_full_disk(secondary)?;
    ordeal.watch(FULL_FOR)?;
    answered(swarm, &swarm.acknowledged())?;
    anyhow::ensure!(
        !ordeal.look()?,
        "the VM is protected by a disk without room for it"
    );
    ordeal.ensure_said("No space")?;
    ordeal.pair.end(secondary)?;
    ordeal.pair.mend(secondary)?;
    ordeal.await_protection()
}

/// Whoever has the good disk goes on.
fn failing_primary(ordeal: &mut Ordeal<'_>, swarm: &Swarm) -> Result<()> {
    let (bad, good) = (ordeal.primary, ordeal.secondary());
    ordeal.behave(bad, FAILS)?;
    wait_for(
        "a step down to the host with the good disk",
        super::NOTICED_MAX,
        || {
            ordeal.look()?;
            let status = ordeal.pair.status(good)?;
            Ok(status.filter(Status::is_primary).map(drop))
        },
    )?;
    answered(swarm, &swarm.acknowledged())?;
    ordeal.behave(bad, Behaviour::default())?;
    ordeal.pair.mend(bad)?;
    ordeal.await_protection()
}
