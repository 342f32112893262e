//! Disks of this host that fail or grow, or are closed since the host fails.

use kemari_sync::{Growth, PrimaryEvent};
use kemari_vmm::disk::whole_blocks;

use super::super::board::Order;
use super::holds::Hold;
use super::orders::{Outcome, answer};
use super::{Input, PrimarySide};
use crate::control::Command;
use crate::threads::helpers;

/// The guest stands still, since a disk has failed.
pub struct Standstill {
    pub disk: String,
    pub reason: String,
    /// Whether the other host goes on as soon as it can.
    pub fail_over: bool,
}

impl Standstill {
    pub fn sentence(&self) -> String {
        let Self { disk, reason, .. } = self;
        format!("disk {disk} fails: {reason}; repair it, then say `kemari resume`")
    }
}

impl PrimarySide {
    /// A disk could not do something. The request stays unfinished, and the guest stands still until the
    /// operator has it tried again; or the other host goes on.
    pub(super) fn on_disk_trouble(&mut self, disk: &str, reason: &str, fail_over: bool) {
        if self.holds.has(Hold::Over) {
            return;
        }
        self.machine.begin_pause();
        self.holds.fail_disk(disk, reason, fail_over);
        if !self.leave_standstill() {
            tracing::error!("disk {disk} fails: {reason}; the VM stands still until `kemari resume`");
        }
    }

    /// Lets the other host go on with a guest that stands still here, if that is wanted and it can now. It
    /// may not have been ready when the disk failed.
    pub(super) fn leave_standstill(&mut self) -> bool {
        if !self.holds.disk().is_some_and(|standstill| standstill.fail_over) {
            return false;
        }
        let lacks = self.core.peer_lacks(self.clock.now_ms());
        let can_go_on_there = self.core.refuses_switchover().is_none() && lacks.is_none();
        if !can_go_on_there {
            return false;
        }
        let Some(Standstill { disk, reason, .. }) = self.holds.take_disk() else {
            return false;
        };
        let reason = format!("disk {disk} fails: {reason}");
        tracing::error!("{reason}; the other host goes on");
        self.events.push_back(PrimaryEvent::HostFailing { reason });
        true
    }

    /// Tries again what failed, and lets the guest run.
    pub(super) fn resume_after_trouble(&mut self) -> Result<String, String> {
        if self.holds.take_disk().is_none() {
            return Err("the VM stands still for no failure of a disk".into());
        }
        let count = self.machine.retry_disks();
        self.run_unless_held();
        Ok(format!(
            "the VM goes on; {count} requests of its disks are tried again"
        ))
    }

    /// The guest has ended here, and whoever goes on is to know whether this host may yet write to a disk
    /// that both see.
    pub(super) fn close_disks(&mut self) {
        self.demand.detach();
        self.machine.detach_nets();
        let disks = self.config.disks.iter();
        let shared = disks.filter(|disk| disk.shared && !disk.read_only);
        let shared: Vec<String> = shared.map(|disk| disk.id.clone()).collect();
        let (machine, mailbox) = (self.machine.clone(), self.mailbox.clone());
        // Other threads end what is under way, and maybe never; the loop must go on meanwhile.
        helpers::run("close disks", move || {
            machine.halt();
            let closed = machine.close_disks(&shared);
            mailbox.post(Input::DisksClosed(
                closed.map_err(|error| super::super::capture::explain(&error)),
            ));
        });
    }

    /// Looks which images have grown, and tells the guest. A replicated one grows only while the VM is alone,
    /// since the other host must know it before the guest writes there: none is returned if the protection is
    /// to end first.
    pub(super) fn begin_resize(&mut self) -> Option<Outcome> {
        if !self.has_replica_grown() {
            return Some(self.resize_disks());
        }
        match self.growth() {
            Growth::Now => Some(self.resize_disks()),
            Growth::Alone => None,
            Growth::Open => Some(Err(
                "a replicated disk has grown, but it is open who has the VM: say it again when that is \
                 decided"
                    .into(),
            )),
        }
    }

    /// Makes an image larger, by a helper: its disk may be slow. Then it is looked at.
    pub(super) fn enlarge(&self, order: Order, disk: &str, bytes: u64) {
        let server = match self.machine.disk_server(disk) {
            Ok(Some(server)) => server,
            Ok(None) => return answer(&order, Err(format!("the disk {disk} has no image here"))),
            Err(error) => return answer(&order, Err(super::super::capture::explain(&error))),
        };
        let mailbox = self.mailbox.clone();
        helpers::run("enlarge", move || {
            let result = server.enlarge(bytes);
            let result = result.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
            mailbox.post(Input::Enlarged(order, result));
        });
    }

    pub(super) fn on_enlarged(&mut self, mut order: Order, result: Result<(), String>) {
        match result {
            Ok(()) => {
                order.command = Command::Resize;
                self.on_order(order);
            }
            Err(reason) => answer(&order, Err(reason)),
        }
    }

    fn growth(&self) -> Growth {
        self.core.status(self.clock.now_ms()).protection.growth()
    }

    /// As soon as the VM is alone: the disks grow, and it is protected again.
    pub(super) fn end_resize(&mut self) -> Option<Outcome> {
        if self.growth() != Growth::Now {
            return None;
        }
        let outcome = self.resize_disks();
        self.events.push_back(PrimaryEvent::OperatorProtect);
        self.mailbox.post(Input::Wake);
        Some(outcome.map(|sentence| {
            format!(
                "{sentence}; the VM is protected again when the other host's image is as large, and copied to"
            )
        }))
    }

    pub(super) fn has_replica_grown(&self) -> bool {
        self.disks.images().any(|image| {
            let block_bytes = self
                .config
                .disks
                .iter()
                .find(|disk| disk.id == image.disk())
                .map_or(1, |disk| disk.block_size);
            let disk = self.machine.disk_image(image.disk()).ok().flatten();
            let found = disk.and_then(|disk| disk.bytes_now().ok());
            found.is_some_and(|bytes| whole_blocks(bytes, block_bytes) > image.bytes())
        })
    }

    fn resize_disks(&mut self) -> Outcome {
        let looked = self.machine.look_at_disk_sizes();
        let sizes = self.disks.images().map(|image| image.bytes()).enumerate();
        self.events
            .extend(sizes.map(|(disk, bytes)| PrimaryEvent::SourceGrown { disk, bytes }));
        let grown = looked.map_err(|error| super::super::capture::explain(&error))?;
        let sentences: Vec<String> = grown
            .iter()
            .map(|(disk, bytes)| format!("disk {disk} has {bytes} bytes now"))
            .collect();
        match sentences.is_empty() {
            true => Err(
                "no disk's image has grown: make it larger first, as with `truncate -s`, or say \
                         which with --disk and --size"
                    .into(),
            ),
            false => Ok(sentences.join("; ")),
        }
    }
}
