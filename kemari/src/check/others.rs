//! Who this host needs: the arbiter and its peers.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use kemari_sync::{Arbiter as _, ArbiterAnswer, ArbiterRequest, Record};

use super::Finding;
use crate::arbiter::ConfiguredArbiter;
use crate::config::{ArbiterKind, Config, Host};

/// Longest wait for a peer's answer, in ms.
const PEER_TIMEOUT_MS: u64 = 1_000;

/// Asks the arbiter for the record, and knocks at each peer.
pub fn check(config: &Config, name: &str) -> Vec<Finding> {
    let mut findings = vec![arbiter(config)];
    if config.protection.enabled {
        findings.extend(config.peers(name).map(|(peer, host)| knock(peer, host)));
    }
    findings
}

fn arbiter(config: &Config) -> Finding {
    if config.arbiter.kind == ArbiterKind::None {
        return Finding::warning(
            "there is no arbiter: two hosts that lose sight of each other would both run the VM",
            "configure `[arbiter] kind = \"etcd\"` or `\"file\"`, unless somebody makes sure that a silent host is dead",
        );
    }
    let advice = "start it, or correct [arbiter]: no VM is started or taken over without it";
    let mut arbiter = match ConfiguredArbiter::open(config) {
        Ok(arbiter) => arbiter,
        Err(error) => return Finding::error(error.to_string(), advice),
    };
    match arbiter.execute(&ArbiterRequest::Read) {
        ArbiterAnswer::Record(None) => Finding::ok("arbiter: it answers, and this VM was never started"),
        ArbiterAnswer::Record(Some(record)) => Finding::ok(format!("arbiter: {}", describe(&record))),
        ArbiterAnswer::Unavailable(why) | ArbiterAnswer::Unknown(why) => {
            Finding::error(format!("the arbiter cannot be used: {why}"), advice)
        }
        ArbiterAnswer::Swapped | ArbiterAnswer::Conflict(_) => Finding::error(
            "the arbiter answers a read as if it were a swap",
            "report this as a fault of Kemari",
        ),
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

fn knock(peer: &str, host: &Host) -> Finding {
    let timeout = Duration::from_millis(PEER_TIMEOUT_MS);
    match TcpStream::connect_timeout(&host.listen, timeout) {
        Ok(_) => Finding::ok(format!("peer `{peer}` listens at {}", host.listen)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::warning(
            format!(
                "peer `{peer}` is reached, but no secondary listens at {}",
                host.listen
            ),
            "start `kemari secondary` there, unless it is the primary",
        ),
        Err(error) => Finding::warning(
            format!("peer `{peer}` does not answer at {}: {error}", host.listen),
            "start that host, or correct its `listen`, or look for a firewall between the two",
        ),
    }
}
