//! What a winner does before it acts: the state into the machine, the disks and cables to it.
//!
//! Any step can fail, for the weather or for an operator's slip, and then it is tried again: which parts are
//! left is the rule of [`kemari_sync::Restoration`], and a part that has failed half-way finds what it has
//! done. The arbiter is told that this side acts when nothing is left that could fail.

use kemari_sync::{RestorePart, Term};

use super::super::assembly;
use super::super::step::step;
use super::{SecondarySide, Standby};
use crate::config::Config;

impl SecondarySide {
    /// Brings the standby VM to the committed state, its disks and cables attached; it does not run yet, and
    /// nothing leaves it.
    pub(super) fn restore(&mut self) -> Result<(), String> {
        let (Some(term), Some(standby)) = (self.core.won_term(), self.berth.standby_mut()) else {
            return Err("no term is won, or there is no standby VM".into());
        };
        standby.restore(&self.config, &self.host, term).map_err(|error| {
            // Its TAPs must be free for the next attempt, and the network must not send here meanwhile.
            standby.seat.machine.detach_nets();
            standby.restoration.note_failed();
            format!("{error:#}")
        })
    }
}

impl Standby {
    pub(super) fn restore(&mut self, config: &Config, host: &str, term: Term) -> anyhow::Result<()> {
        let machine = &self.seat.machine;
        while let Some(part) = self.restoration.next(term) {
            match part {
                RestorePart::Load => step("load the state", || Ok(machine.load(&self.states, true)?))?,
                RestorePart::Rule => {
                    self.disks.close();
                    for image in self.disks.images() {
                        step(format_args!("rule the image of {}", image.disk()), || {
                            image.rule(term, false)
                        })?;
                    }
                }
                RestorePart::Disks => {
                    if self.trackers.is_empty() {
                        self.trackers = step("watch the disks", || self.disks.watched(machine, config))?;
                    }
                    for disk in config.disks_of(host) {
                        step(format_args!("attach disk {}", disk.disk.id), || {
                            assembly::attach_disk(machine, &disk, true)
                        })?;
                    }
                }
                RestorePart::Cards => {
                    for net in config.nets_of(host) {
                        step(format_args!("attach card {}", net.net.id), || {
                            assembly::attach_net(machine, &net)
                        })?;
                    }
                }
            }
            self.restoration.note_done(part, term);
        }
        Ok(())
    }
}
