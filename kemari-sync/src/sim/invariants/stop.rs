//! A stop is the end: it is not resurrected, and nothing follows it.

use crate::record::Phase;
use crate::sim::client::Reply;
use crate::sim::store::Store;

pub(in crate::sim) fn runs(stopped: Option<(u64, u64)>, life: u64, epoch: u64) -> Result<(), String> {
    match stopped == Some((life, epoch)) {
        true => Err(format!(
            "the VM runs on from sync {epoch}, with which it was stopped"
        )),
        false => Ok(()),
    }
}

/// A write reaches the disk: who boots a stopped VM elsewhere may read it at once.
pub(in crate::sim) fn lands(store: &Store, reply: &Reply) -> Result<(), String> {
    match store
        .record
        .as_ref()
        .is_some_and(|record| record.phase == Phase::Stopped)
    {
        true => Err(format!(
            "write {} lands after the VM was recorded as stopped",
            reply.seq
        )),
        false => Ok(()),
    }
}
