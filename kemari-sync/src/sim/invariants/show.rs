//! Announcements, which no sync contains: who tells the outside that the VM is here knows of nobody else who
//! acts.

use crate::record::{Incarnation, Phase};
use crate::sim::store::{Store, describe};

/// `host` may announce itself now. Another may have begun to act only just before, since an operator's
/// takeover waits for nothing: `grace_us`.
pub(in crate::sim) fn shows(
    store: &Store,
    host: &Incarnation,
    now_us: u64,
    grace_us: u64,
) -> Result<(), String> {
    let acts = |record: &crate::record::Record| record.phase == Phase::Acting && record.owner != *host;
    match store.record.as_ref().filter(|record| acts(record)) {
        Some(record) if now_us > store.changed_us + grace_us => Err(format!(
            "{} says that the VM is there, but the arbiter has {}",
            host.host,
            describe(record)
        )),
        _ => Ok(()),
    }
}
