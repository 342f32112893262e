//! TAP devices of the host: where a guest's packets leave and come in.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Completions;
use crate::confine::{self, COMMON, Calls, DEVICES};
use crate::threads;

/// Bytes of the virtio-net header before each packet (virtio 1.2, section 5.1.6).
pub(crate) const VNET_HEADER_BYTES: usize = 12;

/// Longest packet with its virtio-net header: a 64 KiB segment to be cut up by the TAP, and an Ethernet
/// header.
pub const PACKET_BYTES_MAX: usize = VNET_HEADER_BYTES + 14 + 65_535;

/// Longest time that an opened TAP may take until it runs.
const RUNNING_WAIT_MAX: Duration = Duration::from_millis(50);
/// How often that is looked at.
const RUNNING_LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// A TAP that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no such device.
    #[error("there is no TAP device {0}; make it with `ip tuntap add dev {0} mode tap` and set it up")]
    Missing(String),
    /// The name is longer than the kernel allows.
    #[error("{0:?} is not a name for a network device: it takes 1 to 15 bytes")]
    Name(String),
    /// The kernel refused a step.
    #[error("cannot {step} the TAP device {name}; is it in use by another process, and are you root?")]
    Refused {
        /// The device.
        name: String,
        /// What was tried.
        step: TapStep,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A step on the way to an open TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TapStep {
    /// What all TAPs are attached to by is opened.
    Device,
    /// One is attached to. That takes CAP_NET_ADMIN, or to be the TAP's owner.
    Attach,
    /// Packets begin with the header that a card of virtio has.
    Header,
    /// Packets that come are waited for.
    Watch,
}

impl fmt::Display for TapStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "open /dev/net/tun for",
            Self::Attach => "attach to",
            Self::Header => "set the header size of",
            Self::Watch => "watch",
        })
    }
}

/// An open TAP. While it is open the device has a carrier; closing it takes the carrier down.
pub struct TapDevice {
    file: Arc<File>,
    stop: EventFd,
}

// Request numbers of <linux/if_tun.h>.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
pub(crate) const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
pub(crate) const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_uint = 1;
const TUN_F_TSO4: libc::c_uint = 2;
const TUN_F_TSO6: libc::c_uint = 4;

/// What the thread of a TAP asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "net-rx",
    parts: &[COMMON, DEVICES],
};

/// Attaches to an existing TAP: all of its opening that takes privileges. The file may be given to another
/// process, which makes a [`TapDevice`] of it.
///
/// # Errors
/// If there is no such TAP, or the kernel refuses.
pub fn attach(name: &str) -> Result<File, TapError> {
    let c_name = std::ffi::CString::new(name).map_err(|_| TapError::Name(name.into()))?;
    let request = request_of(name)?;
    // SAFETY: the name is a terminated string.
    if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
        return Err(TapError::Missing(name.into()));
    }
    let refused = |step| refused(name, step);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(refused(TapStep::Device))?;
    let fd = file.as_raw_fd();
    // SAFETY: the kernel reads one ifreq at the pointer.
    check(unsafe { libc::ioctl(fd, TUNSETIFF, &raw const request) }).map_err(refused(TapStep::Attach))?;
    let header_bytes = VNET_HEADER_BYTES as libc::c_int;
    // SAFETY: the kernel reads one int at the pointer.
    check(unsafe { libc::ioctl(fd, TUNSETVNETHDRSZ, &raw const header_bytes) })
        .map_err(refused(TapStep::Header))?;
    Ok(file)
}

fn refused(name: &str, step: TapStep) -> impl Fn(io::Error) -> TapError {
    move |source| TapError::Refused {
        name: name.to_owned(),
        step,
        source,
    }
}

/// What the kernel is asked for about a TAP of one queue, with headers of virtio.
fn request_of(name: &str) -> Result<libc::ifreq, TapError> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(TapError::Name(name.into()));
    }
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    Ok(request)
}

