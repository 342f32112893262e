//! Orders to the bare guest, past the recording clients.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::proof::client::connect;
use xtask::proof::load::Load;
use xtask::proof::resp::{Decoder, Reply, encode_request};

/// Longest time for an answer of the guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Sends one request over a connection of its own, and waits for its answer.
pub fn ask(load: &Load, words: &[&str]) -> Result<Reply> {
    let mut stream = connect(load)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let shown = String::from_utf8_lossy(words[0]).into_owned();
    let mut request = Vec::new();
    encode_request(&mut request, &words);
    stream
        .write_all(&request)
        .with_context(|| format!("{shown} cannot be sent"))?;
    let (mut decoder, mut bytes) = (Decoder::default(), [0; 4096]);
    loop {
        let count = stream
            .read(&mut bytes)
            .with_context(|| format!("{shown} got no answer"))?;
        ensure!(
            count > 0,
            "the guest closed the connection instead of answering {shown}"
        );
        decoder.feed(&bytes[..count]);
        match decoder.next_reply()? {
            None => {}
            Some(Reply::Error(text)) => bail!("the guest refused {shown}: {text}"),
            Some(reply) => return Ok(reply),
        }
    }
}

/// A number of what the guest says in `INFO`.
pub fn info(load: &Load, name: &str) -> Result<u64> {
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
