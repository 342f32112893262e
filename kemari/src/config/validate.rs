//! Whether the values make sense, each alone and together. Looks at no file, device or address of the machine.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use kemari_sync::NAME_BYTES_MAX;

use super::fields::nearest;
use super::{
    Arbiter, ArbiterKind, Cache, Config, DRILL_INTERVAL_S, Format, Hook, Host, INTERVAL_MS, Io, Rate,
};

/// Least and most memory of a guest in MiB.
const MEMORY_MIB: RangeInclusive<u32> = 64..=1 << 20;
/// Numbers of vCPUs.
const VCPUS: RangeInclusive<u8> = 1..=8;
/// Longest command line that Linux on x86 takes, in bytes.
const CMDLINE_BYTES_MAX: usize = 2047;
/// Most devices a configuration may name: the machine has 16 places, and one is the random number generator's.
const DEVICES_MAX: usize = 15;
/// Longest id of a device, in bytes.
const ID_BYTES_MAX: usize = 16;
/// Longest serial number of a virtio disk, in bytes (virtio 1.2, section 5.2.6).
const SERIAL_BYTES_MAX: usize = 20;
/// Numbers of queues of a disk.
const DISK_QUEUES: RangeInclusive<u16> = 1..=8;
/// Bytes of a disk's logical block.
const DISK_BLOCK_BYTES: [u32; 2] = [512, 4096];
/// Bytes of a block that a BIOS reads.
const BIOS_BLOCK_BYTES: u32 = 512;
/// Longest name of a network device in Linux, in bytes.
const TAP_BYTES_MAX: usize = 15;
/// Most hooks: each has a thread of the steward's.
const HOOKS_MAX: usize = 16;
/// Time-outs of hooks, in ms.
const HOOK_TIMEOUT_MS: RangeInclusive<u32> = 100..=600_000;
/// Most etcd endpoints.
const ENDPOINTS_MAX: usize = 16;
/// Most memory for staging, in MiB.
const STAGING_MIB: RangeInclusive<u32> = 16..=1 << 20;
/// Time-outs that other hosts are waited for, in ms.
const TIMEOUT_MS: RangeInclusive<u32> = 10..=600_000;

/// Where (the keys from the top of the file) and what.
pub type Finding = (Vec<String>, String);

/// All that is wrong with the values of `config`.
pub fn validate(config: &Config) -> Vec<Finding> {
    let mut wrong = Wrong(Vec::new());
    wrong.name(&["vm"], "the VM's name", &config.vm, NAME_BYTES_MAX);
    machine(config, &mut wrong);
    devices(config, &mut wrong);
    protection(config, &mut wrong);
    arbiter(&config.arbiter, &mut wrong);
    hooks(&config.hooks, &mut wrong);
    hosts(config, &mut wrong);
    wrong.0
}

struct Wrong(Vec<Finding>);

impl Wrong {
    fn at(&mut self, path: &[&str], sentence: impl Into<String>) {
        self.0.push((
            path.iter().map(|part| (*part).to_owned()).collect(),
            sentence.into(),
        ));
    }

    fn range<T: PartialOrd + Display>(&mut self, path: &[&str], value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            let key = path.join(".");
            self.at(
                path,
                format!(
                    "`{key}` is {value}, but must be {} to {}",
                    range.start(),
                    range.end()
                ),
            );
        }
    }

    fn name(&mut self, path: &[&str], what: &str, name: &str, bytes_max: usize) {
        if name.len() > bytes_max || !is_name(name) {
            self.at(
                path,
                format!(
                    "{what} is `{name}`, but must be 1 to {bytes_max} letters, digits, `_`, `-` or `.`, and not \
                     begin with `.`"
                ),
            );
        }
    }

    fn unique(&mut self, path: &[&str], what: &str, value: &str, seen: &mut BTreeSet<String>) {
        if !seen.insert(value.to_owned()) {
            self.at(
                path,
                format!("{what} `{value}` is given twice: each needs its own"),
            );
        }
    }
}

/// Whether a VM or a host may have that name.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let has_length = (1..=NAME_BYTES_MAX).contains(&name.len());
    has_length && !name.starts_with('.') && name.bytes().all(good)
}

