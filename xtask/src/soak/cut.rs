//! The kinds of cut.

use std::fmt;

use anyhow::Result;
use lab::{LocalNet, Network};

use crate::demo::local::LocalPair;
use crate::demo::pair::Side;

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
}

impl Cut {
    /// All kinds.
    pub const ALL: [Cut; 6] = [
        Cut::Kill,
        Cut::Power,
        Cut::Link,
        Cut::Freeze,
        Cut::Secondary,
        Cut::Switchover,
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
        }
    }

    /// Does it to the pair whose VM runs on `primary`.
    pub(crate) fn apply(self, net: &LocalNet, pair: &mut LocalPair<'_>, primary: Side) -> Result<()> {
        match self {
            Cut::Kill => pair.kill(primary),
            Cut::Power => {
                net.down(primary.number())?;
                pair.kill(primary)
            }
            Cut::Link => Ok(net.cut(primary.number(), Network::Replication)?),
            Cut::Freeze => pair.freeze(primary),
            Cut::Secondary => pair.kill(primary.other()),
            Cut::Switchover => pair.order(primary, "switchover").map(drop),
        }
    }

    /// Repairs the networks.
    pub(crate) fn repair(self, net: &LocalNet, victim: Side) -> Result<()> {
        match self {
            Cut::Power => Ok(net.up(victim.number())?),
            Cut::Link => Ok(net.join(victim.number(), Network::Replication)?),
            _ => Ok(()),
        }
    }

    /// Where the VM must run afterwards; `None`: either may win.
    pub fn survivor(self, primary: Side) -> Option<Side> {
        match self {
            Cut::Link => None,
            Cut::Secondary => Some(primary),
            _ => Some(primary.other()),
        }
    }

    /// Whether the primary's process does nothing more from then on, so that its trace tells the step that was hit.
    pub fn ends_primary(self) -> bool {
        matches!(self, Cut::Kill | Cut::Power | Cut::Freeze)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
