//! Replicated disks: what an image holds is explained by the one execution; a half copy never runs; what no
//! copy looks at is equal; old never goes over new.

use crate::replica::{ImageState, ImageWord};
use crate::sim::image::Image;
use crate::sim::vm::{PAGES, Vm};

/// Blocks of an image: number and hash of the last write.
pub(in crate::sim) type Blocks = [(u64, u64); PAGES];

/// After a commit the secondary's image is at the committed state: it has all writes that the sync released,
/// those that were under way at the first one too, and no other. Of a write that the guest was told has
/// failed it may have either: what it was, or what was there. And it is as large as the guest knows its disk.
pub(in crate::sim) fn follows(image: &Image, committed: &Vm, epoch: u64) -> Result<(), String> {
    let (capacity, size, image) = (committed.capacity, image.recorded, &image.blocks);
    if size < capacity {
        return Err(format!(
            "after sync {epoch} the guest knows {capacity} blocks, but the replica has {size}"
        ));
    }
    let is_explained = |block: usize| {
        let (last, done) = (committed.blocks[block], committed.done[block]);
        let is_doubtful = committed.doubtful & 1 << block != 0;
        image[block] == last || (is_doubtful && (done.0..last.0).contains(&image[block].0))
    };
    match (0..capacity).find(|&block| !is_explained(block)) {
        None => Ok(()),
        Some(block) => Err(format!(
            "after sync {epoch} block {block} of the replica has write {}, but write {} is committed",
            image[block].0, committed.blocks[block].0
        )),
    }
}

/// Nothing is committed on a host, and nothing runs there, after its image is known to have failed.
pub(in crate::sim) fn is_usable(has_failed: bool, what: &str) -> Result<(), String> {
    match has_failed {
        true => Err(format!("{what} with an image that is known to have failed")),
        false => Ok(()),
    }
}

/// Whoever runs from an image runs from one moment of the VM, durably, in a reign that its record knows.
pub(in crate::sim) fn runs(word: Option<&ImageWord>, image: &Blocks, durable: &Blocks) -> Result<(), String> {
    match word {
        Some(word) if word.state == ImageState::Target => Err("the VM runs from a half copy".to_owned()),
        Some(_) if image != durable => Err("the VM runs from an image that is not durable".to_owned()),
        Some(_) => Ok(()),
        None => Err("the VM runs from an image without a record".to_owned()),
    }
}

/// A copy is between images of one size, and what is left out of it is equal on both. The source's marks are
/// what it looks at.
pub(in crate::sim) fn leaves_out(source: &Image, target: &Image) -> Result<(), String> {
    if source.recorded != target.recorded {
        return Err(format!(
            "an image of {} blocks is copied over one of {}",
            source.recorded, target.recorded
        ));
    }
    let left_out = (0..source.recorded).filter(|block| source.marks & 1 << block == 0);
    let (source, target) = (&source.blocks, &target.blocks);
    let differs = left_out.into_iter().find(|&block| source[block] != target[block]);
    match differs {
        None => Ok(()),
        Some(block) => Err(format!(
            "block {block} has write {} here and {} there, but the copy does not look at it",
            source[block].0, target[block].0
        )),
    }
}

/// An image is overwritten by a reign that is not older than what it was written in.
pub(in crate::sim) fn overwrites(term: u64, word: Option<&ImageWord>) -> Result<(), String> {
    let Some(word) = word.filter(|word| word.state != ImageState::Target) else {
        return Ok(());
    };
    let never_began = word.next_term == word.term && word.term == term + 1;
    match word.term <= term || never_began {
        true => Ok(()),
        false => Err(format!(
            "an image of term {} is overwritten in term {term}",
            word.term
        )),
    }
}

/// While blocks of a copy may still be missing, the record says so.
pub(in crate::sim) fn admits_copy(is_copying: bool, word: Option<&ImageWord>) -> Result<(), String> {
    match is_copying && word.is_some_and(|word| word.state != ImageState::Target) {
        true => Err("an image that is being copied into does not say that it is inconsistent".to_owned()),
        false => Ok(()),
    }
}