fn machine(config: &Config, wrong: &mut Wrong) {
    let machine = &config.machine;
    wrong.range(&["machine", "memory_mib"], machine.memory_mib, MEMORY_MIB);
    wrong.range(&["machine", "vcpus"], machine.vcpus, VCPUS);
    let bytes = machine.cmdline.len();
    if bytes > CMDLINE_BYTES_MAX {
        wrong.at(
            &["machine", "cmdline"],
            format!("`machine.cmdline` has {bytes} bytes, but a kernel takes {CMDLINE_BYTES_MAX}"),
        );
    }
    firmware(config, wrong);
    if !machine.cmdline.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        wrong.at(
            &["machine", "cmdline"],
            "`machine.cmdline` must be one line of printable ASCII",
        );
    }
}

/// A guest begins with a kernel or with firmware, and that with a disk.
fn firmware(config: &Config, wrong: &mut Wrong) {
    let machine = &config.machine;
    let at = |key| ["machine", key];
    match (&machine.kernel, &machine.firmware) {
        (None, None) => wrong.at(
            &["machine"],
            "`machine` lacks the key `kernel`, or `firmware = \"bios\"` to boot the first disk",
        ),
        (Some(_), Some(_)) => wrong.at(
            &at("firmware"),
            "`machine.kernel` and `machine.firmware` exclude each other: the kernel is loaded by Kemari, or by what the \
             firmware finds on the disk",
        ),
        _ => {}
    }
    if machine.firmware.is_none() {
        return;
    }
    for (key, is_given) in [
        ("initrd", machine.initrd.is_some()),
        ("cmdline", !machine.cmdline.is_empty()),
    ] {
        if is_given {
            wrong.at(
                &at(key),
                format!("`machine.{key}` is for a kernel that Kemari loads: with `firmware` the boot loader on the disk has it"),
            );
        }
    }
    match config.disks.first() {
        None => wrong.at(
            &at("firmware"),
            "`machine.firmware` boots the first disk, but there is no [[disk]]",
        ),
        Some(disk) if disk.block_size != BIOS_BLOCK_BYTES => wrong.at(
            &["disk", "0", "block_size"],
            format!(
                "disk `{}` has blocks of {} bytes, but a BIOS boots disks with {BIOS_BLOCK_BYTES} only: remove \
                 `block_size`, or boot another disk by naming it first",
                disk.id, disk.block_size
            ),
        ),
        Some(_) => {}
    }
}

fn devices(config: &Config, wrong: &mut Wrong) {
    let count = config.disks.len() + config.nets.len();
    if count > DEVICES_MAX {
        wrong.at(
            &["disk"],
            format!("there are {count} disks and network cards, but at most {DEVICES_MAX} fit"),
        );
    }
    let (mut ids, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for (index, disk) in config.disks.iter().enumerate() {
        let index = index.to_string();
        wrong.name(&["disk", &index, "id"], "a disk's id", &disk.id, ID_BYTES_MAX);
        wrong.unique(&["disk", &index, "id"], "the id", &disk.id, &mut ids);
        let serial = disk.serial();
        if serial.len() > SERIAL_BYTES_MAX || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            wrong.at(
                &["disk", &index, "serial"],
                format!("the serial number `{serial}` must be at most {SERIAL_BYTES_MAX} printable ASCII characters"),
            );
        }
        wrong.range(&["disk", &index, "queues"], disk.queues, DISK_QUEUES);
        rate("disk", &index, disk.rate, wrong);
        if !DISK_BLOCK_BYTES.contains(&disk.block_size) {
            wrong.at(
                &["disk", &index, "block_size"],
                format!(
                    "`disk.block_size` is {}, but must be 512 or 4096",
                    disk.block_size
                ),
            );
        }
        if disk.format == Format::Qcow2 && !disk.read_only {
            wrong.at(
                &["disk", &index, "format"],
                format!(
                    "disk `{}` is qcow2, which is only read: make a raw image of it with `kemari import IMAGE --format \
                     qcow2 DEST` and name that one, or say `read_only = true`",
                    disk.id
                ),
            );
        }
        if disk.format == Format::Qcow2 && disk.io == Io::IoUring {
            wrong.at(
                &["disk", &index, "io"],
                format!(
                    "disk `{}` is qcow2, which threads serve: io_uring is for raw disks only; remove `io`",
                    disk.id
                ),
            );
        }
        for (name, host) in &config.hosts {
            if disk.path.is_none() && !host.disks.contains_key(&disk.id) {
                wrong.at(
                    &["disk", &index],
                    format!("disk `{}` has no path on host `{name}`: give it `path`, or name it in [hosts.{name}.disks]", disk.id),
                );
            }
        }
    }
    for (index, net) in config.nets.iter().enumerate() {
        let index = index.to_string();
        wrong.name(
            &["net", &index, "id"],
            "a network card's id",
            &net.id,
            ID_BYTES_MAX,
        );
        wrong.unique(&["net", &index, "id"], "the id", &net.id, &mut ids);
        wrong.unique(
            &["net", &index, "mac"],
            "the MAC address",
            &net.mac.to_string(),
            &mut macs,
        );
        rate("net", &index, net.rate, wrong);
        if let Some(tap) = &net.tap {
            tap_name(&["net", &index, "tap"], tap, wrong);
        }
        for (name, host) in &config.hosts {
            if net.tap.is_none() && !host.taps.contains_key(&net.id) {
                wrong.at(
                    &["net", &index],
                    format!("card `{}` has no TAP on host `{name}`: give it `tap`, or name it in [hosts.{name}.taps]", net.id),
                );
            }
        }
    }
}

