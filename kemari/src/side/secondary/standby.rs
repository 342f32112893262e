//! The standby VM: built and waiting, its memory the committed copy.

use std::sync::Arc;

use anyhow::Context;
use kemari_sync::SessionId;
use kemari_sync::wire::{Page, PageContent};
use kemari_vmm::machine::{Machine, MachineSpec};
use kemari_vmm::memory::{self, PAGE_BYTES};
use kemari_vmm::state::StateBlob;

use super::super::assembly;
use super::super::mailbox::Mailbox;
use super::super::primary;
use super::disks::StandbyDisks;
use crate::config::Config;
use crate::replica::{Image, Report, Tracker};

/// A machine that has not run, and the last committed state.
pub struct Standby {
    pub machine: Arc<Machine>,
    /// Where the machine tells what happens to it: the loop of the primary that it may become.
    pub mailbox: Arc<Mailbox<primary::Input>>,
    /// The states of the last commit; its pages are in the machine's memory.
    pub states: Vec<StateBlob>,
    /// Whether the machine has loaded them: not again, once packets may have come in.
    pub loaded: bool,
    /// The session that it was built for.
    pub session: SessionId,
    /// Its replicated disks.
    pub disks: StandbyDisks,
    /// Who watches those disks, once they are the machine's.
    pub trackers: Vec<Arc<Tracker>>,
}

impl Standby {
    /// Builds the machine, populates and locks its memory, and opens the images of its replicated disks.
    pub fn build(
        config: &Config,
        host: &str,
        spec: MachineSpec,
        session: SessionId,
        overwrite_disks: Option<&str>,
        report: impl Fn(usize, Report) + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let images = Image::open_all(config, host, overwrite_disks)?;
        let replicas = assembly::replicas(config, host, images, report)?;
        let mailbox = Mailbox::new()?;
        let sink = mailbox.clone();
        let events = Arc::new(move |event| sink.post(primary::Input::Machine(event)));
        let machine = assembly::build(config, host, spec, events)?;
        memory::populate_and_lock(machine.memory()).context("the standby VM cannot be made ready")?;
        Ok(Self {
            machine: Arc::new(machine),
            mailbox,
            states: Vec::new(),
            loaded: false,
            session,
            disks: StandbyDisks::new(config, replicas),
            trackers: Vec::new(),
        })
    }

    /// Whether the guest has this page frame.
    pub fn has_page(&self, gfn: u64) -> bool {
        memory::has_page(self.machine.memory(), gfn)
    }

    /// Writes a page into the committed copy.
    ///
    /// # Panics
    /// If the page was not checked with [`Standby::has_page`].
    pub fn write_page(&self, page: Page<'_>) {
        let bytes: &[u8] = match page.content {
            PageContent::Zero => &[0; PAGE_BYTES],
            PageContent::Raw(bytes) => bytes,
        };
        memory::write_page(self.machine.memory(), page.gfn, bytes).expect("the page was checked");
    }
}
