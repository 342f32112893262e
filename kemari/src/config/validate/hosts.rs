//! The hosts, and whom they tell.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kemari_sync::NAME_BYTES_MAX;

use super::{TIMEOUT_MS, Wrong, tap_name};
use crate::config::fields::nearest;
use crate::config::{Config, Hook, Host};

/// Most hooks: each has a thread of the steward's.
const HOOKS_MAX: usize = 16;
/// Most words of a hook's command, and bytes in all of them.
const HOOK_WORDS_MAX: usize = 64;
const HOOK_BYTES_MAX: usize = 4096;
/// Time-outs of hooks, in ms.
const HOOK_TIMEOUT_MS: RangeInclusive<u32> = 100..=600_000;

pub(super) fn hosts(config: &Config, wrong: &mut Wrong) {
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
                    "`hosts.{name}.listen` is {}, but the other host connects to it: give one address and a \
                     port",
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

pub(super) fn hooks(hooks: &[Hook], wrong: &mut Wrong) {
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
        let bytes = hook.command.iter().map(String::len).sum::<usize>();
        if hook.command.len() > HOOK_WORDS_MAX || bytes > HOOK_BYTES_MAX {
            wrong.at(
                &["hook", &index, "command"],
                format!(
                    "`hook.command` has {} words of {bytes} bytes, but at most {HOOK_WORDS_MAX} of \
                     {HOOK_BYTES_MAX} may be: put them into a script",
                    hook.command.len()
                ),
            );
        }
        wrong.range(&["hook", &index, "timeout_ms"], hook.timeout_ms, HOOK_TIMEOUT_MS);
    }
}