fn rate(section: &str, index: &str, rate: Option<Rate>, wrong: &mut Wrong) {
    for (key, fault) in rate.iter().flat_map(Rate::faults) {
        wrong.at(
            &[section, index, "rate", key],
            format!("`{section}.rate.{key}` {fault}"),
        );
    }
}

fn tap_name(path: &[&str], tap: &str, wrong: &mut Wrong) {
    let good = |c: char| c.is_ascii_graphic() && c != '/' && c != ':' && c != '%';
    if tap.is_empty() || tap.len() > TAP_BYTES_MAX || tap == "." || tap == ".." || !tap.chars().all(good) {
        wrong.at(path, format!("`{tap}` is no name of a network device: Linux takes 1 to {TAP_BYTES_MAX} characters without spaces, `/`, `:` and `%`"));
    }
}

fn protection(config: &Config, wrong: &mut Wrong) {
    let p = &config.protection;
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
    if p.heartbeat_interval_ms.saturating_mul(3) > p.suspicion_timeout_ms {
        wrong.at(
            &at("heartbeat_interval_ms"),
            format!(
                "`protection.suspicion_timeout_ms` is {}, but must be at least three times `heartbeat_interval_ms` ({}): \
                 one late heartbeat must not look like a death",
                p.suspicion_timeout_ms, p.heartbeat_interval_ms
            ),
        );
    }
    // A sync that was due at the bound still grows until the guest is paused, and each page has a header.
    if p.staging_bytes_max() < u64::from(p.max_dirty_pages) * 2 * 4096 {
        wrong.at(
            &at("staging_mib_max"),
            format!(
                "`protection.staging_mib_max` is {}, but must hold twice `max_dirty_pages` ({} pages are {} MiB)",
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
                "`plaintext = true` and `certificates` exclude each other: remove `plaintext`, and the link is encrypted",
            );
        }
        return;
    }
    for name in config.hosts.keys() {
        if config.certificates_of(name).is_some() {
            if let Err(sentence) = super::certificate_name(name) {
                wrong.at(&["hosts", name], sentence);
            }
        } else if p.enabled {
            wrong.at(
                &["protection"],
                format!(
                    "the link between the hosts carries the guest's whole memory, and host `{name}` has no \
                     certificates for it: make a set with `kemari certs` and name its directory as `certificates`, or \
                     say `plaintext = true` if nobody else is on that network"
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
                    "disk `{}` is said to be both shared and replicated: both hosts see one disk, or each has its own; \
                     remove one of the two keys",
                    disk.id
                ),
            );
        } else if !disk.shared && !disk.is_replicated() {
            wrong.at(
                &["disk", &index, "replicate"],
                format!(
                    "disk `{}` is neither shared nor replicated, so the other host would go on without what is on it: \
                     remove `replicate = false`, or put it on storage that both hosts see, and say `shared = true`",
                    disk.id
                ),
            );
        } else if disk.shared && disk.cache != Cache::Direct && !p.allow_cached_shared_disk {
            wrong.at(
                &["disk", &index],
                format!(
                    "disk `{}` is shared by two hosts, so it must bypass their page caches (a dead host's cache loses \
                     completed writes): say `cache = \"direct\"`",
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
                "disk `{}` is shared, so host `{name}` needs a `fence` command that cuts the other host off from it \
                 before this one writes",
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

fn arbiter(arbiter: &Arbiter, wrong: &mut Wrong) {
    let at = |key| ["arbiter", key];
    wrong.range(&at("timeout_ms"), arbiter.timeout_ms, TIMEOUT_MS);
    match arbiter.kind {
        ArbiterKind::Etcd => {
            if !(1..=ENDPOINTS_MAX).contains(&arbiter.endpoints.len()) {
                wrong.at(
                    &["arbiter"],
                    format!("an etcd arbiter needs 1 to {ENDPOINTS_MAX} `endpoints`, as [\"http://10.0.0.9:2379\"]"),
                );
            }
            for endpoint in &arbiter.endpoints {
                if let Err(sentence) = super::Endpoint::parse(endpoint) {
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
            "a certificate or a password is of no use, and a password would be read by anybody, where an endpoint is \
             plain http: use https for all of them",
        );
    }
}

fn hooks(hooks: &[Hook], wrong: &mut Wrong) {
    if hooks.len() > HOOKS_MAX {
        wrong.at(
            &["hook"],
            format!("there are {} hooks, but at most {HOOKS_MAX} may be", hooks.len()),
        );
    }
    for (index, hook) in hooks.iter().enumerate() {
        let index = index.to_string();
        if hook.on.is_empty() {
            wrong.at(
                &["hook", &index, "on"],
                "`hook.on` is empty: say when it is to run, as [\"unprotected\", \"takeover\"]",
            );
        }
        if hook.command.first().is_none_or(String::is_empty) {
            wrong.at(
                &["hook", &index, "command"],
                "`hook.command` names no program: write [\"/usr/local/sbin/alarm\"]",
            );
        }
        let range = HOOK_TIMEOUT_MS;
        if !range.contains(&hook.timeout_ms) {
            wrong.at(
                &["hook", &index, "timeout_ms"],
                format!(
                    "`hook.timeout_ms` is {}, but must be {} to {}",
                    hook.timeout_ms,
                    range.start(),
                    range.end()
                ),
            );
        }
    }
}

fn hosts(config: &Config, wrong: &mut Wrong) {
    if config.hosts.is_empty() {
        wrong.at(
            &["hosts"],
            "[hosts] is empty: give each host that may run the VM a section [hosts.NAME]",
        );
    }
    let mut listens = BTreeSet::new();
    for (name, host) in &config.hosts {
        wrong.name(&["hosts", name], "a host's name", name, NAME_BYTES_MAX);
        let listen = ["hosts", name, "listen"];
        wrong.unique(&listen, "the address", &host.listen.to_string(), &mut listens);
        if host.listen.is_nowhere() {
            wrong.at(
                &listen,
                format!(
                    "`hosts.{name}.listen` is {}, but the other host connects to it: give one address and a port",
                    host.listen
                ),
            );
        }
        wrong.range(
            &["hosts", name, "console_mib_max"],
            host.console_mib_max,
            1..=1 << 20,
        );
        wrong.range(
            &["hosts", name, "fence_timeout_ms"],
            host.fence_timeout_ms,
            TIMEOUT_MS,
        );
        if host.fence.first().is_some_and(String::is_empty) {
            wrong.at(
                &["hosts", name, "fence"],
                format!("`hosts.{name}.fence` begins with an empty word"),
            );
        }
        device_names(config, name, host, wrong);
    }
}

fn device_names(config: &Config, name: &str, host: &Host, wrong: &mut Wrong) {
    let disks: Vec<&str> = config.disks.iter().map(|disk| disk.id.as_str()).collect();
    let nets: Vec<&str> = config.nets.iter().map(|net| net.id.as_str()).collect();
    let given = host.disks.keys().map(|id| ("disks", "disk", id, &disks));
    let given = given.chain(host.taps.keys().map(|id| ("taps", "net", id, &nets)));
    let given = given.chain(host.bridges.keys().map(|id| ("bridges", "net", id, &nets)));
    let given = given.chain(host.uplinks.keys().map(|id| ("uplinks", "net", id, &nets)));
    for (section, kind, id, known) in given {
        if known.contains(&id.as_str()) {
            continue;
        }
        let hint = match nearest(id, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if known.is_empty() => format!("there is no [[{kind}]]"),
            None => format!("there are: {}", known.join(", ")),
        };
        wrong.at(
            &["hosts", name, section, id],
            format!("[hosts.{name}.{section}] names `{id}`, but no [[{kind}]] has that id; {hint}"),
        );
    }
    let mut taps = BTreeSet::new();
    for (id, tap) in &host.taps {
        let path = ["hosts", name, "taps", id];
        tap_name(&path, tap, wrong);
        wrong.unique(&path, "the TAP", tap, &mut taps);
    }
}
