//! How large the packets are that get to another host and back: found by echo requests (ICMP, ICMPv6) of
//! several sizes that nobody on the way may cut up. Where one interface or switch has a smaller MTU than the
//! others, packets of full size get lost in silence, and all that a sync sends are such.
//!
//! Nothing depends on it: where echo requests are not answered, or may not be sent (to make a socket for them
//! takes CAP_NET_RAW, or a group in `net.ipv4.ping_group_range`), it is not known.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, connect, ipproto, recv, sendto, socket};

/// Each size is tried so often: a packet may get lost without a reason.
const TRIES: u32 = 3;
/// An answer is waited for for some times as long as that to a small packet took, within these bounds.
const ANSWER_MIN: Duration = Duration::from_millis(50);
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// Bytes of an echo request before its content.
const HEADER_BYTES: usize = 8;
/// Bytes at the beginning of the content that say whose request it is.
const NONCE_BYTES: usize = 16;

/// Packets that are larger than the way is wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrow {
    /// The largest packet that this host sends to the other, in bytes: the MTU of its interface.
    pub(crate) sent_bytes_max: u32,
    /// The largest one that gets there, and back.
    pub(crate) arriving_bytes_max: u32,
}

impl Narrow {
    /// What is wrong, and what to do.
    pub fn sentence(&self, host: &str) -> String {
        format!(
            "packets above {} bytes do not arrive at `{host}`, though this host sends up to {} bytes: give \
             the interfaces of both hosts and all switches between them one MTU",
            self.arriving_bytes_max, self.sent_bytes_max
        )
    }
}

/// A socket for either version of IP, if it was to be had: one for the process, for all of its life. Where a
/// datagram socket is not allowed (`net.ipv4.ping_group_range`) it is a raw one, with which whoever gets hold
/// of the process could send any ICMP to anybody. The header of IP stays the kernel's: seccomp refuses the
/// options that would change that.
static HELD: OnceLock<[Option<Socket>; 2]> = OnceLock::new();
/// Whoever uses them: one at a time.
static IN_USE: Mutex<()> = Mutex::new(());

/// Makes the sockets of this process, before it gives up what that takes.
pub fn hold() {
    let held = [&V4, &V6].map(|family| Socket::new(family).ok());
    // There is one begin a process.
    let _ = HELD.set(held);
}

/// Looks whether packets as large as this host sends them get to `address` and back. `None`: they do, or
/// nobody knows. Takes seconds where answers take long or none comes.
pub fn narrow(address: SocketAddr) -> Option<Narrow> {
    let mut echo = Echo::open(address).ok()?;
    let sent_bytes_max = echo.mtu().ok()?;
    let least = echo.family.least_bytes.min(sent_bytes_max);
    let begun = Instant::now();
    if !echo.returns(least) {
        return None;
    }
    echo.answer_max = (4 * begun.elapsed()).clamp(ANSWER_MIN, ANSWER_MAX);
    if echo.returns(sent_bytes_max) {
        return None;
    }
    let arriving_bytes_max = largest(least, sent_bytes_max, |bytes| echo.returns(bytes));
    // That was no narrow way, but a bad moment.
    let is_narrow = echo.returns(arriving_bytes_max) && !echo.returns(sent_bytes_max);
    is_narrow.then_some(Narrow {
        sent_bytes_max,
        arriving_bytes_max,
    })
}

/// The largest size that returns, where `good` does and `bad` does not.
fn largest(mut good: u32, mut bad: u32, mut returns: impl FnMut(u32) -> bool) -> u32 {
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match returns(middle) {
            true => good = middle,
            false => bad = middle,
        }
    }
    good
}

/// What differs between the versions of IP.
struct Family {
    family: AddressFamily,
    protocol: rustix::net::Protocol,
    /// Level of socket options, the one by which nobody may cut packets up whatever the way is thought to be
    /// like, and the one that tells the MTU.
    options: (libc::c_int, libc::c_int, libc::c_int),
    /// Its value.
    probe: libc::c_int,
    header_bytes: usize,
    request: u8,
    reply: u8,
    /// Packets of this size get everywhere (RFC 791, RFC 8200).
    least_bytes: u32,
    /// A raw socket receives the header of IP, too.
    raw_has_header: bool,
}

const V4: Family = Family {
    family: AddressFamily::INET,
    protocol: ipproto::ICMP,
    options: (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU),
    probe: libc::IP_PMTUDISC_PROBE,
    header_bytes: 20,
    request: 8,
    reply: 0,
    least_bytes: 576,
    raw_has_header: true,
};

const V6: Family = Family {
    family: AddressFamily::INET6,
    protocol: ipproto::ICMPV6,
    options: (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU),
    probe: libc::IPV6_PMTUDISC_PROBE,
    header_bytes: 40,
    request: 128,
    reply: 129,
    least_bytes: 1280,
    raw_has_header: false,
};

/// A socket for echo requests.
struct Socket {
    socket: OwnedFd,
    is_raw: bool,
}

impl Socket {
    fn new(family: &Family) -> io::Result<Self> {
        let open = |kind| socket(family.family, kind, Some(family.protocol));
        Ok(match open(SocketType::DGRAM) {
            Ok(socket) => Self {
                socket,
                is_raw: false,
            },
            Err(_) => Self {
                socket: open(SocketType::RAW)?,
                is_raw: true,
            },
        })
    }

    /// The one that is held, or a new one.
    fn of(address: SocketAddr, family: &Family) -> io::Result<Self> {
        let held = HELD.get().map(|held| &held[usize::from(address.is_ipv6())]);
        let Some(Some(Self { socket, is_raw })) = held else {
            return Self::new(family);
        };
        Ok(Self {
            socket: socket.try_clone()?,
            is_raw: *is_raw,
        })
    }
}

