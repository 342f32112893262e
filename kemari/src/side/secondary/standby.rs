//! The standby VM: built and waiting, its memory the committed copy.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kemari_sync::wire::{Page, PageContent, apply_delta, base_checksum};
use kemari_sync::{Restoration, SessionId};
use kemari_vmm::machine::MachineSpec;
use kemari_vmm::memory::{self, LazyCopy, PAGE_BYTES};
use kemari_vmm::state::StateBlob;

use super::super::primary::Seat;
use super::super::readiness::Opened;
use super::super::step::step;
use super::super::{assembly, faults};
use super::build::{BuildError, BuildId, Step, Steps};
use super::disks::StandbyDisks;
use super::trial::Trial;
use crate::config::Config;
use crate::replica::{Image, Remains, Report, Tracker};

/// A machine that has not run, and the last committed state.
pub struct Standby {
    /// Its machine, and the place of the primary that this side may become.
    pub seat: Seat,
    /// The states of the last commit; its pages are in the machine's memory.
    pub states: Vec<StateBlob>,
    /// Whether they were tried on it.
    pub trial: Trial,
    /// What is done of its restore.
    pub restoration: Restoration,
    /// Which build it is of.
    pub build: BuildId,
    /// The session that it serves.
    pub session: SessionId,
    /// Its replicated disks.
    pub disks: StandbyDisks,
    /// The files of their images, as they were when they were opened.
    pub opened: Opened,
    /// A copy of the memory that a drill needs: it gets each page before that changes.
    pub copy: Option<Arc<LazyCopy>>,
    /// Who watches those disks, once they are the machine's.
    pub trackers: Vec<Arc<Tracker>>,
}

impl Standby {
    /// Opens the images of its replicated disks, builds the machine, populates and locks its memory.
    pub fn build(
        config: &Config,
        host: &str,
        spec: MachineSpec,
        (build, session): (BuildId, SessionId),
        overwrite_disks: Option<&str>,
        steps: &Steps,
        report: impl Fn(usize, Report) + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        steps.enter(Step::Images);
        let images = step("open the images", || {
            Image::open_all(config, host, overwrite_disks)
        })?;
        let replicas = step("start the replicas", || {
            assembly::replicas(config, host, images, report)
        })?;
        let images = replicas.iter().map(|replica| replica.image());
        let opened = Opened::at(images.map(|image| (image.disk(), image.path())));
        steps.enter(Step::Memory);
        thread::sleep(faults::prepare_delay());
        let seat = step("build the machine", || Seat::make(config, host, spec))?;
        step("lock the memory", || {
            memory::populate_and_lock(seat.machine.memory()).context("the standby VM cannot be made ready")
        })?;
        Ok(Self {
            seat,
            states: Vec::new(),
            trial: Trial::default(),
            restoration: Restoration::default(),
            build,
            session,
            disks: StandbyDisks::new(config, replicas),
            opened,
            copy: None,
            trackers: Vec::new(),
        })
    }

    /// Carries out what its replicas were given, closes their images and gives its memory back. An image that
    /// finishes nothing for longer than `limit` is not waited for.
    pub fn end(mut self, limit: Duration) -> Result<(), BuildError> {
        let remains = self.disks.finish(limit);
        match remains.first().and_then(Remains::reason) {
            Some(reason) => Err(BuildError { reason, remains }),
            None => Ok(()),
        }
    }

    /// Whether the guest has this page frame.
    pub fn has_page(&self, gfn: u64) -> bool {
        memory::has_page(self.seat.machine.memory(), gfn)
    }

    /// Checksum of a page as last committed, for a delta of it.
    ///
    /// # Panics
    /// If the page was not checked with [`Standby::has_page`].
    pub fn page_checksum(&self, gfn: u64) -> u32 {
        let mut page = [0; PAGE_BYTES];
        memory::read_page(self.seat.machine.memory(), gfn, &mut page).expect("the page was checked");
        base_checksum(&page)
    }

    /// Writes a page into the committed copy.
    ///
    /// # Panics
    /// If the page was not checked with [`Standby::has_page`].
    pub fn write_page(&self, page: Page<'_>) {
        if let Some(copy) = &self.copy {
            copy.keep(page.gfn);
        }
        let memory = self.seat.machine.memory();
        let write = |offset, bytes: &[u8]| {
            memory::write_in_page(memory, page.gfn, offset, bytes).expect("the page was checked");
        };
        match page.content {
            PageContent::Zero => write(0, &[0; PAGE_BYTES]),
            PageContent::Raw(bytes) => write(0, bytes),
            PageContent::Delta { runs, .. } => apply_delta(runs, write),
        }
    }
}
