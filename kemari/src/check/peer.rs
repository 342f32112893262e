//! The other side: asked over the link, with certificates, whether a pair could be made with it.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::time::Duration;

use kemari_sync::wire::About;
use kemari_vmm::arch::preflight::missing_features;

use super::{Finding, host};
use crate::config::{Config, Host};
use crate::control::{Client, Role};
use crate::link::{LinkError, Security, way};
use crate::side::{CLOCKS_MS_MAX, PeerAnswer, about, kernel, question, wall_clock_ms};

/// Longest wait for a peer's answer, in ms.
const PEER_TIMEOUT_MS: u64 = 1_000;
/// Most keys that are named.
const KEYS_SHOWN_MAX: usize = 8;

/// Asks each peer. A side that runs here and is connected to it has compared everything at its handshake.
pub(super) fn check(config: &Config, name: &str, running: bool) -> Vec<Finding> {
    let connected = if running {
        connected_peer(config.host(name))
    } else {
        None
    };
    let security = Security::of(config, name).ok().flatten();
    let mut findings = Vec::new();
    for (peer, host) in config.peers(name) {
        findings.extend(way::narrow(host.listen.address()).map(|narrow| {
            Finding::error(
                narrow.sentence(peer),
                "`ip link set DEVICE mtu N` on both hosts, with what the narrowest switch or tunnel lets \
                 pass",
            )
        }));
        if connected.as_deref() == Some(peer) {
            findings.push(Finding::ok(format!(
                "peer `{peer}` is connected: the two sides that run agree in version and configuration"
            )));
            continue;
        }
        match &security {
            Some(security) => findings.extend(ask(config, name, peer, host, security)),
            None => findings.push(knock(peer, host)),
        }
    }
    findings
}

/// The peer that the side which runs here is connected to.
fn connected_peer(host: &Host) -> Option<String> {
    let status = Client::new(host.control()).status().ok()?;
    let is_side = matches!(status.role, Role::Primary | Role::Secondary);
    let peer = status.peer.filter(|peer| is_side && peer.connected)?;
    Some(peer.host)
}

fn ask(config: &Config, name: &str, peer: &str, host: &Host, security: &Security) -> Vec<Finding> {
    let answer = question(security, peer, host.listen.address());
    let answered = (answer, wall_clock_ms());
    judge(config, peer, host, answered, || {
        about(config, name, kernel_digest(config))
    })
}

/// What a peer's answer means, and the time here, in ms, when it came. `ours` says what this host is like,
/// which may take as long as its storage.
fn judge(
    config: &Config,
    peer: &str,
    host: &Host,
    (answer, answered_ms): (Result<PeerAnswer, LinkError>, u64),
    ours: impl FnOnce() -> About,
) -> Vec<Finding> {
    match answer {
        Ok(PeerAnswer {
            holds,
            about: Some(theirs),
        }) => {
            let ours = About {
                wall_clock_ms: answered_ms,
                ..ours()
            };
            let mut findings = vec![Finding::ok(format!(
                "peer `{peer}` follows at {}, and is the one that it says it is",
                host.listen.address()
            ))];
            findings.extend(compare(config, peer, &ours, &theirs, holds.is_some()));
            findings
        }
        Ok(_) => vec![Finding::warning(
            format!(
                "peer `{peer}` answers at {}, but does not say what it is like",
                host.listen.address()
            ),
            "ask again in a moment, and look whether it has the same version of Kemari",
        )],
        Err(LinkError::Unreachable(error)) => vec![unreachable(peer, host, &error)],
        Err(error) => vec![Finding::error(
            format!(
                "what listens at {} is no secondary that `{peer}`'s configuration makes: {:#}",
                host.listen.address(),
                anyhow::Error::from(error)
            ),
            "look what listens there, and whether both hosts have certificates of one set",
        )],
    }
}

/// The digest of the kernel's files, if they can be read here.
fn kernel_digest(config: &Config) -> Option<u64> {
    Some(kernel(&config.machine).ok()?.digest())
}

