//! The requests that the service understands.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::abuse::Abuse;
use crate::resp::number;
use crate::store::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Most requests to the disk in flight in a test of it.
pub const DEPTH_MAX: usize = 32;
/// Longest busy computation, in milliseconds.
pub const STALL_MS_MAX: usize = 60_000;
/// Longest loop of kicks, in seconds.
pub const KICK_LOOP_SECONDS_MAX: usize = 86_400;

/// Longest load of the disk, in seconds.
pub const DISK_LOOP_SECONDS_MAX: usize = 3_600;

/// What a load of the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// Writes of single blocks anywhere, many in flight.
    RandomWrite,
    /// Large writes, one behind the other.
    SequentialWrite,
    /// Writes of single blocks, one at a time, each followed by a flush.
    Sync,
    /// Reads of single blocks anywhere, many in flight.
    Read,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `PING [text]`: replies `PONG`, or the text.
    Ping(Option<Vec<u8>>),
    /// `SET key value`: replies `OK` once the value is on the disk.
    Set(Vec<u8>, Vec<u8>),
    /// `GET key`.
    Get(Vec<u8>),
    /// `DIRTY n [ms]`: writes the next *n* pages of the pattern area, at once or one by one over so long.
    Dirty(usize, usize),
    /// `KICK n [pages]`: *n* times: writes so many pages, then asks for a sync.
    Kick(usize, usize),
    /// `KICKLOOP pages seconds`: the same, for so long.
    KickLoop(usize, usize),
    /// `CHECK`: verifies the guest's invariants.
    Check,
    /// `INFO`.
    Info,
    /// `REBOOT`: resets the machine.
    Reboot,
    /// `POWEROFF`.
    PowerOff,
    /// `RESETQ`: resets disk and network card while requests are in flight.
    ResetQueues,
    /// `BLKTEST n depth`: a test of the disk with *n* writes.
    BlockTest(usize, usize),
    /// `DISKLOOP kind seconds`: loads the disk for so long.
    DiskLoop(DiskKind, usize),
    /// `ABUSE kind ms`: abuses the devices for so long, then resets disk and network card.
    Abuse(Abuse, usize),
    /// `STALL ms`: computes without output for so long, and serves nobody meanwhile.
    Stall(usize),
    /// `QUIT`: closes the connection.
    Quit,
}

