//! What has changed on a disk since its last good flush, kept so that it can be written again if the next one
//! fails.

use std::sync::Arc;

use super::operation::Operation;

/// Most bytes that are kept of a disk: of a largest request, at least. A guest that changes more before it
/// flushes has to be told if that flush fails.
pub(crate) const KEPT_BYTES_MAX: usize = (16 << 20) + (64 << 10);
/// What a change takes beside its data, in bytes.
const CHANGE_BYTES: usize = 128;

/// The changes since the last good flush, in the order in which they ended:
/// those that overlap never do so together.
///
/// One flush may be under way. It covers what had ended when it began.
#[derive(Default)]
pub(crate) struct Unflushed {
    /// What the flush under way covers.
    covered: Changes,
    /// What has ended since.
    later: Changes,
}

#[derive(Default)]
struct Changes {
    kept: Vec<Arc<Operation>>,
    bytes: usize,
    /// There were more than are kept.
    is_cut: bool,
}

impl Changes {
    fn cut(&mut self) {
        *self = Self {
            is_cut: true,
            ..Self::default()
        };
    }
}

impl Unflushed {
    /// A change has ended well. `change` makes what is kept of it, and is called only if that has room.
    pub(crate) fn note(&mut self, data_bytes: usize, change: impl FnOnce() -> Option<Arc<Operation>>) {
        match self.has_room_for(data_bytes).then(change).flatten() {
            Some(change) => {
                self.later.kept.push(change);
                self.later.bytes += data_bytes + CHANGE_BYTES;
            }
            None => self.later.cut(),
        }
    }

    /// Whether one more change of so many bytes of data would be kept.
    pub(crate) fn has_room_for(&self, data_bytes: usize) -> bool {
        !self.later.is_cut
            && self.covered.bytes + self.later.bytes + data_bytes + CHANGE_BYTES <= KEPT_BYTES_MAX
    }

    /// A flush begins: it covers what has ended by now.
    pub(crate) fn flush_begins(&mut self) {
        let later = std::mem::take(&mut self.later);
        self.covered.is_cut |= later.is_cut;
        self.covered.bytes += later.bytes;
        self.covered.kept.extend(later.kept);
        if self.covered.is_cut {
            self.covered.cut();
        }
    }

    /// It has ended well.
    pub(crate) fn flushed(&mut self) {
        self.covered = Changes::default();
    }

    /// All that is to be written again, in order; none if more has changed than is kept.
    pub(crate) fn changes(&self) -> Option<Vec<Arc<Operation>>> {
        let is_whole = !self.covered.is_cut && !self.later.is_cut;
        is_whole.then(|| {
            self.covered
                .kept
                .iter()
                .chain(&self.later.kept)
                .cloned()
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(unflushed: &mut Unflushed, offset: u64, bytes: usize) {
        unflushed.note(bytes, || {
            Some(Arc::new(Operation::Write {
                offset,
                data: vec![1; bytes],
            }))
        });
    }

    fn offsets(unflushed: &Unflushed) -> Option<Vec<u64>> {
        let changes = unflushed.changes()?;
        let offset = |change: &Arc<Operation>| change.changes().expect("a write").start;
        Some(changes.iter().map(offset).collect())
    }

    #[test]
    fn a_good_flush_forgets_what_had_ended_before_it_began() {
        let mut unflushed = Unflushed::default();
        write(&mut unflushed, 0, 512);
        write(&mut unflushed, 512, 512);
        unflushed.flush_begins();
        write(&mut unflushed, 1024, 512);
        assert_eq!(offsets(&unflushed), Some(vec![0, 512, 1024]));
        unflushed.flushed();
        assert_eq!(offsets(&unflushed), Some(vec![1024]));
    }

    #[test]
    fn what_a_failed_flush_was_for_stays_in_order() {
        let mut unflushed = Unflushed::default();
        write(&mut unflushed, 0, 512);
        unflushed.flush_begins();
        write(&mut unflushed, 512, 512);
        // It failed; the next one covers both.
        unflushed.flush_begins();
        assert_eq!(offsets(&unflushed), Some(vec![0, 512]));
        unflushed.flushed();
        assert_eq!(offsets(&unflushed), Some(vec![]));
    }

    #[test]
    fn more_than_is_kept_cannot_be_written_again_until_a_flush_was_good() {
        let mut unflushed = Unflushed::default();
        write(&mut unflushed, 0, KEPT_BYTES_MAX / 2);
        unflushed.flush_begins();
        write(&mut unflushed, 0, KEPT_BYTES_MAX / 2);
        assert_eq!(offsets(&unflushed), None);
        // What came after the flush is cut still.
        unflushed.flushed();
        assert_eq!(offsets(&unflushed), None);
        write(&mut unflushed, 0, 512);
        unflushed.flush_begins();
        assert_eq!(offsets(&unflushed), None);
        unflushed.flushed();
        write(&mut unflushed, 4096, 512);
        assert_eq!(offsets(&unflushed), Some(vec![4096]));
    }
}
