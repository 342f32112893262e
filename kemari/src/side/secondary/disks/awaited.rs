//! What waits for the replicas of a standby VM: until all of them have reached a point in their work, or one
//! has room again.

use std::collections::BTreeSet;

use kemari_sync::{Epoch, SecondaryEvent, Term};

use crate::replica::Barrier;

/// What waits until all replicas have reached a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The check of the first sync of a pair of this term.
    Check { epoch: Epoch, term: Term },
    /// The restore.
    Restore,
}

impl Wait {
    /// What is waited for.
    pub fn barrier(self) -> Barrier {
        match self {
            Self::Check { term, .. } => Barrier::Whole(term),
            Self::Restore => Barrier::Flush,
        }
    }
}

/// See the module. It ends with its standby VM.
#[derive(Debug, Default)]
pub struct Awaited {
    wait: Option<Wait>,
    /// Which replicas have not reached its barrier.
    unreached: BTreeSet<usize>,
    /// The commit whose outputs have filled a replica's queue.
    applying: Option<Epoch>,
}

impl Awaited {
    /// So many replicas were given the barrier of this.
    pub fn begin(&mut self, wait: Wait, replicas: usize) {
        self.wait = Some(wait);
        self.unreached = (0..replicas).collect();
    }

    /// A replica has reached this. Returns what need not wait any more.
    pub fn reached(&mut self, replica: usize, barrier: Barrier) -> Option<Wait> {
        self.wait.filter(|wait| wait.barrier() == barrier)?;
        self.unreached.remove(&replica);
        match self.unreached.is_empty() {
            true => self.wait.take(),
            false => None,
        }
    }

    /// The check that may be under way will not be needed.
    pub fn forget_check(&mut self) {
        self.wait.take_if(|wait| matches!(wait, Wait::Check { .. }));
    }

    /// What a commit has released waits for room.
    pub fn wait_for_room(&mut self, epoch: Epoch) {
        self.applying = Some(epoch);
    }

    /// There is room. Returns the commit that has waited for it.
    pub fn room(&mut self) -> Option<SecondaryEvent> {
        let epoch = self.applying.take()?;
        Some(SecondaryEvent::Applied { epoch })
    }

    /// A replica has failed: nothing more is carried out, so nothing waits for room. What has waited for it
    /// fails, or else the side that it is a part of.
    pub fn failed(&mut self, reason: String) -> impl Iterator<Item = SecondaryEvent> {
        let told = match self.wait.take() {
            Some(Wait::Check { epoch, .. }) => SecondaryEvent::Checked {
                epoch,
                result: Err(reason),
            },
            Some(Wait::Restore) => SecondaryEvent::Restored { result: Err(reason) },
            None => SecondaryEvent::ReplicaFailed { reason },
        };
        [told].into_iter().chain(self.room())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: Wait = Wait::Check { epoch: 1, term: 3 };

    #[test]
    fn what_is_waited_for_is_whole_in_the_term_of_the_sync_and_on_all_disks() {
        let mut awaited = Awaited::default();
        awaited.begin(CHECK, 2);
        for barrier in [
            Barrier::Whole(2),
            Barrier::Whole(4),
            Barrier::Flush,
            Barrier::Stop,
        ] {
            assert_eq!(awaited.reached(0, barrier), None);
            assert_eq!(awaited.reached(1, barrier), None, "{barrier:?} is something else");
        }
        assert_eq!(awaited.reached(0, Barrier::Whole(3)), None, "one is missing");
        assert_eq!(awaited.reached(0, Barrier::Whole(3)), None);
        assert_eq!(awaited.reached(1, Barrier::Whole(3)), Some(CHECK));
        assert_eq!(awaited.reached(1, Barrier::Whole(3)), None, "once");
    }

    #[test]
    fn a_check_is_waited_for_no_more_and_a_restore_is() {
        for (wait, left) in [(CHECK, None), (Wait::Restore, Some(Wait::Restore))] {
            let mut awaited = Awaited::default();
            awaited.begin(wait, 1);
            awaited.forget_check();
            assert_eq!(awaited.reached(0, wait.barrier()), left);
        }
    }

    #[test]
    fn a_replica_that_fails_ends_what_waits_for_it() {
        for wait in [None, Some(CHECK), Some(Wait::Restore)] {
            let mut awaited = Awaited::default();
            wait.into_iter().for_each(|wait| awaited.begin(wait, 1));
            awaited.wait_for_room(4);
            let told: Vec<_> = awaited.failed("a test".into()).collect();
            let is_meant = match (&told[0], wait) {
                (SecondaryEvent::ReplicaFailed { .. }, None) => true,
                (SecondaryEvent::Checked { epoch: 1, result }, Some(CHECK)) => result.is_err(),
                (SecondaryEvent::Restored { result }, Some(Wait::Restore)) => result.is_err(),
                _ => false,
            };
            assert!(is_meant, "{told:?}");
            let applied = matches!(told[1], SecondaryEvent::Applied { epoch: 4 });
            assert!(applied && awaited.room().is_none(), "nothing waits for room");
        }
    }
}