/// Echo requests to one address.
struct Echo {
    family: &'static Family,
    /// Not connected, since it may be a held one: who was connected before keeps the address that it had then
    /// as its own.
    socket: OwnedFd,
    is_raw: bool,
    /// A datagram socket that is connected there: it knows the way.
    way: OwnedFd,
    address: SocketAddr,
    _alone: MutexGuard<'static, ()>,
    nonce: u64,
    sequence: u64,
    answer_max: Duration,
}

impl Echo {
    fn open(mut address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { &V4 } else { &V6 };
        let alone = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let Socket { socket, is_raw } = Socket::of(address, family)?;
        // Of a raw socket the port is no port. All else counts, as the scope of a link-local address.
        address.set_port(0);
        let way = rustix::net::socket(family.family, SocketType::DGRAM, None)?;
        connect(&way, &address)?;
        let echo = Self {
            family,
            socket,
            is_raw,
            way,
            address,
            _alone: alone,
            nonce: rand::random(),
            sequence: 0,
            answer_max: ANSWER_MAX,
        };
        let (level, discover, _) = family.options;
        // SAFETY: the kernel reads one int at the pointer.
        let set = unsafe {
            libc::setsockopt(
                echo.socket.as_raw_fd(),
                level,
                discover,
                (&raw const family.probe).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // A raw one is given all echoes of this host, and has no room for more at some time.
        let mut rest = [0];
        while recv(&echo.socket, &mut rest[..], RecvFlags::DONTWAIT).is_ok() {}
        Ok(echo)
    }

    /// The largest packet that is sent, in bytes.
    fn mtu(&self) -> io::Result<u32> {
        let (level, _, mtu) = self.family.options;
        let mut value: libc::c_int = 0;
        let mut length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes one int at the pointer, and its length.
        let got = unsafe {
            libc::getsockopt(
                self.way.as_raw_fd(),
                level,
                mtu,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        match got {
            0 => u32::try_from(value).map_err(io::Error::other),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether a packet of this size gets there and back.
    fn returns(&mut self, bytes: u32) -> bool {
        (0..TRIES).any(|_| self.try_one(bytes as usize).unwrap_or(false))
    }

    fn try_one(&mut self, bytes: usize) -> io::Result<bool> {
        self.sequence += 1;
        let message = request(self.family, bytes, self.nonce, self.sequence);
        let deadline = Instant::now() + self.answer_max;
        sendto(&self.socket, &message, SendFlags::empty(), &self.address)?;
        let mut buffer = vec![0; bytes + self.family.header_bytes];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left))?;
            let (count, _) = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let skipped = match self.is_raw && self.family.raw_has_header {
                // The length of the header of IP, in words of four bytes.
                true => usize::from(buffer[0] & 0xf) * 4,
                false => 0,
            };
            let received = buffer.get(skipped..count).unwrap_or_default();
            if is_reply(self.family, received, &message) {
                return Ok(true);
            }
        }
    }
}

/// An echo request that makes a packet of `bytes`.
fn request(family: &Family, bytes: usize, nonce: u64, sequence: u64) -> Vec<u8> {
    let length = bytes
        .saturating_sub(family.header_bytes)
        .max(HEADER_BYTES + NONCE_BYTES);
    let mut message = vec![0; length];
    message[0] = family.request;
    // Identifier and sequence number: whose it is, is told by the content.
    message[4..6].copy_from_slice(&(nonce as u16).to_be_bytes());
    message[6..8].copy_from_slice(&(sequence as u16).to_be_bytes());
    message[HEADER_BYTES..][..8].copy_from_slice(&nonce.to_be_bytes());
    message[HEADER_BYTES + 8..][..8].copy_from_slice(&sequence.to_be_bytes());
    // That of ICMPv6 the kernel makes, since it covers addresses.
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Whether it has come back whole: only the first eight bytes may have changed.
fn is_reply(family: &Family, received: &[u8], sent: &[u8]) -> bool {
    received.first() == Some(&family.reply) && received.get(HEADER_BYTES..) == sent.get(HEADER_BYTES..)
}

/// That of RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_is_found_wherever_it_is() {
        for limit in [576, 577, 1500, 8191, 8999] {
            let mut asked = 0;
            let found = largest(576, 9000, |bytes| {
                asked += 1;
                bytes <= limit
            });
            assert_eq!(found, limit);
            assert!(asked <= 14, "{asked}");
        }
        assert_eq!(largest(576, 577, |_| unreachable!()), 576);
    }

    #[test]
    fn a_reply_is_the_request_that_has_come_back_whole() {
        for family in [&V4, &V6] {
            let sent = request(family, 1500, 7, 9);
            assert_eq!(sent.len(), 1500 - family.header_bytes);
            assert_eq!(checksum(&sent), 0, "a message with its checksum sums up to none");
            let mut reply = sent.clone();
            assert!(!is_reply(family, &reply, &sent), "that is the request");
            reply[0] = family.reply;
            assert!(is_reply(family, &reply, &sent));
            assert!(!is_reply(family, &reply[..1000], &sent));
            let of_another = request(family, 1500, 7, 10);
            assert!(!is_reply(family, &reply, &of_another));
            assert!(!is_reply(family, &[], &sent));
        }
    }

    #[test]
    fn on_the_way_to_oneself_nothing_is_too_large() {
        for address in ["127.0.0.1:1", "[::1]:1"] {
            let address = address.parse().unwrap();
            let mut echo = Echo::open(address).expect("the tests run as root");
            assert!(echo.returns(echo.family.least_bytes));
            let mtu = echo.mtu().unwrap();
            assert!(echo.returns(mtu) && !echo.returns(mtu + 1), "{mtu}");
            drop(echo);
            assert_eq!(narrow(address), None);
        }
    }
}
