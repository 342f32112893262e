//! What goes between a side and its steward, on two sockets.
//!
//! *Orders* come first, once, on the first; then requests that may take long, and their answers: a length of
//! four bytes, then so many bytes of a message. On the second, one packet a request or answer, something is
//! asked to be *opened*: an answer that says it is carries the descriptor. Each request has a number that its
//! answer repeats.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use kemari_vmm::disk::OpenImage;
use kemari_vmm::virtio::tap::TapStep;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hooks::{Alarm, Hooks, Told};

/// Longest message of the first socket, in bytes: as long as a configuration may be.
const MESSAGE_BYTES_MAX: u32 = crate::config::CONFIG_BYTES_MAX as u32;
/// Longest packet of the second, in bytes.
const PACKET_BYTES_MAX: usize = 512;

/// What the steward is told first, once: of the parsed configuration what it needs, and all that it will ever
/// do.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Orders {
    /// The command that cuts a peer off, by its name.
    pub fences: BTreeMap<String, Vec<String>>,
    /// The TAP of each card, by the card's id.
    pub taps: BTreeMap<String, String>,
    /// The image of each disk, by the disk's id.
    pub disks: BTreeMap<String, Image>,
    /// What is told of alarms, if anything is.
    pub hooks: Option<Hooks>,
}

/// Where an image is, and whether it may be written to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Its path.
    pub path: PathBuf,
    /// It may only be read.
    pub read_only: bool,
}

/// What it is asked then.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Cut this peer off.
    Fence {
        /// Its name.
        peer: String,
        /// It cannot strike any more at this time of CLOCK_MONOTONIC, in ns.
        until_ns: u64,
    },
    /// Look whether the fence could be started.
    Look,
    /// Tell the hooks.
    Alarm(Alarm),
    /// Say what became of alarms. Who asks has started.
    Hooks,
}

/// The steward's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// What became of the fence.
    Fenced(Result<String, String>),
    /// Why the fence could not be started, as the end of a sentence.
    Looked(Result<(), String>),
    /// What became of alarms.
    Told(Told),
}

/// What it is asked to open: by a name of the configuration, never by one of the system's.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Opening {
    /// The TAP of the card with this id.
    Tap(String),
    /// The block device that is the image of the disk with this id.
    Disk {
        /// The disk.
        id: String,
        /// As in [`OpenImage`].
        write: bool,
        /// The same.
        direct: bool,
        /// The same.
        exclusive: bool,
    },
}

impl Opening {
    /// The image of this disk, to be opened so.
    pub(super) fn disk(id: String, how: OpenImage) -> Self {
        let OpenImage {
            write,
            direct,
            exclusive,
        } = how;
        Self::Disk {
            id,
            write,
            direct,
            exclusive,
        }
    }
}

/// Why it was not opened.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// The orders name no such thing.
    Unknown,
    /// The TAP is not there.
    NoTap,
    /// The kernel refuses this step, with this error number.
    Tap(TapStep, i32),
    /// The disk cannot be opened so, with this error number.
    Disk(i32),
}

/// CLOCK_MONOTONIC, which all processes of a host share, in ns.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sends a message.
///
/// # Errors
/// If the other end is gone.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes()[..], &body].concat())
}

/// Receives a message.
///
/// # Errors
/// If the other end is gone, or what it sends is no message.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(io::Error::other)
}

/// Sends a packet, with a descriptor if there is one.
///
/// # Errors
/// If the other end is gone, or does not read.
pub(crate) fn send_packet(
    to: impl AsFd,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    retry_on_intr(|| {
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&to, &[IoSlice::new(&body)], &mut control, flags)
    })?;
    Ok(())
}

/// Receives a packet, and the descriptor that comes with it. `flags`: also whether to wait for one.
///
/// # Errors
/// If there is none in time, the other end is gone, or what it sends is no message.
pub(crate) fn receive_packet<T: DeserializeOwned>(
    from: impl AsFd,
    flags: RecvFlags,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut body = [0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut body)];
        recvmsg(&from, into, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::other("a packet that is too long"));
    }
    let message = postcard::from_bytes(&body[..received.bytes]).map_err(io::Error::other)?;
    Ok((message, descriptor))
}
