//! TAP devices: there, and free to be attached.

use kemari_vmm::virtio::tap::{TapDevice, TapError};

use super::Finding;
use crate::config::{Config, HostNet};
use crate::links::links;
use crate::ports::Ports;

/// Looks at the TAP of one card. While the VM `running` here uses it, it is busy as it should be.
pub(super) fn check(net: &HostNet<'_>, running: bool) -> Finding {
    let tap = &net.tap;
    let card = format!("card `{}`: ", net.net.id);
    // Asks the kernel and not /sys, which shows the network namespace in which it was mounted.
    let error = match TapDevice::open(tap) {
        Ok(_) => return Finding::ok(format!("{card}TAP `{tap}` is free")),
        Err(error) => error,
    };
    let errno = match &error {
        TapError::Refused { source, .. } => source.raw_os_error(),
        TapError::Missing(_) | TapError::Name(_) => None,
    };
    match (&error, errno) {
        (TapError::Missing(_), _) => Finding::error(
            format!("{card}there is no TAP device `{tap}`"),
            format!("make it: `ip tuntap add dev {tap} mode tap && ip link set {tap} master BRIDGE up`"),
        ),
        (_, Some(libc::EINVAL)) => Finding::error(
            format!("{card}the network device `{tap}` is no TAP with one queue"),
            "name a device made by `ip tuntap add dev NAME mode tap`",
        ),
        (_, Some(libc::EBUSY)) if running => {
            Finding::ok(format!("{card}TAP `{tap}` is in use by the running VM"))
        }
        (_, Some(libc::EBUSY)) => Finding::error(
            format!("{card}TAP `{tap}` is in use by another process"),
            "end that process, or give this VM a TAP of its own",
        ),
        (_, Some(libc::EPERM | libc::EACCES)) => Finding::error(
            format!("{card}TAP `{tap}` cannot be attached by this user"),
            format!(
                "run Kemari as root, or make it for this user: `ip tuntap add dev {tap} mode tap user NAME`"
            ),
        ),
        _ => Finding::error(
            format!(
                "{card}TAP `{tap}` cannot be used: {:#}",
                anyhow::Error::from(error)
            ),
            "load the module `tun` (`modprobe tun`): there must be a /dev/net/tun",
        ),
    }
}

/// Whether packets of the guest would get from this host's TAPs to other hosts,
/// as the readiness of a side sees it.
pub(crate) fn check_ways(config: &Config, name: &str) -> Option<Finding> {
    let links = match links() {
        Ok(links) => links,
        Err(error) => {
            return Some(Finding::warning(
                format!("the network devices of this host cannot be looked at: {error}"),
                "run the check as the user, and in the network namespace, that Kemari is to run in",
            ));
        }
    };
    // What is missing altogether was said for each card.
    let is_there = |tap: &str| links.iter().any(|link| link.name == tap);
    if !config.nets_of(name).iter().all(|net| is_there(&net.tap)) {
        return None;
    }
    let trouble = Ports::default().trouble(&links, config, name)?;
    Some(Finding::error(
        trouble,
        "the guest would not be reached on this host: mend that, or correct `bridges` and `uplinks` of this \
         host",
    ))
}
