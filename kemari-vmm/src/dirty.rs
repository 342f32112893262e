//! Which pages have changed: what KVM saw the guest write OR what the VMM wrote itself.
//!
//! KVM tells by a ring a vCPU where it can, else by its log, a bit for each page of RAM. Either way the pages
//! go into the [`crate::pageset::PageSet`] of their region, which the VMM's own writes mark too: each counts
//! once. With rings, pages that are written in every epoch are not asked about each time, see [`hot`].

mod hot;
mod ring;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use rapidhash::v3::rapidhash_v3;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::{Memory, PAGE_BYTES};
use hot::{Fate, Hot, Page};
use ring::Ring;

/// How KVM tells which pages the guest has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtySource {
    /// By a ring a vCPU, if this KVM has them; else by the log.
    #[default]
    Best,
    /// By the log.
    Log,
}

/// The dirty log of one machine. Reading clears it: whoever reads pages off the log owes them to the
/// secondary until they have arrived.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Memory,
    tracking: AtomicBool,
    /// Entries of each vCPU's ring; `None`: KVM's log is read.
    ring_entries: Option<usize>,
    rings: Mutex<Vec<Ring>>,
    /// Pages that are left writable; with rings only. Locked before the rings.
    hot: Mutex<Hot>,
}

impl DirtyLog {
    /// Gives a VM without vCPUs its memory, without tracking.
    pub fn new(vm: Arc<VmFd>, memory: Memory, source: DirtySource) -> Result<Self, kvm_ioctls::Error> {
        let ring_entries = match source {
            DirtySource::Best => ring::enable(&vm),
            DirtySource::Log => None,
        };
        let log = Self {
            vm,
            memory,
            tracking: AtomicBool::new(false),
            ring_entries,
            rings: Mutex::default(),
            hot: Mutex::default(),
        };
        log.set_slots(0)?;
        Ok(log)
    }

    /// Takes in a vCPU that was just made. All of them, before one runs.
    pub(crate) fn add_vcpu(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        if let Some(entries) = self.ring_entries {
            let ring = Ring::map(vcpu, entries)?;
            self.rings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(ring);
        }
        Ok(())
    }

    /// Whether KVM tells by rings.
    pub(crate) fn has_rings(&self) -> bool {
        self.ring_entries.is_some()
    }

    /// Starts to track, with nothing dirty.
    pub fn start(&self) -> Result<(), kvm_ioctls::Error> {
        if !self.tracking.swap(true, Ordering::SeqCst) {
            // A stop that failed has left pages writable that KVM would not see written. If only some of the
            // slots are logged, the next start must not take all of them for that.
            self.protect_all().inspect_err(|_| {
                self.tracking.store(false, Ordering::SeqCst);
                let _ = self.set_slots(0);
            })?;
            if self.has_rings() {
                let pages = self
                    .memory
                    .iter()
                    .map(|region| region.len() as usize / PAGE_BYTES);
                *self.hot() = Hot::new(pages);
            }
        }
        self.collect(&mut Vec::new())
    }

    /// Stops tracking: the guest's writes cost nothing any more.
    pub fn stop(&self) -> Result<(), kvm_ioctls::Error> {
        if self.tracking.swap(false, Ordering::SeqCst) {
            self.set_slots(0)?;
        }
        Ok(())
    }

    /// As [`Self::collect`], for a capture: the guest is paused. Pages that it writes all the time are among
    /// them whether it has or not.
    pub(crate) fn collect_at_capture(&self, pages: &mut Vec<u64>) -> Result<(), kvm_ioctls::Error> {
        if self.has_rings() && self.tracking.load(Ordering::SeqCst) {
            self.read_rings_at_capture()?;
        }
        self.collect(pages)
    }

    fn read_rings_at_capture(&self) -> Result<(), kvm_ioctls::Error> {
        let mut hot = self.hot();
        hot.begin(|page| self.hash(page));
        self.read_rings_by(|page| match hot.on_entry(page) {
            Fate::Protect => Some(page),
            Fate::Leave => None,
            Fate::Instead(other) => {
                self.add(other);
                Some(other)
            }
        })?;
        hot.pages().for_each(|page| self.add(page));
        if hot.is_stale() {
            // If it ends halfway nobody sees what is written until the next capture,
            // which then tries it again.
            self.protect_all().inspect_err(|_| self.add_all())?;
            hot.clear();
        }
        Ok(())
    }

