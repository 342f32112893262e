//! Short weather, that comes and goes while one VM lives on: what `--kills` mixes in.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use super::judge::{ARBITER_KNOWN_AFTER, KNOWN_AFTER};
use super::world::{World, fill, make_room};
use crate::demo::pair::Side;

/// What comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Squall {
    /// Nothing.
    Calm,
    /// The secondary's TAP is off its bridge.
    TapUnbridged,
    /// The secondary's TAP is gone.
    TapGone,
    /// The secondary's bridge is down.
    BridgeDown,
    /// The state directory of the secondary is full.
    StateFull,
    /// The file system of both logs is full.
    LogFull,
    /// The arbiter does not answer.
    ArbiterSilent,
    /// Nobody knows any name.
    NamesDead,
    /// Both get signals that mean nothing.
    Signals,
}

impl Squall {
    /// All of them.
    pub(crate) const ALL: [Squall; 9] = [
        Squall::Calm,
        Squall::TapUnbridged,
        Squall::TapGone,
        Squall::BridgeDown,
        Squall::StateFull,
        Squall::LogFull,
        Squall::ArbiterSilent,
        Squall::NamesDead,
        Squall::Signals,
    ];

    /// Its name in what is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Squall::Calm => "calm",
            Squall::TapUnbridged => "tap-unbridged",
            Squall::TapGone => "tap-gone",
            Squall::BridgeDown => "bridge-down",
            Squall::StateFull => "state-full",
            Squall::LogFull => "log-full",
            Squall::ArbiterSilent => "arbiter-silent",
            Squall::NamesDead => "names-dead",
            Squall::Signals => "signals",
        }
    }

    /// Both sides know it after so long: what has just happened nobody can know yet.
    pub(crate) fn known_after(self) -> Duration {
        match self {
            Squall::Calm => Duration::ZERO,
            Squall::ArbiterSilent | Squall::NamesDead => ARBITER_KNOWN_AFTER,
            _ => KNOWN_AFTER,
        }
    }

    /// Begins, over a VM that runs on `primary`.
    pub(crate) fn begin(self, world: &mut World, primary: Side) -> Result<()> {
        let secondary = primary.other();
        match self {
            Squall::Calm => Ok(()),
            Squall::TapUnbridged => world.ip(secondary, "link set tap0 nomaster"),
            Squall::TapGone => world.ip(secondary, "link del tap0"),
            Squall::BridgeDown => world.ip(secondary, "link set br0 down"),
            Squall::StateFull => fill(&world.path(&secondary.state_dir()), &[]),
            Squall::LogFull => fill(&world.path("small"), &["a", "b"]),
            Squall::ArbiterSilent => world.etcd()?.set_running(false),
            Squall::NamesDead => world.set_names(""),
            Squall::Signals => {
                for signal in [Signal::PIPE, Signal::XFSZ, Signal::TTOU, Signal::TTIN] {
                    world.signal(primary, signal)?;
                    world.signal(secondary, signal)?;
                }
                Ok(())
            }
        }
    }

    /// Ends.
    pub(crate) fn end(self, world: &mut World, primary: Side) -> Result<()> {
        let secondary = primary.other();
        match self {
            Squall::Calm | Squall::Signals => Ok(()),
            Squall::TapUnbridged => world.ip(secondary, "link set tap0 master br0"),
            Squall::TapGone => world.ip(secondary, super::taps::MADE),
            Squall::BridgeDown => world.ip(secondary, "link set br0 up"),
            Squall::StateFull => make_room(&world.path(&secondary.state_dir())),
            Squall::LogFull => make_room(&world.path("small")),
            Squall::ArbiterSilent => world.etcd()?.set_running(true),
            Squall::NamesDead => world.name_arbiter(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weather_is_waited_for_and_the_arbiter_until_it_was_asked() {
        // The longest time between two questions, and the limit of an answer.
        let asked = Duration::from_secs(5 + 1);
        assert!(Squall::ArbiterSilent.known_after() > asked);
        for squall in Squall::ALL {
            let is_calm = squall == Squall::Calm;
            assert_eq!(squall.known_after().is_zero(), is_calm, "{}", squall.name());
        }
    }
}
