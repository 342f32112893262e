//! The kinds of cut.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use lab::Network;
use rustix::process::Signal;

use crate::demo::options::{self, Pace};
use crate::demo::pair::{Pair, Role, Side, Status};
use crate::proof::client::ask;
use crate::proof::load::Load;
use crate::tools::wait_for;

/// What happens to a pair in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Cut {
    /// The primary's process is killed: its connections are reset
    Kill,
    /// The primary's host falls silent, then dies
    Power,
    /// The link between the hosts is cut: both live, one goes on
    Link,
    /// The primary's host loses the link and its way to the arbiter, and lives
    Island,
    /// The link is cut while the arbiter does not answer, which comes back: meanwhile neither may go on
    Blind,
    /// The primary's process is stopped, and goes on when it was deposed
    Freeze,
    /// The primary's host stands still, and goes on when its VM runs elsewhere
    Stall,
    /// The secondary's process is killed
    Secondary,
    /// The secondary's host loses its power
    SecondaryPower,
    /// The operator exchanges the roles
    Switchover,
    /// The primary's process stands still for about the suspicion time-out, and goes on:
    /// it may have been deposed
    Doze,
    /// The primary's guest network loses its carrier: it gives the VM away
    Uplink,
    /// The guest and its clients do not hear each other for a while
    Clients,
    /// The secondary dies, and the next one dies during its first copy
    Copy,
    /// The arbiter does not answer; then the primary dies, and a while later the arbiter is back
    Arbiter,
    /// The primary's process is told to end, as by a service manager
    Term,
    /// The primary's terminal is gone, which ends it as well
    Hangup,
    /// The primary's TAP is pulled off its bridge: it gives the VM away
    Tap,
    /// The primary's bridge goes down: it gives the VM away
    Bridge,
    /// The arbiter does not answer for a while, and all else is well: nothing happens
    Nap,
    /// The guest resets its queues under load, and the primary's process is killed meanwhile
    Queues,
    /// The guest reboots, which its clients see, and the primary's process is killed meanwhile
    Reboot,
}

/// Within this time of the order the primary dies under what the guest does to its machine.
pub(super) const GUEST_BUSY_MAX: Duration = Duration::from_millis(60);
/// How long the guest may take to answer an order whose host dies.
pub(super) const ORDER_MAX: Duration = Duration::from_secs(20);

