//! A network namespace with one TAP, of which the test itself is the other end.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

/// The only TAP in the namespace.
pub(crate) const TAP: &str = "tap0";
/// The bare guest's address and port, as it has them without a word on its command line.
pub(crate) const GUEST: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 0, 2), 6379);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;

/// Moves the calling thread, and all that it will start, into a new namespace with a TAP that is up.
pub(crate) fn enter() {
    // SAFETY: only this thread's network namespace changes.
    check("unshare", unsafe { libc::unshare(libc::CLONE_NEWNET) });
    // Neighbour discovery would be noise.
    for scope in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    make_tap();
}

/// Deletes the TAP, whoever is attached to it.
pub(crate) fn delete_tap() {
    let mut ip = Command::new("ip");
    let status = ip.args(["link", "del", TAP]).status().expect("ip starts");
    assert!(status.success(), "the TAP cannot be deleted");
}

/// Makes the TAP, with our address, and sets it up.
pub(crate) fn make_tap() {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("/dev/net/tun opens");
    let mut request = named(TAP);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the kernel reads one ifreq at the pointer.
    check("TUNSETIFF", unsafe {
        libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw const request)
    });
    // SAFETY: the argument is passed by value.
    check("TUNSETPERSIST", unsafe {
        libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, 1)
    });

    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    set_address(&socket, libc::SIOCSIFADDR, OURS);
    set_address(&socket, libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0));
    let mut request = named(TAP);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the kernel reads one ifreq at the pointer.
    check("SIOCSIFFLAGS", unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    });
}

fn named(interface: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn set_address(socket: &OwnedFd, what: libc::c_ulong, address: Ipv4Addr) {
    let mut request = named(TAP);
    let internet = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data.
    request.ifr_ifru.ifru_addr =
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(internet) };
    // SAFETY: the kernel reads one ifreq at the pointer.
    check("set an address", unsafe {
        libc::ioctl(socket.as_raw_fd(), what, &raw const request)
    });
}

fn socket(domain: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    check("socket", fd);
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn check(step: &str, result: i32) {
    assert!(result >= 0, "{step}: {}", io::Error::last_os_error());
}

/// Sees every frame that the guest sends.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Sees what leaves the guest from now on, in the namespace of the calling thread.
    pub(crate) fn new() -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let socket = socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK,
            protocol.into(),
        );
        let name = CString::new(TAP).expect("no zero in it");
        // SAFETY: a sockaddr_ll of zeros is a valid one.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name is a terminated string.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address is one of that length.
        check("bind", unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
        });
        Self(socket)
    }

    /// The next frame from the guest that has come by now.
    pub(crate) fn frame(&self) -> Option<Vec<u8>> {
        loop {
            let mut bytes = vec![0; 65_600];
            // SAFETY: a sockaddr_ll of zeros is a valid one.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_length = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: buffer and address are live and as long as is said.
            let length = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_length,
                )
            };
            let length = usize::try_from(length).ok()?;
            if i32::from(from.sll_pkttype) != i32::from(libc::PACKET_OUTGOING) {
                bytes.truncate(length);
                return Some(bytes);
            }
        }
    }

    /// How many frames came since the last look.
    pub(crate) fn count(&self) -> usize {
        std::iter::from_fn(|| self.frame()).count()
    }
}
