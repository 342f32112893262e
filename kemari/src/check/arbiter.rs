//! The arbiter: it answers, it could be written, and it has the record that a running side lives under.

use kemari_sync::Record;

use super::Finding;
use crate::arbiter::{ConfiguredArbiter, OpenError};
use crate::config::{ArbiterKind, Config, Host};
use crate::control::Client;

/// Reads the record, and proves that it could be written: by the probe of a running side.
pub(super) fn check(config: &Config, name: &str, running: bool) -> Vec<Finding> {
    if config.arbiter.kind == ArbiterKind::None {
        return vec![Finding::warning(
            "there is no arbiter: two hosts that lose sight of each other would both run the VM",
            "configure `[arbiter] kind = \"etcd\"` or `\"file\"`, unless somebody makes sure that a silent \
             host is dead",
        )];
    }
    let prober = match ConfiguredArbiter::open(config).map(|arbiter| arbiter.prober()) {
        Ok(Some(prober)) => prober,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![unopened(&error)],
    };
    let found = match running.then(|| trouble_here(config.host(name))).flatten() {
        None => prober.probe().map_err(|why| why.sentence().to_owned()),
        Some(trouble) => Err(trouble),
    };
    let mut findings = vec![match found {
        Ok(None) => Finding::ok("arbiter: it answers and can be written, and this VM was never started"),
        Ok(Some(record)) => Finding::ok(format!("arbiter: {}", describe(&record))),
        Err(why) => Finding::error(
            format!("the arbiter cannot be used: {why}"),
            "start it, mend what it says, or correct [arbiter]: no VM is started or taken over without it",
        ),
    }];
    findings.extend(prober.trouble_within(config.arbiter.timeout()).map(|trouble| {
        Finding::warning(
            format!("arbiter: {trouble}"),
            "mend it before the rest of the arbiter is away",
        )
    }));
    findings
}

fn unopened(error: &OpenError) -> Finding {
    let sentence = error.to_string();
    let advice = match sentence.to_lowercase().contains("permission denied") {
        true => "run Kemari as a user that may read it, or `chown` it to that user",
        false => "correct [arbiter]: no VM is started or taken over without it",
    };
    Finding::error(sentence, advice)
}

/// What the side that runs here says is wrong: it knows which record it lives under.
fn trouble_here(host: &Host) -> Option<String> {
    Client::new(host.control()).status().ok()?.arbiter_trouble
}

fn describe(record: &Record) -> String {
    let peer = record
        .peer
        .as_ref()
        .map_or("no peer".into(), |peer| format!("peer {peer}"));
    format!(
        "term {}, owner {}, {peer}, phase {:?}",
        record.term, record.owner, record.phase
    )
}
