//! Disks of this host that fail or grow.

use kemari_sync::PrimaryEvent;

use super::PrimarySide;

impl PrimarySide {
    /// A disk could not do something. The request stays unfinished, and the guest stands still until the operator has it
    /// tried again; or the other host goes on.
    pub(super) fn on_disk_trouble(&mut self, disk: &str, reason: &str, fail_over: bool) {
        let reason = format!("disk {disk} fails: {reason}");
        if fail_over && self.core.refuses_switchover().is_none() {
            tracing::error!("{reason}; the other host goes on");
            return self.events.push_back(PrimaryEvent::HostFailing { reason });
        }
        tracing::error!("{reason}; the VM stands still until `kemari resume`");
        self.standstill
            .get_or_insert(format!("{reason}; repair it, then say `kemari resume`"));
        self.machine.begin_pause();
    }

    /// Tries again what failed, and lets the guest run.
    pub(super) fn resume_after_trouble(&mut self) -> Result<String, String> {
        if self.standstill.take().is_none() {
            return Err("the VM stands still for no failure of a disk".into());
        }
        let count = self.machine.retry_disks();
        self.run_unless_paused();
        Ok(format!(
            "the VM goes on; {count} requests of its disks are tried again"
        ))
    }

    /// Looks which images have grown.
    pub(super) fn resize_disks(&mut self) -> Result<String, String> {
        let grown = self
            .machine
            .look_at_disk_sizes()
            .map_err(|error| super::super::capture::explain(&error))?;
        let sentences: Vec<String> = grown
            .iter()
            .map(|(disk, bytes)| format!("disk {disk} has {bytes} bytes now"))
            .collect();
        match sentences.is_empty() {
            true => Err("no disk's image has grown: make it larger first, as with `truncate -s`".into()),
            false => Ok(sentences.join("; ")),
        }
    }
}
