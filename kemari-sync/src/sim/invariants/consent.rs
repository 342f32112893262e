//! Output leaves only with consent: the recorded peer's commit of a sync that contains it,
//! or the right to act alone.

use crate::record::{Phase, Record};
use crate::sim::store::{Store, describe};

use super::memory::Memory;

/// Whether the owner of this record may act alone: it is what the arbiter has.
pub(in crate::sim) fn alone(store: &Store, record: &Record) -> Result<(), String> {
    let stands =
        store.record.as_ref() == Some(record) && record.phase == Phase::Acting && record.peer.is_none();
    match stands {
        true => Ok(()),
        false => Err(format!(
            "{} acts alone on {}, but the arbiter has {}",
            record.owner.host,
            describe(record),
            store.record.as_ref().map(describe).unwrap_or_default()
        )),
    }
}

/// Whether the pair of this record was written, and its peer has committed this sync.
pub(in crate::sim) fn synced(
    store: &Store,
    memory: &Memory,
    record: &Record,
    epoch: u64,
    seq: u64,
) -> Result<(), String> {
    if memory.contains(record.owner.nonce, epoch) < seq {
        return Err(format!(
            "{seq} was released with sync {epoch}, which does not contain it"
        ));
    }
    if !store.history.contains(record) {
        return Err(format!(
            "sync {epoch} was released for a pair that is not recorded: {}",
            describe(record)
        ));
    }
    let Some(peer) = &record.peer else {
        return Err(format!(
            "sync {epoch} was released without a peer: {}",
            describe(record)
        ));
    };
    match memory.last_commit(peer.nonce) {
        Some((primary, last))
            if primary == record.owner.nonce && last.term == record.term && last.epoch >= epoch =>
        {
            Ok(())
        }
        last => Err(format!(
            "sync {epoch} was released, but {} has committed {last:?}",
            peer.host
        )),
    }
}