    /// What became of the pages of the last capture: the content of these, in order, had not changed. If they
    /// are left writable, they need not be for much longer.
    pub fn note_unchanged(&self, pages: &[u64]) {
        if self.has_rings() {
            let first = |slot: u32| self.memory.iter().nth(slot as usize).map(|it| it.start_addr().0);
            self.hot().note(|(slot, page)| {
                first(slot)
                    .is_some_and(|first| pages.binary_search(&(first / PAGE_BYTES as u64 + page)).is_ok())
            });
        }
    }

    /// Pages that are left writable, and count as dirty at each capture.
    pub fn hot_pages(&self) -> usize {
        self.hot().len()
    }

    fn hot(&self) -> MutexGuard<'_, Hot> {
        self.hot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the page frame numbers that became dirty since the last call, in order within each region, and
    /// forgets them. Those that are left writable are not among them: they are dirty at the next capture.
    pub fn collect(&self, pages: &mut Vec<u64>) -> Result<(), kvm_ioctls::Error> {
        match self.ring_entries {
            Some(_) => self.read_rings()?,
            None if self.tracking.load(Ordering::SeqCst) => self.read_log()?,
            None => {}
        }
        for region in self.memory.iter() {
            let first = region.start_addr().0 / PAGE_BYTES as u64;
            (**region).bitmap().take(|page| pages.push(first + page as u64));
        }
        Ok(())
    }

    /// Empties the vCPUs' rings into the sets of dirty pages; a vCPU whose ring is full may then run on.
    pub(crate) fn read_rings(&self) -> Result<(), kvm_ioctls::Error> {
        self.read_rings_by(Some)
    }

    /// `protect` says which page KVM is to protect for one that was written.
    fn read_rings_by(&self, mut protect: impl FnMut(Page) -> Option<Page>) -> Result<(), kvm_ioctls::Error> {
        let mut read = 0;
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        for ring in rings.iter_mut() {
            read += ring.read(|page| {
                self.add(page);
                protect(page)
            });
        }
        if read == 0 || ring::reset(&self.vm, read)? {
            return Ok(());
        }
        self.begin_anew()
    }

    /// KVM may not see what is written to some pages: it is to see all again,
    /// and what it has missed may be anything.
    fn begin_anew(&self) -> Result<(), kvm_ioctls::Error> {
        if !self.tracking.load(Ordering::SeqCst) {
            return Ok(());
        }
        let result = self.protect_all();
        self.add_all();
        result
    }

    fn protect_all(&self) -> Result<(), kvm_ioctls::Error> {
        self.set_slots(0)?;
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// The upper half of a slot's number is its address space: SMM's, which no guest of ours has memory in.
    fn add(&self, (slot, page): Page) {
        if let Some(region) = self.memory.iter().nth(slot as usize) {
            (**region).bitmap().add_page(page as usize);
        }
    }

    fn add_all(&self) {
        for region in self.memory.iter() {
            (**region).bitmap().mark_dirty(0, region.len() as usize);
        }
    }

    /// Hash of what is in a page now.
    fn hash(&self, (slot, page): Page) -> u64 {
        let mut bytes = [0; PAGE_BYTES];
        if let Some(region) = self.memory.iter().nth(slot as usize) {
            // A page that cannot be read has no content.
            let _ = region.read_slice(&mut bytes, MemoryRegionAddress(page * PAGE_BYTES as u64));
        }
        rapidhash_v3(&bytes)
    }

    fn read_log(&self) -> Result<(), kvm_ioctls::Error> {
        for (slot, region) in self.memory.iter().enumerate() {
            let words = self.vm.get_dirty_log(slot as u32, region.len() as usize)?;
            for (index, word) in words.into_iter().enumerate() {
                (**region).bitmap().add(index, word);
            }
        }
        Ok(())
    }

    fn set_slots(&self, flags: u32) -> Result<(), kvm_ioctls::Error> {
        for (slot, region) in self.memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping lives as long as `self.memory`, which lives at least as long as the machine
            // that this log belongs to; the regions do not overlap.
            unsafe { self.vm.set_user_memory_region(slot)? };
        }
        Ok(())
    }
}
