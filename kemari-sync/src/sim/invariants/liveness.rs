//! The VM runs: clients get answers, unless it was stopped.

use crate::record::Phase;
use crate::sim::client::Client;
use crate::sim::store::Store;
use crate::status::{Protection, Status};

/// Every client has had a reply within this time, in microseconds.
const SILENCE_US: u64 = 400_000;

pub(in crate::sim) fn progresses(
    store: &Store,
    clients: &[Client],
    now_us: u64,
    when: &str,
) -> Result<(), String> {
    if store
        .record
        .as_ref()
        .is_some_and(|record| record.phase == Phase::Stopped)
    {
        return Ok(());
    }
    match clients
        .iter()
        .position(|client| now_us > client.last_reply_us + SILENCE_US)
    {
        None => Ok(()),
        Some(client) => Err(format!(
            "{when}, client {client} has had no reply for {} us",
            now_us - clients[client].last_reply_us
        )),
    }
}

/// A VM that is wanted protected is, where nothing is in its way.
pub(in crate::sim) fn protects(status: &Status) -> Result<(), String> {
    match status.protection {
        Protection::Protected => Ok(()),
        other => Err(format!(
            "at the end, long after everything was healed, the VM is {other:?} for {} ms",
            status.for_ms
        )),
    }
}
