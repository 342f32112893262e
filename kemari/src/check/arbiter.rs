//! The arbiter: it answers, it could be written, and it has the record that a running side lives under.

use kemari_sync::{Record, Term};

use super::Finding;
use crate::arbiter::{ConfiguredArbiter, OpenError};
use crate::config::{ArbiterKind, Config, Host};
use crate::control::{Client, Role};

/// Reads the record, and proves that it could be written: by the probe of a running side.
pub fn check(config: &Config, name: &str, running: bool) -> Vec<Finding> {
    if config.arbiter.kind == ArbiterKind::None {
        return vec![Finding::warning(
            "there is no arbiter: two hosts that lose sight of each other would both run the VM",
            "configure `[arbiter] kind = \"etcd\"` or `\"file\"`, unless somebody makes sure that a silent host is dead",
        )];
    }
    let prober = match ConfiguredArbiter::open(config).map(|arbiter| arbiter.prober()) {
        Ok(Some(prober)) => prober,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![unopened(&error)],
    };
    let known = if running {
        term_here(config.host(name))
    } else {
        None
    };
    let mut findings = vec![match prober.probe() {
        Ok(found) => judge(found.as_ref(), known),
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

/// The term in which the side that runs here executes the VM, or holds its state.
fn term_here(host: &Host) -> Option<Term> {
    let status = Client::new(host.control()).status().ok()?;
    let lives = matches!(status.role, Role::Primary) || status.epoch > 0;
    (lives && status.term > 0).then_some(status.term)
}

fn judge(found: Option<&Record>, known: Option<Term>) -> Finding {
    let advice =
        "if nobody else runs this VM, `kemari adopt-record`, said to its primary, gives it its record back";
    match (found, known) {
        (None, Some(term)) => Finding::error(
            format!("arbiter: it answers, but has lost the record of this VM, which runs in term {term}"),
            advice,
        ),
        (Some(record), Some(term)) if record.term < term => Finding::error(
            format!(
                "arbiter: its record went back to term {}, and this VM runs in term {term}",
                record.term
            ),
            advice,
        ),
        (None, None) => Finding::ok("arbiter: it answers and can be written, and this VM was never started"),
        (Some(record), _) => Finding::ok(format!("arbiter: {}", describe(record))),
    }
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
