//! How the VM is protected, and who decides.

use std::ops::RangeInclusive;

use super::{TIMEOUT_MS, Wrong};
use crate::config::{
    Arbiter, ArbiterKind, Cache, Config, DRILL_INTERVAL_S, Endpoint, INTERVAL_MS, Protection,
    certificate_name,
};

/// Most memory for staging, in MiB.
const STAGING_MIB: RangeInclusive<u32> = 16..=1 << 20;
/// Most etcd endpoints.
const ENDPOINTS_MAX: usize = 16;

pub(super) fn protection(config: &Config, wrong: &mut Wrong) {
    let p = &config.protection;
    let at = |key| ["protection", key];
    ranges(p, wrong);
    if p.heartbeat_interval_ms.saturating_mul(3) > p.suspicion_timeout_ms {
        wrong.at(
            &at("heartbeat_interval_ms"),
            format!(
                "`protection.suspicion_timeout_ms` is {}, but must be at least three times \
                 `heartbeat_interval_ms` ({}): one late heartbeat must not look like a death",
                p.suspicion_timeout_ms, p.heartbeat_interval_ms
            ),
        );
    }
    // A sync that was due at the bound still grows until the guest is paused, and each page has a header.
    if p.staging_bytes_max() < u64::from(p.max_dirty_pages) * 2 * 4096 {
        wrong.at(
            &at("staging_mib_max"),
            format!(
                "`protection.staging_mib_max` is {}, but must hold twice `max_dirty_pages` ({} pages are {} \
                 MiB)",
                p.staging_mib_max,
                p.max_dirty_pages,
                u64::from(p.max_dirty_pages) >> 8
            ),
        );
    }
    link(config, wrong);
    if !p.enabled {
        return;
    }
    let count = config.hosts.len();
    if count < 2 {
        wrong.at(
            &["hosts"],
            format!("[hosts] names {}, but a protected VM has two", count_of(count)),
        );
    }
    // A third one waits until the second is lost. An image that is replicated has one other.
    if count > 2 && config.disks.iter().any(|disk| !disk.shared && !disk.read_only) {
        wrong.at(
            &["hosts"],
            format!(
                "[hosts] names {}, but disks that are replicated have two: share them, or name two hosts",
                count_of(count)
            ),
        );
    }
    shared_disks(config, wrong);
}

/// Each number by itself.
fn ranges(p: &Protection, wrong: &mut Wrong) {
    let at = |key| ["protection", key];
    for (key, value) in [
        ("suspicion_timeout_ms", p.suspicion_timeout_ms),
        ("heartbeat_interval_ms", p.heartbeat_interval_ms),
        ("progress_timeout_ms", p.progress_timeout_ms),
        ("replica_timeout_ms", p.replica_timeout_ms),
    ] {
        wrong.range(&at(key), value, TIMEOUT_MS);
    }
    wrong.range(
        &at("reconnect_timeout_ms"),
        p.reconnect_timeout_ms,
        0..=*TIMEOUT_MS.end(),
    );
    wrong.range(&at("delta_cache_mib_max"), p.delta_cache_mib_max, 1..=1 << 20);
    wrong.range(&at("staging_mib_max"), p.staging_mib_max, STAGING_MIB);
    wrong.range(&at("replica_queue_mib_max"), p.replica_queue_mib_max, 1..=1 << 20);
    wrong.range(&at("resync_mib_per_s_max"), p.resync_mib_per_s_max, 0..=1 << 20);
    wrong.range(&at("console_delay_ms"), p.console_delay_ms, 0..=10_000);
    wrong.range(&at("interval_ms"), p.interval_ms, INTERVAL_MS);
    wrong.range(&at("max_interval_ms"), p.max_interval_ms, INTERVAL_MS);
    if p.drill_interval_s != 0 {
        wrong.range(&at("drill_interval_s"), p.drill_interval_s, DRILL_INTERVAL_S);
    }
    wrong.range(&at("max_dirty_pages"), p.max_dirty_pages, 16..=1 << 28);
}

/// Certificates or, in so many words, none.
fn link(config: &Config, wrong: &mut Wrong) {
    let p = &config.protection;
    if p.plaintext {
        let own = config.hosts.iter().find(|(_, host)| host.certificates.is_some());
        let path = match own {
            Some((name, _)) => vec!["hosts", name.as_str(), "certificates"],
            None => vec!["protection", "certificates"],
        };
        if own.is_some() || p.certificates.is_some() {
            wrong.at(
                &path,
                "`plaintext = true` and `certificates` exclude each other: remove `plaintext`, and the link \
                 is encrypted",
            );
        }
        return;
    }
    for name in config.hosts.keys() {
        if config.certificates_of(name).is_some() {
            if let Err(sentence) = certificate_name(name) {
                wrong.at(&["hosts", name], sentence);
            }
        } else if p.enabled {
            wrong.at(
                &["protection"],
                format!(
                    "the link between the hosts carries the guest's whole memory, and host `{name}` has no \
                     certificates for it: make a set with `kemari certs` and name its directory as \
                     `certificates`, or say `plaintext = true` if nobody else is on that network"
                ),
            );
            // Once is enough.
            return;
        }
    }
}