impl Cut {
    /// Its name in what is printed.
    pub fn name(self) -> &'static str {
        match self {
            Cut::Kill => "kill",
            Cut::Power => "power",
            Cut::Link => "link",
            Cut::Island => "island",
            Cut::Blind => "blind",
            Cut::Freeze => "freeze",
            Cut::Stall => "stall",
            Cut::Secondary => "secondary",
            Cut::SecondaryPower => "secondary-power",
            Cut::Switchover => "switchover",
            Cut::Doze => "doze",
            Cut::Uplink => "uplink",
            Cut::Clients => "clients",
            Cut::Copy => "copy",
            Cut::Arbiter => "arbiter",
            Cut::Term => "term",
            Cut::Hangup => "hangup",
            Cut::Tap => "tap",
            Cut::Bridge => "bridge",
            Cut::Nap => "nap",
            Cut::Queues => "queues",
            Cut::Reboot => "reboot",
        }
    }

    /// Does it to the pair whose VM runs on `primary`. `moment`:
    /// how long the guest is let go on with what it does.
    pub(crate) fn apply(
        self,
        pair: &mut dyn Pair,
        primary: Side,
        pace: Pace,
        moment: Duration,
    ) -> Result<()> {
        let suspicion = pace.suspicion_timeout;
        match self {
            Cut::Kill => pair.cut(primary, options::Cut::Kill),
            Cut::Power => pair.cut(primary, options::Cut::Power),
            Cut::Link => pair.cut(primary, options::Cut::Link),
            Cut::Island => {
                pair.set_joined(primary, Network::Control, false)?;
                pair.cut(primary, options::Cut::Link)
            }
            Cut::Blind => {
                pair.set_arbiter_answering(false)?;
                let cut = pair.cut(primary, options::Cut::Link);
                std::thread::sleep(suspicion * 2);
                pair.set_arbiter_answering(true).and(cut)
            }
            Cut::Freeze => pair.signal(primary, Signal::STOP),
            Cut::Stall => pair.set_host_running(primary, false),
            Cut::Secondary => pair.cut(primary.other(), options::Cut::Kill),
            Cut::SecondaryPower => pair.cut(primary.other(), options::Cut::Power),
            Cut::Switchover => pair.order(primary, &["switchover"]).map(drop),
            Cut::Doze => {
                pair.signal(primary, Signal::STOP)?;
                std::thread::sleep(suspicion);
                // It may have been fenced meanwhile.
                pair.signal(primary, Signal::CONT)
            }
            Cut::Uplink => pair.set_plugged(primary, false),
            Cut::Clients => {
                pair.set_joined(primary, Network::Guests, false)?;
                std::thread::sleep(suspicion);
                pair.set_joined(primary, Network::Guests, true)
            }
            Cut::Copy => {
                pair.cut(primary.other(), options::Cut::Kill)?;
                pair.start(primary.other(), Role::Secondary)?;
                // A small guest's copy may be over before it is seen.
                let (begin, mut parted) = (Instant::now(), false);
                wait_for("the first copy", pace.protect_max, || {
                    let status = pair.status(primary)?;
                    let is_protected = status.as_ref().is_some_and(Status::is_protected);
                    parted |= (status.is_some() && !is_protected) || begin.elapsed() > suspicion * 3;
                    let is_copying = status.is_some_and(|status| status.copy_percent() > Some(0));
                    Ok((is_copying || (parted && is_protected)).then_some(()))
                })?;
                pair.cut(primary.other(), options::Cut::Kill)
            }
            Cut::Arbiter => {
                pair.set_arbiter_answering(false)?;
                let cut = pair.cut(primary, options::Cut::Kill);
                let waits = cut.and_then(|()| waits_for_arbiter(pair, primary.other(), suspicion * 2));
                pair.set_arbiter_answering(true).and(waits)
            }
            Cut::Term => pair.signal(primary, Signal::TERM),
            Cut::Hangup => pair.signal(primary, Signal::HUP),
            Cut::Tap => pair.set_bridged(primary, false),
            Cut::Bridge => pair.set_bridge_up(primary, false),
            Cut::Nap => {
                pair.set_arbiter_answering(false)?;
                std::thread::sleep(suspicion * 3);
                pair.set_arbiter_answering(true)
            }
            Cut::Queues => {
                let load = orders_to(pair);
                let order = std::thread::spawn(move || ask(&load, &["RESETQ"], ORDER_MAX));
                std::thread::sleep(moment);
                pair.cut(primary, options::Cut::Kill)?;
                // The answer comes from the other host, if it was not given before.
                let answer = order.join().map_err(|_| anyhow!("the order's thread panicked"))?;
                answer.map(drop)
            }
            Cut::Reboot => {
                ask(&orders_to(pair), &["REBOOT"], ORDER_MAX)?;
                std::thread::sleep(moment);
                pair.cut(primary, options::Cut::Kill)
            }
        }
    }

    /// Lets go on what stands still, and plugs what was pulled: the rest is [`Pair::mend`]'s.
    pub(crate) fn repair(self, pair: &mut dyn Pair, victim: Side) -> Result<()> {
        match self {
            Cut::Freeze => pair.signal(victim, Signal::CONT),
            Cut::Stall => pair.set_host_running(victim, true),
            Cut::Uplink => pair.set_plugged(victim, true),
            Cut::Tap => pair.set_bridged(victim, true),
            Cut::Bridge => pair.set_bridge_up(victim, true),
            _ => Ok(()),
        }
    }

    /// Where the VM must run afterwards; `None`: either may win.
    pub fn survivor(self, primary: Side) -> Option<Side> {
        match self {
            Cut::Link | Cut::Blind | Cut::Doze => None,
            Cut::Secondary | Cut::SecondaryPower | Cut::Copy | Cut::Clients | Cut::Nap => Some(primary),
            _ => Some(primary.other()),
        }
    }

    /// Whether the primary's process does nothing more from then on,
    /// so that its trace tells the step that was hit.
    pub fn ends_primary(self) -> bool {
        matches!(
            self,
            Cut::Kill | Cut::Power | Cut::Freeze | Cut::Arbiter | Cut::Queues | Cut::Reboot
        )
    }

    /// Whether the primary, or its host, cannot be asked until it is repaired.
    pub fn silences(self) -> bool {
        matches!(self, Cut::Island | Cut::Freeze | Cut::Stall)
    }

    /// Whether it takes hosts that can stand still.
    pub fn needs_emulated_hosts(self) -> bool {
        self == Cut::Stall
    }

    /// Whether it takes a guest that does to its machine what it is told.
    pub fn needs_bare_guest(self) -> bool {
        matches!(self, Cut::Queues | Cut::Reboot)
    }

    /// Whether the guest itself ends its connections.
    pub fn ends_connections(self) -> bool {
        self == Cut::Reboot
    }

    /// Whether the guest's test of its disk would end by it: its memory begins anew, or its queues do.
    pub fn ends_disk_tests(self) -> bool {
        matches!(self, Cut::Reboot | Cut::Queues)
    }

    /// Whether the primary's process ends by itself, once it has given the VM away.
    pub fn ends_process(self) -> bool {
        matches!(self, Cut::Term | Cut::Hangup)
    }

    /// Whether the VM leaves by a switchover: that is no takeover, and the pair stays one.
    pub fn is_planned(self) -> bool {
        matches!(self, Cut::Switchover | Cut::Uplink | Cut::Tap | Cut::Bridge) || self.ends_process()
    }

    /// Whether the pair may outlive it with its roles as they were.
    pub fn may_pass(self) -> bool {
        matches!(self, Cut::Doze | Cut::Clients | Cut::Nap)
    }
}

/// Fails unless a side that has lost its peer waits for an arbiter that does not answer, for so long,
/// and says so.
fn waits_for_arbiter(pair: &mut dyn Pair, side: Side, time: Duration) -> Result<()> {
    std::thread::sleep(time);
    let status = pair.status(side)?.context("the survivor does not answer")?;
    let why = status.waiting_because.unwrap_or_default();
    ensure!(
        status.role == "secondary" && why.contains("arbiter"),
        "without an arbiter the survivor is {} and waits because: {why}",
        status.role
    );
    Ok(())
}

/// A load for single requests: it writes no keys.
pub(super) fn orders_to(pair: &dyn Pair) -> Load {
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
