//! The part of the NBD protocol that QEMU needs (the protocol's own document, doc/proto.md of the NBD
//! project): fixed newstyle negotiation, simple replies.

use std::io::{self, Read, Write};

const SERVER_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, no zeros behind the answer to an export's name.
const HANDSHAKE_FLAGS: u16 = 1 | 2;
/// Transmission flags: there are flags, flushes, and writes that are durable at once.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
/// Flag of a command: durable at once.
const FLAG_DURABLE: u16 = 1;

/// Longest option, in bytes.
const OPTION_BYTES_MAX: u32 = 4096;
/// Longest read or write, in bytes: QEMU's own limit.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Options that a client may ask before it begins.
const OPTIONS_MAX: usize = 64;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The client's name for it.
    pub handle: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much.
    pub bytes: u64,
    /// What.
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write { data: Vec<u8>, durable: bool },
    Flush,
}

/// Offers an export of so many bytes; whether the client has taken it.
pub(super) fn negotiate(stream: &mut (impl Read + Write), bytes: u64) -> io::Result<bool> {
    stream.write_all(&SERVER_MAGIC.to_be_bytes())?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
    let _client_flags = u32::from_be_bytes(read(stream)?);
    for _ in 0..OPTIONS_MAX {
        expect(u64::from_be_bytes(read(stream)?) == OPTION_MAGIC, "no option")?;
        let option = u32::from_be_bytes(read(stream)?);
        let length = u32::from_be_bytes(read(stream)?);
        expect(length <= OPTION_BYTES_MAX, "an option that is too long")?;
        skip(stream, length)?;
        match option {
            OPTION_EXPORT_NAME => {
                stream.write_all(&bytes.to_be_bytes())?;
                stream.write_all(&EXPORT_FLAGS.to_be_bytes())?;
                return Ok(true);
            }
            OPTION_GO => {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend(bytes.to_be_bytes());
                info.extend(EXPORT_FLAGS.to_be_bytes());
                reply(stream, option, REPLY_INFO, &info)?;
                reply(stream, option, REPLY_ACK, &[])?;
                return Ok(true);
            }
            OPTION_ABORT => {
                reply(stream, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
    Err(io::Error::other("a client that asks and asks"))
}

/// The next request; none when the client takes its leave.
pub(super) fn read_request(stream: &mut impl Read) -> io::Result<Option<Request>> {
    expect(u32::from_be_bytes(read(stream)?) == REQUEST_MAGIC, "no request")?;
    let flags = u16::from_be_bytes(read(stream)?);
    let command = u16::from_be_bytes(read(stream)?);
    let handle = u64::from_be_bytes(read(stream)?);
    let offset = u64::from_be_bytes(read(stream)?);
    let bytes = u32::from_be_bytes(read(stream)?);
    expect(bytes <= REQUEST_BYTES_MAX, "a request that is too long")?;
    let command = match command {
        COMMAND_READ => Command::Read,
        COMMAND_WRITE => {
            let mut data = vec![0; bytes as usize];
            stream.read_exact(&mut data)?;
            let durable = flags & FLAG_DURABLE != 0;
            Command::Write { data, durable }
        }
        COMMAND_FLUSH => Command::Flush,
        COMMAND_DISCONNECT => return Ok(None),
        _ => return Err(io::Error::other("a request that was not offered")),
    };
    Ok(Some(Request {
        handle,
        offset,
        bytes: u64::from(bytes),
        command,
    }))
}

/// Answers a request, with the bytes that were read.
pub(super) fn answer(stream: &mut impl Write, handle: u64, done: io::Result<Vec<u8>>) -> io::Result<()> {
    let (error, data) = match done {
        Ok(data) => (0, data),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => (EINVAL, Vec::new()),
        Err(_) => (EIO, Vec::new()),
    };
    let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(handle.to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(stream: &mut impl Read, bytes: u32) -> io::Result<()> {
    let skipped = io::copy(&mut stream.take(u64::from(bytes)), &mut io::sink())?;
    expect(skipped == u64::from(bytes), "an option that ends too early")
}

fn expect(holds: bool, what: &str) -> io::Result<()> {
    match holds {
        true => Ok(()),
        false => Err(io::Error::other(format!("the client sent {what}"))),
    }
}
