//! A flush: what the guest was told is durable is in every image that the VM may be started from.

use super::replica::Blocks;
use crate::sim::vm::PAGES;

/// The guest is told that what `covered` holds is durable: on the image of `whose`, it is.
pub(in crate::sim) fn covers(covered: &Blocks, durable: &Blocks, whose: &str) -> Result<(), String> {
    match (0..PAGES).find(|&block| durable[block].0 < covered[block].0) {
        None => Ok(()),
        Some(block) => Err(format!(
            "the guest is told that write {} to block {block} is durable; the image of {whose} has only {}",
            covered[block].0, durable[block].0
        )),
    }
}

/// The VM starts from an image: all that was ever promised is there.
pub(in crate::sim) fn keeps(promised: &Blocks, image: &Blocks) -> Result<(), String> {
    match (0..PAGES).find(|&block| image[block].0 < promised[block].0) {
        None => Ok(()),
        Some(block) => Err(format!(
            "the VM starts from an image whose block {block} has write {}, although write {} was flushed",
            image[block].0, promised[block].0
        )),
    }
}

/// What was flushed, and what is flushed now.
pub(in crate::sim) fn promise(promised: &mut Blocks, covered: &Blocks) {
    for (promised, covered) in promised.iter_mut().zip(covered) {
        if covered.0 > promised.0 {
            *promised = *covered;
        }
    }
}