fn shared_disks(config: &Config, wrong: &mut Wrong) {
    let p = &config.protection;
    for (index, disk) in config
        .disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| !disk.read_only)
    {
        let index = index.to_string();
        if disk.shared && disk.is_replicated() {
            wrong.at(
                &["disk", &index, "replicate"],
                format!(
                    "disk `{}` is said to be both shared and replicated: both hosts see one disk, or each \
                     has its own; remove one of the two keys",
                    disk.id
                ),
            );
        } else if !disk.shared && !disk.is_replicated() {
            wrong.at(
                &["disk", &index, "replicate"],
                format!(
                    "disk `{}` is neither shared nor replicated, so the other host would go on without what \
                     is on it: remove `replicate = false`, or put it on storage that both hosts see, and say \
                     `shared = true`",
                    disk.id
                ),
            );
        } else if disk.shared && disk.cache != Cache::Direct && !p.allow_cached_shared_disk {
            wrong.at(
                &["disk", &index],
                format!(
                    "disk `{}` is shared by two hosts, so it must bypass their page caches (a dead host's \
                     cache loses completed writes): say `cache = \"direct\"`",
                    disk.id
                ),
            );
        }
    }
    let Some(disk) = config.disks.iter().find(|disk| disk.shared && !disk.read_only) else {
        return;
    };
    for (name, _) in config.hosts.iter().filter(|(_, host)| host.fence.is_empty()) {
        wrong.at(
            &["hosts", name],
            format!(
                "disk `{}` is shared, so host `{name}` needs a `fence` command that cuts the other host off \
                 from it before this one writes",
                disk.id
            ),
        );
    }
}

fn count_of(count: usize) -> String {
    match count {
        0 => "no host".into(),
        1 => "one host".into(),
        _ => format!("{count} hosts"),
    }
}

pub(super) fn arbiter(arbiter: &Arbiter, wrong: &mut Wrong) {
    let at = |key| ["arbiter", key];
    wrong.range(&at("timeout_ms"), arbiter.timeout_ms, TIMEOUT_MS);
    match arbiter.kind {
        ArbiterKind::Etcd => {
            if !(1..=ENDPOINTS_MAX).contains(&arbiter.endpoints.len()) {
                wrong.at(
                    &["arbiter"],
                    format!(
                        "an etcd arbiter needs 1 to {ENDPOINTS_MAX} `endpoints`, as \
                             [\"http://10.0.0.9:2379\"]"
                    ),
                );
            }
            for endpoint in &arbiter.endpoints {
                if let Err(sentence) = Endpoint::parse(endpoint) {
                    wrong.at(&at("endpoints"), sentence);
                }
            }
            etcd_access(arbiter, wrong);
            if arbiter.prefix.is_empty() || !arbiter.prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
                wrong.at(
                    &at("prefix"),
                    "`arbiter.prefix` must be printable ASCII without spaces, as `/kemari/`",
                );
            }
        }
        ArbiterKind::File if arbiter.path.is_none() => {
            wrong.at(
                &["arbiter"],
                "a file arbiter needs `path`: a directory on storage that both hosts see",
            );
        }
        ArbiterKind::File | ArbiterKind::None => {}
    }
    if arbiter.kind != ArbiterKind::Etcd && !arbiter.endpoints.is_empty() {
        wrong.at(
            &at("endpoints"),
            "`arbiter.endpoints` is for kind = \"etcd\" only: remove it, or change the kind",
        );
    }
    let only_etcd = [
        ("ca", arbiter.ca.is_some()),
        ("certificate", arbiter.certificate.is_some()),
        ("key", arbiter.key.is_some()),
        ("user", arbiter.user.is_some()),
        ("password_file", arbiter.password_file.is_some()),
    ];
    for (key, is_given) in only_etcd {
        if arbiter.kind != ArbiterKind::Etcd && is_given {
            let sentence =
                format!("`arbiter.{key}` is for kind = \"etcd\" only: remove it, or change the kind");
            wrong.at(&at(key), sentence);
        }
    }
    if arbiter.kind != ArbiterKind::File && arbiter.path.is_some() {
        wrong.at(
            &at("path"),
            "`arbiter.path` is for kind = \"file\" only: remove it, or change the kind",
        );
    }
}

fn etcd_access(arbiter: &Arbiter, wrong: &mut Wrong) {
    let is_tls = |endpoint: &String| endpoint.starts_with("https://");
    if arbiter.endpoints.iter().any(is_tls) && arbiter.ca.is_none() {
        wrong.at(
            &["arbiter"],
            "an https endpoint needs `ca`: the certificate of the authority of etcd's certificates, as PEM",
        );
    }
    if arbiter.certificate.is_some() != arbiter.key.is_some() {
        wrong.at(
            &["arbiter"],
            "`arbiter.certificate` and `arbiter.key` go together: give both, or neither",
        );
    }
    if arbiter.user.is_some() != arbiter.password_file.is_some() {
        wrong.at(
            &["arbiter"],
            "`arbiter.user` and `arbiter.password_file` go together: give both, or neither",
        );
    }
    if !arbiter.endpoints.iter().all(is_tls) && (arbiter.key.is_some() || arbiter.user.is_some()) {
        wrong.at(
            &["arbiter", "endpoints"],
            "a certificate or a password is of no use, and a password would be read by anybody, where an \
             endpoint is plain http: use https for all of them",
        );
    }
}
