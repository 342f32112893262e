//! Marks: what may differ between two images, now or after a power cut of either host,
//! is marked on one of them.

use crate::sim::image::Image;

/// Of two images with a base in common a copy looks at nothing but what is marked: all else is one and the
/// same, durably, on both.
pub(in crate::sim) fn cover(a: &Image, b: &Image) -> Result<(), String> {
    let unmarked = |block: &usize| (a.marks | b.marks) & 1 << block == 0;
    let differs = |block: &usize| {
        let states = [a.blocks[*block], a.durable[*block], b.durable[*block]];
        states.into_iter().any(|state| state != b.blocks[*block])
    };
    let blocks = 0..a.recorded.min(b.recorded);
    match blocks.filter(unmarked).find(differs) {
        None => Ok(()),
        Some(block) => Err(format!(
            "block {block} is marked nowhere, but one image has write {} (durably {}), and the other {} \
             (durably {})",
            a.blocks[block].0, a.durable[block].0, b.blocks[block].0, b.durable[block].0
        )),
    }
}

/// Whether a copy between these would look at what is marked only.
pub(in crate::sim) fn have_common_base(a: &Image, b: &Image) -> bool {
    match (a.word(), b.word()) {
        (Some(a), Some(b)) => a.base == b.base,
        _ => false,
    }
}