impl TapDevice {
    /// Opens an existing TAP.
    ///
    /// # Errors
    /// See [`attach`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::attached(name, attach(name)?)
    }

    /// Takes a file that was attached to the TAP of this name ([`attach`]). Its packets pass from here on.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn attached(name: &str, file: File) -> Result<Self, TapError> {
        let stop = EventFd::new(EFD_NONBLOCK).map_err(refused(name, TapStep::Watch))?;
        wait_until_running(&request_of(name)?);
        Ok(Self {
            file: Arc::new(file),
            stop,
        })
    }

    /// Whether the device still exists. One of the same name that was made since is another one.
    pub fn is_there(&self) -> bool {
        // SAFETY: an ifreq of zeros is a valid one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one ifreq at the pointer.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNGETIFF, &raw mut request) }).is_ok()
    }

    /// Says what packets the guest takes: ones whose checksum is still to be made, and segments larger than a
    /// frame.
    pub(crate) fn set_offloads(&self, checksum: bool, tso4: bool, tso6: bool) {
        let flag = |wanted: bool, flag: libc::c_uint| if wanted { flag } else { 0 };
        let flags = flag(checksum, TUN_F_CSUM) | flag(tso4, TUN_F_TSO4) | flag(tso6, TUN_F_TSO6);
        // SAFETY: the argument is passed by value.
        let result =
            check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) });
        if let Err(error) = result {
            // Offloads are only offered to the guest where the configuration says that the TAP has them.
            tracing::error!("the TAP refuses the offloads that the guest has accepted: {error}");
        }
    }

    /// Starts the thread that tells when packets have come. It ends when the TAP is dropped.
    pub fn watch(&self, completions: Weak<dyn Completions>) -> io::Result<()> {
        let epoll = Epoll::new()?;
        // Edge-triggered: a guest without receive buffers must not make this thread spin. Its next kick reads
        // on.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let (tap_fd, stop_fd) = (self.file.as_raw_fd(), self.stop.as_raw_fd());
        epoll.ctl(
            ControlOperation::Add,
            tap_fd,
            EpollEvent::new(edge, tap_fd as u64),
        )?;
        epoll.ctl(
            ControlOperation::Add,
            stop_fd,
            EpollEvent::new(EventSet::IN, stop_fd as u64),
        )?;
        let keep_open = (self.file.clone(), self.stop.try_clone()?);
        threads::start("net-rx", move || {
            confine::thread(&CALLS);
            let _keep_open = keep_open;
            watch_loop(&epoll, stop_fd, &completions);
        })
    }

    /// Sends one packet with its virtio-net header. What the host cannot take now is lost, as on any wire.
    pub fn send(&self, packet: &[u8]) {
        if let Err(error) = (&*self.file).write(packet) {
            tracing::debug!("the TAP dropped a packet of {} bytes: {error}", packet.len());
        }
    }

    /// Receives one packet with its virtio-net header, if one waits.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        (&*self.file).read(buffer).ok()
    }
}

impl Drop for TapDevice {
    fn drop(&mut self) {
        // The counter cannot overflow: it is written once.
        let _ = self.stop.write(1);
    }
}

/// The carrier that an open TAP gets is noticed a moment later by the bridge that it belongs to; what is sent
/// before is lost. A TAP that was not set up by its owner never runs: that is not waited for.
fn wait_until_running(request: &libc::ifreq) {
    let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") else {
        return;
    };
    let mut request = *request;
    let deadline = Instant::now() + RUNNING_WAIT_MAX;
    while Instant::now() < deadline {
        // SAFETY: the kernel reads the name from and writes the flags to one ifreq at the pointer.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        // SAFETY: after that call the union holds the flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if result < 0 || flags & libc::IFF_UP == 0 || flags & libc::IFF_RUNNING != 0 {
            return;
        }
        sleep(RUNNING_LOOK_INTERVAL);
    }
}

fn watch_loop(epoll: &Epoll, stop_fd: RawFd, completions: &Weak<dyn Completions>) {
    let mut events = [EpollEvent::default(); 2];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return tracing::error!("the TAP cannot be watched any more: {error}"),
        };
        if events[..count].iter().any(|event| event.data() == stop_fd as u64) {
            return;
        }
        match completions.upgrade() {
            Some(device) => device.input_ready(),
            None => return,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