/// What keeps two hosts that are like this from being a pair.
fn compare(config: &Config, peer: &str, ours: &About, theirs: &About, holds: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if ours.version != theirs.version {
        findings.push(Finding::error(
            format!(
                "peer `{peer}` runs Kemari {}, and this host {}",
                theirs.version, ours.version
            ),
            "install the same version on both hosts",
        ));
    }
    let differing = differing(&ours.keys, &theirs.keys);
    if !differing.is_empty() {
        let more = differing.len().saturating_sub(KEYS_SHOWN_MAX);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let shown = &differing[..differing.len().min(KEYS_SHOWN_MAX)];
        findings.push(Finding::error(
            format!(
                "the configuration differs from that of peer `{peer}` in: {}{more}",
                shown.join(", ")
            ),
            "copy one file to both hosts, and start that side again whose file has changed",
        ));
    }
    findings.extend(compare_processors(peer, ours, theirs));
    findings.extend(compare_images(config, peer, ours, theirs));
    let needed = host::needed_mib(config);
    if !holds && theirs.memory_available_mib < needed {
        findings.push(Finding::error(
            format!(
                "peer `{peer}` has {} MiB of memory available, but the guest, staging and program need \
                 {needed}",
                theirs.memory_available_mib
            ),
            "free some there, or lower `machine.memory_mib` or `protection.staging_mib_max`",
        ));
    }
    let apart_ms = ours.wall_clock_ms.abs_diff(theirs.wall_clock_ms);
    if apart_ms > CLOCKS_MS_MAX {
        findings.push(Finding::error(
            format!(
                "the clock of peer `{peer}` and this host's are {:.1} s apart",
                apart_ms as f64 / 1000.0
            ),
            "let both hosts follow a time service (chrony, systemd-timesyncd): the guest would jump at a \
             takeover",
        ));
    }
    findings
}

/// Keys whose values differ, or that only one side has.
fn differing(ours: &[(String, u32)], theirs: &[(String, u32)]) -> Vec<String> {
    let (ours, theirs): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (ours.iter().cloned().collect(), theirs.iter().cloned().collect());
    let keys = ours
        .keys()
        .chain(theirs.keys().filter(|key| !ours.contains_key(*key)));
    keys.filter(|key| ours.get(*key) != theirs.get(*key))
        .cloned()
        .collect()
}

/// A guest that began on one host must find its processor on the other.
fn compare_processors(peer: &str, ours: &About, theirs: &About) -> Vec<Finding> {
    if ours.features.is_empty() || theirs.features.is_empty() {
        return vec![Finding::warning(
            format!("the processors of this host and of peer `{peer}` cannot be compared"),
            "look whether both may use /dev/kvm",
        )];
    }
    let lacks =
        |who: String, missing: Vec<String>, other: String| {
            (!missing.is_empty()).then(|| {
            Finding::error(
                format!("the processor of {who} lacks what {other} shows its guests: {}", missing.join(", ")),
                "use hosts with the same processor and the same kernel, or a guest that began on the weaker \
                 one",
            )
        })
        };
    let (here, there) = ("this host".to_owned(), format!("peer `{peer}`"));
    let found = [
        lacks(
            there.clone(),
            missing_features(&theirs.features, &ours.features),
            here.clone(),
        ),
        lacks(here, missing_features(&ours.features, &theirs.features), there),
    ];
    found.into_iter().flatten().collect()
}

/// Replicated images are of one size.
fn compare_images(config: &Config, peer: &str, ours: &About, theirs: &About) -> Vec<Finding> {
    let size = |about: &About, id: &str| {
        let found = about.images.iter().find(|(image, _)| image == id);
        found.map(|(_, bytes)| *bytes)
    };
    let replicated = config.disks.iter().filter(|disk| config.replicates(disk));
    let differing = replicated.filter_map(|disk| {
        let (here, there) = (size(ours, &disk.id)?, size(theirs, &disk.id));
        (there != Some(here)).then(|| {
            let there = there.map_or("no image".to_owned(), |bytes| format!("one of {bytes} bytes"));
            Finding::error(
                format!(
                    "the image of disk `{}` has {here} bytes here, and peer `{peer}` has {there}",
                    disk.id
                ),
                "make both images equally large: `kemari resize`, or `truncate -s` while the VM is stopped",
            )
        })
    });
    differing.collect()
}

fn knock(peer: &str, host: &Host) -> Finding {
    let timeout = Duration::from_millis(PEER_TIMEOUT_MS);
    match TcpStream::connect_timeout(&host.listen.address(), timeout) {
        Ok(_) => Finding::warning(
            format!(
                "something listens at {} of peer `{peer}`; it cannot be asked without a link",
                host.listen.address()
            ),
            "make certificates with `kemari certs`",
        ),
        Err(error) => unreachable(peer, host, &error),
    }
}

fn unreachable(peer: &str, host: &Host, error: &io::Error) -> Finding {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Finding::warning(
            format!(
                "peer `{peer}` is reached, but no secondary listens at {}",
                host.listen.address()
            ),
            "start `kemari secondary` there, unless it is the primary",
        );
    }
    Finding::warning(
        format!(
            "peer `{peer}` does not answer at {}: {error}",
            host.listen.address()
        ),
        "start that host, or correct its `listen`, or look for a firewall between the two",
    )
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
