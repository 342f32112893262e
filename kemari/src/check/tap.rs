//! TAP devices: there, and free to be attached.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::Finding;
use crate::config::HostNet;

/// Looks at the TAP of one card. While the VM `running` here uses it, it is busy as it should be.
pub fn check(net: &HostNet<'_>, running: bool) -> Finding {
    let (id, tap) = (&net.net.id, &net.tap);
    let flags_path = Path::new("/sys/class/net").join(tap).join("tun_flags");
    if !Path::new("/sys/class/net").join(tap).exists() {
        return Finding::error(
            format!("card `{id}`: there is no TAP device `{tap}`"),
            format!("make it: `ip tuntap add dev {tap} mode tap && ip link set {tap} master BRIDGE up`"),
        );
    }
    let flags = std::fs::read_to_string(&flags_path)
        .ok()
        .and_then(|text| parse_hex(&text));
    let Some(flags) = flags.filter(|flags| flags & libc::IFF_TAP as u32 != 0) else {
        return Finding::error(
            format!("card `{id}`: the network device `{tap}` is no TAP"),
            "name a device made by `ip tuntap add dev NAME mode tap`",
        );
    };
    match attach(tap, flags) {
        Ok(()) => Finding::ok(format!("card `{id}`: TAP `{tap}` is free")),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) && running => {
            Finding::ok(format!("card `{id}`: TAP `{tap}` is in use by the running VM"))
        }
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Finding::error(
            format!("card `{id}`: TAP `{tap}` is in use by another process"),
            "end that process, or give this VM a TAP of its own",
        ),
        Err(error) => Finding::error(
            format!("card `{id}`: TAP `{tap}` cannot be attached: {error}"),
            "run Kemari as root, or make the TAP for this user: `ip tuntap add ... user NAME`",
        ),
    }
}

fn parse_hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// Attaches to the existing device and lets it go again.
fn attach(tap: &str, flags: u32) -> io::Result<()> {
    let tun: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let queues = flags & libc::IFF_MULTI_QUEUE as u32;
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(tap.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP as u32 | libc::IFF_NO_PI as u32 | queues) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and `tun` is open.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
