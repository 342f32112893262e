//! Replicated disks: what an image holds is explained by the one execution; a half copy never runs; what no copy looks
//! at is equal; old never goes over new.

use crate::replica::{ImageState, ImageWord};
use crate::sim::vm::PAGES;

/// Blocks of an image: number and hash of the last write.
pub(in crate::sim) type Blocks = [(u64, u64); PAGES];

/// After a commit the secondary's image is at the committed state: it has all writes that the sync released, those that
/// were under way at the first one too, and no other.
pub(in crate::sim) fn follows(image: &Blocks, committed: &Blocks, epoch: u64) -> Result<(), String> {
    match (0..PAGES).find(|&block| image[block] != committed[block]) {
        None => Ok(()),
        Some(block) => Err(format!(
            "after sync {epoch} block {block} of the replica has write {}, but write {} is committed",
            image[block].0, committed[block].0
        )),
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

/// What is left out of a copy is equal on both images.
pub(in crate::sim) fn leaves_out(source: &Blocks, target: &Blocks, covered: u32) -> Result<(), String> {
    let left_out = (0..PAGES).filter(|block| covered & 1 << block == 0);
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
