//! What goes between a side and its steward: a length of four bytes, then so many bytes of a message.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message in bytes: as long as a configuration may be.
const MESSAGE_BYTES_MAX: u32 = crate::config::CONFIG_BYTES_MAX as u32;

/// What the steward is told first, once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The command that cuts a peer off, by its name.
    pub fences: BTreeMap<String, Vec<String>>,
}

/// What it is asked then, each with a number that the answer repeats.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Cut this peer off.
    Fence {
        /// Its name.
        peer: String,
        /// It cannot strike any more at this time of CLOCK_MONOTONIC, in ns.
        until_ns: u64,
    },
    /// Look whether the fence could be started.
    Look,
}

/// The steward's answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// What became of the fence.
    Fenced(Result<String, String>),
    /// Why the fence could not be started, as the end of a sentence.
    Looked(Result<(), String>),
}

/// CLOCK_MONOTONIC, which all processes of a host share, in ns.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sends a message.
///
/// # Errors
/// If the other end is gone.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes()[..], &body].concat())
}

/// Receives a message.
///
/// # Errors
/// If the other end is gone, or what it sends is no message.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
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
