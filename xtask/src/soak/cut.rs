//! The kinds of cut.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use lab::{LocalNet, Network};
use rustix::process::Signal;

use crate::demo::local::{LocalPair, LocalPlace};
use crate::demo::pair::{Role, Side};

/// What happens to a pair in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The primary's process is killed: its connections are reset.
    Kill,
    /// The primary's host falls silent, then dies.
    Power,
    /// The link between the hosts is cut: both live, one goes on.
    Link,
    /// The primary's process is stopped, and finds itself deposed if it should ever go on.
    Freeze,
    /// The secondary's process is killed.
    Secondary,
    /// The operator exchanges the roles.
    Switchover,
    /// The primary's process stands still for about the suspicion time-out, and goes on: it may have been deposed.
    Doze,
    /// The primary's guest network loses its carrier: it gives the VM away.
    Uplink,
    /// The secondary dies, and the next one dies during its first copy.
    Copy,
    /// The arbiter does not answer; then the primary dies, and a while later the arbiter is back.
    Arbiter,
    /// The primary's process is told to end, as by a service manager.
    Term,
}

/// How long a primary stands still: around the suspicion time-out of the pair, which is a second.
const DOZE: Duration = Duration::from_millis(1000);
/// How long a copy is let go on before it is cut.
const COPY_BEFORE_CUT: Duration = Duration::from_millis(60);
/// How long the arbiter is away when the primary has died.
const ARBITER_AWAY: Duration = Duration::from_millis(1500);

impl Cut {
    /// All kinds.
    pub const ALL: [Cut; 11] = [
        Cut::Kill,
        Cut::Power,
        Cut::Link,
        Cut::Freeze,
        Cut::Secondary,
        Cut::Switchover,
        Cut::Doze,
        Cut::Uplink,
        Cut::Copy,
        Cut::Arbiter,
        Cut::Term,
    ];

    /// Its name in what is printed.
    pub fn name(self) -> &'static str {
        match self {
            Cut::Kill => "kill",
            Cut::Power => "power",
            Cut::Link => "link",
            Cut::Freeze => "freeze",
            Cut::Secondary => "secondary",
            Cut::Switchover => "switchover",
            Cut::Doze => "doze",
            Cut::Uplink => "uplink",
            Cut::Copy => "copy",
            Cut::Arbiter => "arbiter",
            Cut::Term => "term",
        }
    }

    /// Does it to the pair whose VM runs on `primary`.
    pub(crate) fn apply(self, place: &LocalPlace, pair: &mut LocalPair<'_>, primary: Side) -> Result<()> {
        let net = place.net();
        match self {
            Cut::Kill => pair.kill(primary),
            Cut::Power => {
                net.down(primary.number())?;
                pair.kill(primary)
            }
            Cut::Link => Ok(net.cut(primary.number(), Network::Replication)?),
            Cut::Freeze => pair.signal(primary, Signal::STOP),
            Cut::Secondary => pair.kill(primary.other()),
            Cut::Switchover => pair.order(primary, "switchover").map(drop),
            Cut::Doze => {
                pair.signal(primary, Signal::STOP)?;
                std::thread::sleep(DOZE);
                // It may have been fenced meanwhile.
                match pair.is_running(primary) {
                    true => pair.signal(primary, Signal::CONT),
                    false => Ok(()),
                }
            }
            Cut::Uplink => Ok(net.unplug(primary.number(), Network::Guests)?),
            Cut::Copy => {
                pair.kill(primary.other())?;
                pair.launch(primary.other(), Role::Secondary)?;
                std::thread::sleep(COPY_BEFORE_CUT);
                pair.kill(primary.other())
            }
            Cut::Arbiter => {
                place.etcd().pause()?;
                pair.kill(primary)?;
                std::thread::sleep(ARBITER_AWAY);
                Ok(place.etcd().resume()?)
            }
            Cut::Term => pair.signal(primary, Signal::TERM),
        }
    }

    /// Repairs the networks.
    pub(crate) fn repair(self, net: &LocalNet, victim: Side) -> Result<()> {
        match self {
            Cut::Power => Ok(net.up(victim.number())?),
            Cut::Link => Ok(net.join(victim.number(), Network::Replication)?),
            Cut::Uplink => Ok(net.plug(victim.number(), Network::Guests)?),
            _ => Ok(()),
        }
    }

    /// Where the VM must run afterwards; `None`: either may win.
    pub fn survivor(self, primary: Side) -> Option<Side> {
        match self {
            Cut::Link | Cut::Doze => None,
            Cut::Secondary | Cut::Copy => Some(primary),
            _ => Some(primary.other()),
        }
    }

    /// Whether the primary's process does nothing more from then on, so that its trace tells the step that was hit.
    pub fn ends_primary(self) -> bool {
        matches!(self, Cut::Kill | Cut::Power | Cut::Freeze | Cut::Arbiter)
    }

    /// Whether the VM leaves by a switchover: that is no takeover, and the pair stays one.
    pub fn is_planned(self) -> bool {
        matches!(self, Cut::Switchover | Cut::Uplink | Cut::Term)
    }

    /// Whether the pair may outlive it with its roles as they were.
    pub fn may_pass(self) -> bool {
        self == Cut::Doze
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
