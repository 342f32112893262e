//! The host itself: files to boot from, memory, its address, its directories, its fence.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Finding, limits};
use crate::config::{Config, Host};
use crate::control::{self, Client};
use crate::sandbox;

/// Memory of the program beside the guest's and the staging, in MiB.
const OVERHEAD_MIB: u64 = 64;

/// Whether a side of this VM serves its control socket already.
/// One that this user may not speak to is there as well.
pub(crate) fn runs_here(host: &Host) -> bool {
    match UnixStream::connect(host.control()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied && host.control().exists(),
    }
}

/// Looks at everything of this host that is neither disk nor network card.
pub(super) fn check(config: &Config, name: &str, running: bool) -> Vec<Finding> {
    let host = config.host(name);
    let mut findings = vec![Finding::ok(format!(
        "configuration of VM `{}` on host `{name}`, digest {:016x}",
        config.vm,
        config.digest()
    ))];
    let firmware = config.machine.firmware.is_some();
    let what = if firmware { "firmware" } else { "kernel" };
    findings.push(boot_file(what, config.machine.begins_with()));
    findings.extend(
        config
            .machine
            .initrd
            .as_deref()
            .map(|path| boot_file("initial RAM disk", path)),
    );
    if running {
        findings.push(Finding::ok(format!(
            "a side of the VM runs on this host already: {}",
            host.control().display()
        )));
        findings.extend(changed_since_start(config, host));
    } else {
        findings.push(memory(config));
        findings.push(control_socket(host));
        if config.protection.enabled {
            findings.push(listen(host));
        }
    }
    findings.extend(limits::check(config, name, needed_mib(config)));
    findings.extend(sandbox(config, name));
    findings.extend(config.hooks.iter().map(|hook| hook_command(&hook.command[0])));
    if config.protection.enabled && !host.fence.is_empty() {
        findings.push(fence(&host.fence[0]));
    }
    findings
}

/// A side goes on with the configuration that it was started with, whatever becomes of the file.
fn changed_since_start(config: &Config, host: &Host) -> Option<Finding> {
    let running = Client::new(host.control()).status().ok()?.config?;
    (running != format!("{:016x}", config.digest())).then(|| {
        Finding::warning(
            format!("the side that runs here was started with another configuration, of digest {running}"),
            "undo the change, or make it on both hosts: it counts when both sides have been started anew",
        )
    })
}

fn boot_file(what: &str, path: &Path) -> Finding {
    let opened = std::fs::File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Finding::ok(format!(
            "{what} {}: {} KiB",
            path.display(),
            metadata.len().div_ceil(1024)
        )),
        Ok(_) => Finding::error(
            format!("the {what} {} is no file with anything in it", path.display()),
            format!("correct `{what}` in [machine]").replace("initial RAM disk", "initrd"),
        ),
        Err(error) => Finding::error(
            format!("the {what} {} cannot be opened: {error}", path.display()),
            match error.kind() {
                io::ErrorKind::PermissionDenied => "let this user read it, or run Kemari as one that may",
                _ => "correct its path in [machine], or install it on this host",
            },
        ),
    }
}

/// What the guest, staging and program need, in MiB.
pub(crate) fn needed_mib(config: &Config) -> u64 {
    let staging = if config.protection.enabled {
        config.protection.staging_mib_max
    } else {
        0
    };
    u64::from(config.machine.memory_mib) + u64::from(staging) + OVERHEAD_MIB
}

fn memory(config: &Config) -> Finding {
    let needed = needed_mib(config);
    match crate::side::memory_available_mib() {
        Some(available) if available >= needed => {
            Finding::ok(format!("memory: {available} MiB available, {needed} needed"))
        }
        Some(available) => Finding::error(
            format!("memory: {available} MiB available, but the guest, staging and program need {needed}"),
            "free some, or lower `machine.memory_mib` or `protection.staging_mib_max`",
        ),
        None => Finding::warning(
            "memory: /proc/meminfo does not say what is available",
            "mount /proc",
        ),
    }
}

fn control_socket(host: &Host) -> Finding {
    let path = host.control();
    let writable = |directory: &Path| {
        rustix::fs::access(
            directory,
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        )
        .is_ok()
    };
    let parent = path.ancestors().skip(1).find(|directory| directory.exists());
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => Finding::error(
            format!("something that is no socket stands at {}", path.display()),
            format!(
                "remove it, or set another `control` in [hosts]: {}",
                path.display()
            ),
        ),
        _ if control::Server::check(path).is_err() => Finding::error(
            format!(
                "the path of the control socket {} is too long for a socket",
                path.display()
            ),
            "set a shorter `control` of this host",
        ),
        _ if parent.is_some_and(writable) => Finding::ok(format!("control socket {}", path.display())),
        _ => Finding::error(
            format!(
                "the control socket {} cannot be made by this user",
                path.display()
            ),
            "run Kemari as root, or set `control` of this host to a path in a directory of this user",
        ),
    }
}

fn listen(host: &Host) -> Finding {
    match TcpListener::bind(host.listen.address()) {
        Ok(_) => Finding::ok(format!("address {} is free", host.listen.address())),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::error(
            format!(
                "port {} of {} is in use by another process",
                host.listen.address().port(),
                host.listen.address().ip()
            ),
            "end that process, or give this host another port in `listen`",
        ),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Finding::error(
            format!("{} is no address of this machine", host.listen.address().ip()),
            "correct `listen` of this host, or say with --host which host this is",
        ),
        Err(error) => Finding::error(
            format!("cannot listen on {}: {error}", host.listen.address()),
            "correct `listen` of this host",
        ),
    }
}

/// What this kernel cannot keep a side from, and what this side would keep of its user's rights.
fn sandbox(config: &Config, name: &str) -> Vec<Finding> {
    let advice = "a newer kernel, or one with it switched on, confines a side better; see docs/security.md";
    let lacks = sandbox::lacks()
        .into_iter()
        .map(|lack| Finding::warning(lack, advice));
    let mut findings: Vec<_> = lacks.collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            "sandbox: this kernel confines a side in files, ports and system calls",
        ));
    }
    match sandbox::keeps(config, name) {
        Ok(kept) if kept.is_empty() => findings.push(Finding::ok("sandbox: a side keeps no capability")),
        Ok(kept) => {
            let advice = "it works as it is, with more rights than it could have; see docs/security.md";
            findings.extend(kept.into_iter().map(|why| Finding::warning(why, advice)));
        }
        Err(error) => findings.push(Finding::error(
            format!("{error:#}"),
            "a side would not start; run the check as the user that starts Kemari",
        )),
    }
    findings
}

fn hook_command(program: &str) -> Finding {
    match crate::side::executable(program) {
        Ok(path) => Finding::ok(format!("hook {}", path.display())),
        Err(why) => Finding::warning(
            format!("the hook `{program}` {why}"),
            "install it, or correct `command` in [[hook]]: without it nobody is told",
        ),
    }
}

fn fence(program: &str) -> Finding {
    match crate::side::executable(program) {
        Ok(path) => Finding::ok(format!("fence command {}", path.display())),
        Err(why) => Finding::error(
            format!("the fence command `{program}` {why}"),
            "install it, or correct `fence` of this host: without it this host never takes over",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn fences() {
        assert_eq!(fence("true").level, Level::Ok);
        assert_eq!(fence("/bin/sh").level, Level::Ok);
        assert_eq!(fence("/etc/passwd").level, Level::Error);
        assert_eq!(fence("no-such-fence").level, Level::Error);
    }
}
