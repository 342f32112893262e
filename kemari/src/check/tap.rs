//! TAP devices: there, and free to be attached.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::Finding;
use crate::config::{Config, HostNet};
use crate::links::links;
use crate::ports::Ports;

/// Looks at the TAP of one card. While the VM `running` here uses it, it is busy as it should be.
pub fn check(net: &HostNet<'_>, running: bool) -> Finding {
    let tap = &net.tap;
    let card = format!("card `{}`: ", net.net.id);
    match probe(tap) {
        Ok(()) => Finding::ok(format!("{card}TAP `{tap}` is free")),
        Err(Errno::NODEV) => Finding::error(
            format!("{card}there is no TAP device `{tap}`"),
            format!("make it: `ip tuntap add dev {tap} mode tap && ip link set {tap} master BRIDGE up`"),
        ),
        Err(Errno::INVAL) => Finding::error(
            format!("{card}the network device `{tap}` is no TAP with one queue"),
            "name a device made by `ip tuntap add dev NAME mode tap`",
        ),
        Err(Errno::BUSY) if running => Finding::ok(format!("{card}TAP `{tap}` is in use by the running VM")),
        Err(Errno::BUSY) => Finding::error(
            format!("{card}TAP `{tap}` is in use by another process"),
            "end that process, or give this VM a TAP of its own",
        ),
        Err(Errno::PERM | Errno::ACCESS) => Finding::error(
            format!("{card}TAP `{tap}` cannot be attached by this user"),
            format!(
                "run Kemari as root, or make it for this user: `ip tuntap add dev {tap} mode tap user NAME`"
            ),
        ),
        Err(error) => Finding::error(
            format!("{card}TAP `{tap}` cannot be attached: {error}"),
            "load the module `tun` (`modprobe tun`): there must be a /dev/net/tun",
        ),
    }
}

/// Whether packets of the guest would get from this host's TAPs to other hosts, as the readiness of a side sees it.
pub fn check_ways(config: &Config, name: &str) -> Option<Finding> {
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
        "the guest would not be reached on this host: mend that, or correct `bridges` and `uplinks` of this host",
    ))
}

/// Attaches to the device, if it exists, and lets it go again. Asks the kernel and not /sys, which shows the network
/// namespace in which it was mounted.
fn probe(tap: &str) -> Result<(), Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let any = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // Attaching would make a device that does not exist.
    rustix::net::netdevice::name_to_index(&any, tap)?;
    let tun: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(errno)?;
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(tap.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    // Never as one of several queues: that would succeed beside a running VM, and change what it has set.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and `tun` is open.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } {
        0 => Ok(()),
        _ => Err(errno(io::Error::last_os_error())),
    }
}
