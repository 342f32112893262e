//! Growth of a replicated disk: the operator makes the images larger, in any order, and says so to the
//! primary. Its protection ends, its record grows, its guest is told, and the VM is protected again when the
//! other image is as large.

use rand::Rng;

use crate::marks::new_extents;
use crate::primary::PrimaryEvent;
use crate::status::Growth;

use super::events::ToProcess;
use super::image::Image;
use super::invariants::replica::Blocks;
use super::vm::{PAGES, Vm};
use super::world::World;

/// Blocks of a disk that is to grow, and of one that has grown.
pub(super) const SMALL_BLOCKS: usize = 9;
const LARGE_BLOCKS: usize = 12;

/// So many blocks from the first one on, as a mask.
pub(super) fn below(blocks: usize) -> u32 {
    (1 << blocks) - 1
}

impl Image {
    /// The record is opened, or told that the image has grown: what is new counts as changed.
    pub(super) fn note_size(&mut self) {
        for block in new_extents(self.recorded as u64, self.size as u64, 1) {
            self.marks |= 1 << block;
        }
        self.recorded = self.size;
    }
}

impl Vm {
    /// The guest is told that its disk has so many blocks; of the new ones it knows nothing but what is
    /// there.
    pub(super) fn grow(&mut self, blocks: usize, content: &Blocks) {
        if blocks > self.capacity {
            let new = self.capacity..blocks;
            self.blocks[new.clone()].copy_from_slice(&content[new.clone()]);
            self.done[new.clone()].copy_from_slice(&content[new]);
            self.capacity = blocks;
        }
    }
}

impl World {
    /// How large the images are in the beginning, in blocks.
    pub(super) fn begin_images(&mut self) {
        let size = match self.grows() {
            true => SMALL_BLOCKS,
            false => PAGES,
        };
        self.hosts
            .iter_mut()
            .for_each(|host| host.image = Image::of(size));
    }

    fn grows(&self) -> bool {
        self.script.grows && self.setup.replicated
    }

    /// The operator makes a host's image larger: what is there is anything.
    pub(super) fn enlarge_image(&mut self, host: usize) {
        if !self.grows() {
            return;
        }
        for block in self.hosts[host].image.size..LARGE_BLOCKS {
            let content = (0, self.rng.random_range(1..u64::MAX));
            let image = &mut self.hosts[host].image;
            (image.blocks[block], image.durable[block]) = (content, content);
            image.size = block + 1;
        }
    }

    /// The operator finishes what was begun: all images get the size of the largest.
    pub(super) fn enlarge_all(&mut self) {
        let has_begun = self.hosts.iter().any(|host| host.image.size == LARGE_BLOCKS);
        if has_begun {
            (0..super::HOSTS).for_each(|host| self.enlarge_image(host));
        }
    }

    /// The operator says to the primary that images have grown.
    pub(super) fn order_resize(&mut self) {
        if let Some(host) = self.hosts.iter_mut().position(|host| host.primary().is_some()) {
            self.tell_after(0, host, ToProcess::Resize);
        }
    }

    /// A replicated disk grows only while the VM is alone: the protection ends first.
    pub(super) fn begin_resize(&mut self, host: usize) {
        let (now_ms, image) = (self.now_ms(), &self.hosts[host].image);
        let has_grown = image.size > image.recorded;
        let Some(side) = self.hosts[host].primary().filter(|_| has_grown) else {
            return;
        };
        match side.machine.status(now_ms).protection.growth() {
            Growth::Now => self.resize(host),
            Growth::Alone => {
                side.resizes = true;
                self.feed_primary(host, PrimaryEvent::OperatorUnprotect);
            }
            // The operator says it again.
            Growth::Open => {}
        }
    }

    /// As soon as the VM is alone it grows, and is protected again.
    pub(super) fn end_resize(&mut self, host: usize) {
        let now_ms = self.now_ms();
        let Some(side) = self.hosts[host].primary().filter(|side| side.resizes) else {
            return;
        };
        if side.machine.status(now_ms).protection.growth() == Growth::Now {
            side.resizes = false;
            self.resize(host);
            self.feed_primary(host, PrimaryEvent::OperatorProtect);
        }
    }

    /// The record grows, durably; then the guest is told.
    fn resize(&mut self, host: usize) {
        if self.disk_fails(host) {
            return;
        }
        let image = &mut self.hosts[host].image;
        image.note_size();
        let (recorded, content) = (image.recorded, image.blocks);
        self.note(|| format!("host {host}: the disk has {recorded} blocks"));
        if let Some(side) = self.hosts[host].primary() {
            side.vm.grow(recorded, &content);
        }
        let (disk, bytes) = (0, recorded as u64);
        self.feed_primary(host, PrimaryEvent::SourceGrown { disk, bytes });
    }
}
