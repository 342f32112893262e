//! Orders to the bare guest, past the recording clients.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::proof::client;
use xtask::proof::load::Load;
use xtask::proof::resp::Reply;

/// Longest time for an answer of the guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Sends one request over a connection of its own, and waits for its answer.
pub(crate) fn ask(load: &Load, words: &[&str]) -> Result<Reply> {
    client::ask(load, words, ANSWER_TIMEOUT)
}

/// A number of what the guest says in `INFO`.
pub(crate) fn info(load: &Load, name: &str) -> Result<u64> {
    let Reply::Bulk(Some(text)) = ask(load, &["INFO"])? else {
        bail!("INFO was not answered by text")
    };
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.with_context(|| format!("INFO has no `{name}`:\n{text}"))?;
    value
        .trim()
        .parse()
        .with_context(|| format!("INFO's `{name}` is no number: {value}"))
}
