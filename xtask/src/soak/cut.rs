//! The kinds of cut.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, anyhow};
use lab::{LocalNet, Network};
use rustix::process::Signal;

use crate::demo::local::{LocalPair, LocalPlace};
use crate::demo::pair::{Pair, Role, Side};
use crate::proof::client::ask;
use crate::proof::load::Load;

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
    /// The guest resets its queues under load, and the primary's process is killed meanwhile.
    Queues,
    /// The guest reboots, which its clients see, and the primary's process is killed meanwhile.
    Reboot,
}

/// How long a primary stands still: around the suspicion time-out of the pair, which is a second.
const DOZE: Duration = Duration::from_millis(1000);
/// How long a copy is let go on before it is cut.
const COPY_BEFORE_CUT: Duration = Duration::from_millis(60);
/// How long the arbiter is away when the primary has died.
const ARBITER_AWAY: Duration = Duration::from_millis(1500);
/// Within this time of the order the primary dies under what the guest does to its machine.
pub(super) const GUEST_BUSY_MAX: Duration = Duration::from_millis(60);
/// How long the guest may take to answer an order whose host dies.
const ORDER_MAX: Duration = Duration::from_secs(20);

impl Cut {
    /// All kinds.
    pub const ALL: [Cut; 13] = [
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
        Cut::Queues,
        Cut::Reboot,
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
            Cut::Queues => "queues",
            Cut::Reboot => "reboot",
        }
    }

    /// Does it to the pair whose VM runs on `primary`. `moment`: how long the guest is let go on with what it does.
    pub(crate) fn apply(
        self,
        place: &LocalPlace,
        pair: &mut LocalPair<'_>,
        primary: Side,
        moment: Duration,
    ) -> Result<()> {
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
            Cut::Queues => {
                let load = orders_to(pair);
                let order = std::thread::spawn(move || ask(&load, &["RESETQ"], ORDER_MAX));
                std::thread::sleep(moment);
                pair.kill(primary)?;
                // The answer comes from the other host, if it was not given before.
                let answer = order.join().map_err(|_| anyhow!("the order's thread panicked"))?;
                answer.map(drop)
            }
            Cut::Reboot => {
                ask(&orders_to(pair), &["REBOOT"], ORDER_MAX)?;
                std::thread::sleep(moment);
                pair.kill(primary)
            }
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
        matches!(
            self,
            Cut::Kill | Cut::Power | Cut::Freeze | Cut::Arbiter | Cut::Queues | Cut::Reboot
        )
    }

    /// Whether the VM leaves by a switchover: that is no takeover, and the pair stays one.
    pub fn is_planned(self) -> bool {
        matches!(self, Cut::Switchover | Cut::Uplink | Cut::Term)
    }

    /// Whether the guest itself ends its connections.
    pub fn ends_connections(self) -> bool {
        self == Cut::Reboot
    }

    /// Whether the pair may outlive it with its roles as they were.
    pub fn may_pass(self) -> bool {
        self == Cut::Doze
    }
}

/// A load for single requests: it writes no keys.
pub(super) fn orders_to(pair: &LocalPair<'_>) -> Load {
    Load {
        netns: Some(pair.clients()),
        ..Load::new(pair.service(), 0)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
