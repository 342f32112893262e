//! What the tests and the agent inside an emulated host say to each other.
//!
//! One request a connection. A message is two lengths (header, payload; 32 bits each, little-endian), a
//! header in postcard and a payload of raw bytes, so that files cost no encoding.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// TCP port of the agent.
pub const AGENT_PORT: u16 = 7098;
/// Longest header, in bytes.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest payload, in bytes: the largest file that travels.
const PAYLOAD_BYTES_MAX: usize = 1 << 29;

/// A program to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// Its name or path, then its arguments.
    pub words: Vec<String>,
    /// Variables added to its environment.
    pub env: Vec<(String, String)>,
}

/// What is asked of the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a program to its end, killing it after a time; the payload is its standard input.
    Exec {
        /// The program.
        program: Program,
        /// After how many milliseconds it is killed.
        limit_ms: u64,
    },
    /// Start a program and leave it running.
    Spawn {
        /// The program.
        program: Program,
        /// File that receives its standard output and standard error.
        log: String,
    },
    /// Has a program that was started by `Spawn` ended?
    State {
        /// Its process id.
        pid: u32,
    },
    /// Send a signal to a process.
    Signal {
        /// Its process id.
        pid: u32,
        /// The number of the signal.
        signal: i32,
    },
    /// Write the payload to a file, with the directories above it.
    Put {
        /// The file's path.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Read a file.
    Get {
        /// The file's path.
        path: String,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The program ended; the payload is its standard output, then its standard error.
    Ended {
        /// Exit status; 128 and the signal's number if a signal ended it.
        status: i32,
        /// Bytes of standard output in the payload.
        stdout_bytes: u32,
    },
    /// The program was started.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// The program's exit status, none while it runs.
    State(Option<i32>),
    /// It is done; the payload is the file's content if one was asked for.
    Done,
    /// It could not be done, and why.
    Refused(String),
}

/// Writes a message.
pub fn write_message(stream: &mut impl Write, header: &impl Serialize, payload: &[u8]) -> io::Result<()> {
    let header = postcard::to_stdvec(header).map_err(io::Error::other)?;
    let length = u32::try_from(payload.len()).map_err(|_| io::Error::other("the payload is too long"))?;
    stream.write_all(&(header.len() as u32).to_le_bytes())?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(&header)?;
    stream.write_all(payload)
}

/// Reads a message.
pub fn read_message<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut lengths = [0; 8];
    stream.read_exact(&mut lengths)?;
    let [a, b, c, d, e, f, g, h] = lengths;
    let header = read_bytes(stream, u32::from_le_bytes([a, b, c, d]), HEADER_BYTES_MAX)?;
    let payload = read_bytes(stream, u32::from_le_bytes([e, f, g, h]), PAYLOAD_BYTES_MAX)?;
    Ok((postcard::from_bytes(&header).map_err(io::Error::other)?, payload))
}

fn read_bytes(stream: &mut impl Read, length: u32, limit: usize) -> io::Result<Vec<u8>> {
    let length = length as usize;
    if length > limit {
        return Err(io::Error::other(format!(
            "a part of {length} bytes, {limit} are allowed"
        )));
    }
    let mut bytes = Vec::with_capacity(length.min(HEADER_BYTES_MAX));
    stream.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_travel_and_cut_or_monstrous_ones_are_refused() {
        let mut bytes = Vec::new();
        let request = Request::Put {
            path: "/tmp/x".into(),
            mode: 0o600,
        };
        write_message(&mut bytes, &request, b"content").unwrap();
        let (header, payload) = read_message::<Request>(&mut &bytes[..]).unwrap();
        assert!(matches!(header, Request::Put { path, mode: 0o600 } if path == "/tmp/x"));
        assert_eq!(payload, b"content");
        assert!(read_message::<Request>(&mut &bytes[..bytes.len() - 1]).is_err());
        bytes[7] = 0xff;
        assert!(
            read_message::<Request>(&mut &bytes[..])
                .unwrap_err()
                .to_string()
                .contains("allowed")
        );
    }
}
