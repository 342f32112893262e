//! Short weather, that comes and goes while one VM lives on: what `--kills` mixes in.

use anyhow::Result;
use rustix::process::Signal;

use super::world::{World, fill, make_room};
use crate::demo::pair::Side;

/// What comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Squall {
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
    pub const ALL: [Squall; 9] = [
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
    pub fn name(self) -> &'static str {
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

    /// Begins, over a VM that runs on `primary`.
    pub fn begin(self, world: &mut World, primary: Side) -> Result<()> {
        let secondary = primary.other();
        match self {
            Squall::Calm => Ok(()),
            Squall::TapUnbridged => world.ip(secondary, "link set tap0 nomaster"),
            Squall::TapGone => world.ip(secondary, "link del tap0"),
            Squall::BridgeDown => world.ip(secondary, "link set br0 down"),
            Squall::StateFull => fill(&world.path(&super::setup::state_dir(secondary)), &[]),
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
    pub fn end(self, world: &mut World, primary: Side) -> Result<()> {
        let secondary = primary.other();
        match self {
            Squall::Calm | Squall::Signals => Ok(()),
            Squall::TapUnbridged => world.ip(secondary, "link set tap0 master br0"),
            Squall::TapGone => world.ip(secondary, super::taps::MADE),
            Squall::BridgeDown => world.ip(secondary, "link set br0 up"),
            Squall::StateFull => make_room(&world.path(&super::setup::state_dir(secondary))),
            Squall::LogFull => make_room(&world.path("small")),
            Squall::ArbiterSilent => world.etcd()?.set_running(true),
            Squall::NamesDead => world.name_arbiter(),
        }
    }
}
