//! Disks that fail: which of a host's disk requests do, what a primary makes of it, and the operator who has
//! it tried again.

use crate::faults::{Fault, fault};
use crate::primary::PrimaryEvent;
use crate::secondary::SecondaryEvent;

use super::events::ToProcess;
use super::vm::{Entry, Output};
use super::world::World;

/// A disk that fails until everything is healed.
pub(super) const UNTIL_HEALED: u32 = u32::MAX;
/// The operator has it tried again so long after the guest was made to stand still, in microseconds.
const RETRY_US: u64 = 50_000;

/// What becomes of a request of the guest that the disk of its host cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnError {
    /// The guest is told.
    Report,
    /// The guest stands still until the operator has it tried again.
    Pause,
    /// The other host goes on, if it can at once; else as above.
    Failover,
}

impl World {
    /// Whether what is asked of a host's disk now fails.
    pub(super) fn disk_fails(&mut self, host: usize) -> bool {
        let left = &mut self.flags.disk_failures[host];
        match *left {
            0 => return false,
            UNTIL_HEALED => {}
            _ => *left -= 1,
        }
        self.note(|| format!("host {host}: its disk fails"));
        true
    }

    /// Whether a flush of a host's image that ends now fails.
    pub(super) fn flush_fails(&mut self, host: usize) -> bool {
        let left = &mut self.flags.flush_failures[host];
        let fails = *left > 0;
        *left = left.saturating_sub(1);
        if fails {
            self.note(|| format!("host {host}: a flush of its image fails"));
        }
        fails || self.disk_fails(host)
    }

    /// The disk of a primary could not do a request of its guest.
    pub(super) fn request_failed(&mut self, host: usize, number: u64) {
        let on_error = self.setup.on_error;
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        // Neither the end of the VM nor a reset waits for an operator.
        let is_ending = side.draining && !side.machine.is_switching();
        if on_error == OnError::Report || is_ending || side.vm.is_resetting() {
            return self.tell_failed(host, number);
        }
        side.failed.push(number);
        if on_error == OnError::Failover && side.machine.refuses_switchover().is_none() {
            return self.fail_host(host);
        }
        if !std::mem::replace(&mut side.stands_still, true) {
            self.tell_after(RETRY_US, host, ToProcess::RetryDisk);
        }
    }

    /// Whether the guest stands still, as its operator wants it, until its disk is well again.
    pub(super) fn stands_still_for_good(&mut self) -> bool {
        let failures = self.flags.disk_failures;
        let mut hosts = self.hosts.iter_mut().zip(failures);
        self.setup.on_error == OnError::Pause
            && hosts.any(|(it, failures)| failures == UNTIL_HEALED && it.primary().is_some())
    }

    /// The guest is told. What a write has left, nobody knows.
    pub(super) fn tell_failed(&mut self, host: usize, number: u64) {
        if let Some(side) = self.hosts[host].primary()
            && let Some(Output::Write(reply)) = side.output(number)
        {
            let page = reply.page;
            self.write_ended(host, number, page, false);
        }
        // Asked here alone: what a guest is told of its request is its device's, in `kemari-vmm`.
        let done = fault(Fault::HideFailure);
        self.tell_after(0, host, ToProcess::WriteDone(number, done));
    }

    /// The operator has repaired it, as far as he knows.
    pub(super) fn retry_disk(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        side.stands_still = false;
        self.retry_failed(host);
        self.run_guest(host);
    }

    /// What has failed is tried again.
    pub(super) fn retry_failed(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let failed = std::mem::take(&mut side.failed);
        let entries = side.vm.list.iter();
        let again: Vec<Entry> = entries
            .filter(|entry| failed.contains(&entry.number))
            .cloned()
            .collect();
        again.iter().for_each(|entry| self.issue(host, entry));
    }

    /// A primary that hands over gives its disk nothing more, and waits for what the disk has, if another
    /// host could see what becomes of it.
    pub(super) fn close_disk(&mut self, host: usize) {
        let is_shared = self.setup.has_disk && !self.setup.replicated;
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        (side.paused, side.gate_open, side.draining, side.closing) = (true, false, true, true);
        side.writes_in_flight = match is_shared {
            // What has failed is left to whoever goes on.
            true => side.writes_in_flight - side.failed.len() as u32,
            false => 0,
        };
        side.failed.clear();
        self.check_drained(host);
    }

    /// The host of a primary cannot go on.
    pub(super) fn fail_host(&mut self, host: usize) {
        let reason = "its disk fails".to_owned();
        self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::HostFailing { reason }));
    }

    /// The guest of a primary runs, and cannot be followed.
    pub(super) fn fail_protection(&mut self, host: usize) {
        let reason = "its record cannot be written".to_owned();
        self.tell_after(
            0,
            host,
            ToProcess::Primary(PrimaryEvent::ProtectionFailing { reason }),
        );
    }

    /// The image of a secondary could not be written: nothing more is carried out on it.
    pub(super) fn replica_fails(&mut self, host: usize) {
        // Asked here alone: it is for the driver to tell the mechanism.
        if fault(Fault::AckFailedWrite) {
            return;
        }
        let delay_us = self.some_us(500);
        if let Some(side) = self.hosts[host].secondary().filter(|side| !side.image.has_failed) {
            side.image.has_failed = true;
            let generation = side.image.generation;
            self.tell_after(delay_us, host, ToProcess::ReplicaFailed(generation));
        }
    }

    /// The secondary's machine learns it, unless it has given the standby up meanwhile.
    pub(super) fn replica_failed(&mut self, host: usize, generation: u64) {
        let side = self.hosts[host].secondary();
        let Some(side) = side.filter(|side| side.image.generation == generation) else {
            return;
        };
        side.image.is_known_failed = true;
        let reason = "its image cannot be written".to_owned();
        self.feed_secondary(host, SecondaryEvent::ReplicaFailed { reason });
    }
}
