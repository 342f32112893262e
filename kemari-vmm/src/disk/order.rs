//! One order for what overlaps, over all queues of a disk.
//!
//! Jobs that overlap, at least one of which changes the disk, are carried out one after the other in the
//! order in which they came. All others go side by side. A flush waits for nothing: it covers what was
//! finished before it came.

use std::collections::VecDeque;
use std::ops::Range;

/// What a job does with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads it.
    Reads,
    /// Writes it or makes it zeros.
    Changes,
}

struct Place {
    id: u64,
    range: Range<u64>,
    access: Access,
    /// Number of earlier ones that must be finished before.
    waits_for: usize,
}

impl Place {
    fn conflicts(&self, range: &Range<u64>, access: Access) -> bool {
        (self.access == Access::Changes || access == Access::Changes)
            && self.range.start.max(range.start) < self.range.end.min(range.end)
    }
}

/// The unfinished jobs of a disk, in order.
#[derive(Default)]
pub(crate) struct Order {
    places: VecDeque<Place>,
}

impl Order {
    /// Appends a job. Returns whether it may be carried out at once; if not,
    /// a later [`Order::finish`] names it.
    pub(crate) fn push(&mut self, id: u64, range: Range<u64>, access: Access) -> bool {
        let waits_for = self
            .places
            .iter()
            .filter(|place| place.conflicts(&range, access))
            .count();
        self.places.push_back(Place {
            id,
            range,
            access,
            waits_for,
        });
        waits_for == 0
    }

    /// A job is finished. Returns those that may now be carried out, in order.
    pub(crate) fn finish(&mut self, id: u64) -> Vec<u64> {
        let Some(index) = self.places.iter().position(|place| place.id == id) else {
            return Vec::new();
        };
        let Some(finished) = self.places.remove(index) else {
            return Vec::new();
        };
        let mut free = Vec::new();
        for place in self.places.range_mut(index..) {
            if place.conflicts(&finished.range, finished.access) {
                place.waits_for -= 1;
                if place.waits_for == 0 {
                    free.push(place.id);
                }
            }
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{Changes, Reads};

    #[test]
    fn what_overlaps_waits_and_nothing_else() {
        let mut order = Order::default();
        assert!(order.push(0, 0..8, Changes));
        assert!(order.push(1, 8..16, Changes), "it only touches the first");
        assert!(!order.push(2, 7..9, Changes), "it overlaps both");
        assert!(
            !order.push(3, 8..9, Reads),
            "a read waits for the writes before it"
        );
        assert!(order.push(4, 20..30, Reads));
        assert!(order.push(5, 20..30, Reads), "reads do not wait for each other");
        assert!(
            !order.push(6, 29..40, Changes),
            "a write waits for the reads before it"
        );
        assert_eq!(order.finish(1), [0u64; 0]);
        assert_eq!(order.finish(0), [2]);
        assert_eq!(order.finish(2), [3]);
        assert_eq!(order.finish(5), [0u64; 0]);
        assert_eq!(order.finish(4), [6]);
        assert_eq!(order.finish(4), [0u64; 0], "a job finishes once");
    }

    #[test]
    fn a_chain_of_overlaps_goes_in_the_order_in_which_it_came() {
        let mut order = Order::default();
        for id in 0..50 {
            assert_eq!(order.push(id, 0..1, Changes), id == 0);
        }
        let mut done = vec![0];
        while let [next] = order.finish(*done.last().unwrap())[..] {
            done.push(next);
        }
        assert_eq!(done, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn an_empty_job_waits_for_nothing() {
        let mut order = Order::default();
        assert!(order.push(0, 0..8, Changes));
        assert!(order.push(1, 4..4, Changes));
    }
}
