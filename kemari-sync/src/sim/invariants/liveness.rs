//! The VM runs: clients get answers, unless it was stopped.

use crate::record::Phase;
use crate::sim::client::Client;
use crate::sim::store::Store;

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