/// Understands a request; the error says what is wrong with it.
pub fn parse(arguments: &[&[u8]]) -> Result<Command, String> {
    let [name, rest @ ..] = arguments else {
        return Err("empty request".into());
    };
    let name = String::from_utf8_lossy(name).to_ascii_uppercase();
    let count = |argument: &[u8], what: &str, max: usize| {
        number(argument)
            .filter(|n| *n <= max)
            .ok_or_else(|| format!("{what} must be a number from 0 to {max}"))
    };
    let any = 999_999_999;
    match (name.as_str(), rest) {
        ("PING", []) => Ok(Command::Ping(None)),
        ("PING", [text]) => Ok(Command::Ping(Some(text.to_vec()))),
        ("SET", [key, value]) => {
            if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
                return Err(format!(
                    "a key has {KEY_BYTES_MAX} bytes at most, a value {VALUE_BYTES_MAX}"
                ));
            }
            Ok(Command::Set(key.to_vec(), value.to_vec()))
        }
        ("GET", [key]) => Ok(Command::Get(key.to_vec())),
        ("DIRTY", [n]) => Ok(Command::Dirty(count(n, "n", any)?, 0)),
        ("DIRTY", [n, ms]) => Ok(Command::Dirty(
            count(n, "n", any)?,
            count(ms, "ms", STALL_MS_MAX)?,
        )),
        ("KICK", [n]) => Ok(Command::Kick(count(n, "n", any)?, 0)),
        ("KICK", [n, pages]) => Ok(Command::Kick(count(n, "n", any)?, count(pages, "pages", any)?)),
        ("KICKLOOP", [pages, seconds]) => Ok(Command::KickLoop(
            count(pages, "pages", any)?,
            count(seconds, "seconds", KICK_LOOP_SECONDS_MAX)?,
        )),
        ("CHECK", []) => Ok(Command::Check),
        ("INFO", [] | [_]) => Ok(Command::Info),
        ("REBOOT", []) => Ok(Command::Reboot),
        ("POWEROFF", []) => Ok(Command::PowerOff),
        ("RESETQ", []) => Ok(Command::ResetQueues),
        ("BLKTEST", [n, depth]) => Ok(Command::BlockTest(
            count(n, "n", any)?,
            count(depth, "depth", DEPTH_MAX)?.max(1),
        )),
        ("DISKLOOP", [kind, seconds]) => {
            let kind = match *kind {
                b"randwrite" => DiskKind::RandomWrite,
                b"seqwrite" => DiskKind::SequentialWrite,
                b"fsync" => DiskKind::Sync,
                b"read" => DiskKind::Read,
                _ => return Err("kind must be randwrite, seqwrite, fsync or read".into()),
            };
            Ok(Command::DiskLoop(
                kind,
                count(seconds, "seconds", DISK_LOOP_SECONDS_MAX)?,
            ))
        }
        ("ABUSE", [kind, ms]) => Ok(Command::Abuse(
            Abuse::named(kind)?,
            count(ms, "ms", STALL_MS_MAX)?,
        )),
        ("STALL", [ms]) => Ok(Command::Stall(count(ms, "ms", STALL_MS_MAX)?)),
        ("QUIT", []) => Ok(Command::Quit),
        (name, _) => Err(misuse(name)),
    }
}

/// What is wrong with a request of this name that has other arguments.
fn misuse(name: &str) -> String {
    let usage = match name {
        "SET" => "SET key value",
        "GET" => "GET key",
        "DIRTY" => "DIRTY n [ms]",
        "KICK" => "KICK n [pages]",
        "KICKLOOP" => "KICKLOOP pages seconds",
        "BLKTEST" => "BLKTEST n depth",
        "DISKLOOP" => "DISKLOOP kind seconds",
        "ABUSE" => "ABUSE kind ms",
        "STALL" => "STALL ms",
        _ => return format!("unknown command '{}'", name.escape_default()),
    };
    format!("usage: {usage}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_in_any_case_and_limits_are_named() {
        assert_eq!(
            parse(&[b"set", b"k", b"v"]),
            Ok(Command::Set(b"k".to_vec(), b"v".to_vec()))
        );
        assert_eq!(parse(&[b"KICK", b"3"]), Ok(Command::Kick(3, 0)));
        assert!(
            parse(&[b"SET", &[b'k'; 65], b"v"])
                .unwrap_err()
                .contains("64 bytes")
        );
        assert!(
            parse(&[b"BLKTEST", b"1", b"33"])
                .unwrap_err()
                .contains("from 0 to 32")
        );
        assert_eq!(
            parse(&[b"DISKLOOP", b"fsync", b"1"]),
            Ok(Command::DiskLoop(DiskKind::Sync, 1))
        );
        assert_eq!(
            parse(&[b"ABUSE", b"chains", b"10"]),
            Ok(Command::Abuse(Abuse::Chains, 10))
        );
        assert!(
            parse(&[b"DISKLOOP", b"x", b"1"])
                .unwrap_err()
                .contains("seqwrite")
        );
        assert!(parse(&[b"KICK"]).unwrap_err().contains("KICK n [pages]"));
        assert!(
            parse(&[b"CONFIG", b"GET", b"save"])
                .unwrap_err()
                .contains("unknown command 'CONFIG'")
        );
        assert!(parse(&[b"A\r\nB"]).unwrap_err().contains("A\\r\\nB"));
        assert!(parse(&[]).is_err());
    }
}
