//! The Redis protocol (RESP2), as far as the service speaks it: requests as arrays of bulk strings or as one
//! line, replies as simple strings, errors and bulk strings.

use alloc::format;
use alloc::vec::Vec;

/// Most arguments of a request, its name included.
pub const ARGUMENTS_MAX: usize = 8;
/// Longest argument, in bytes.
pub const ARGUMENT_BYTES_MAX: usize = 1024;
/// Longest line, in bytes, without its end: a request in one line, or a length.
pub const LINE_BYTES_MAX: usize = 1024;
/// Bytes that hold every request that is accepted.
pub const REQUEST_BYTES_MAX: usize = 32 + ARGUMENTS_MAX * (ARGUMENT_BYTES_MAX + 32);

/// A request that cannot be understood: the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolError(pub &'static str);

/// A request: its arguments, and how many bytes of the input it took.
pub type Request<'a> = (Vec<&'a [u8]>, usize);

/// Takes the first request of the input; `None` if it is not complete yet. An empty line is a request without
/// arguments.
pub fn parse(input: &[u8]) -> Result<Option<Request<'_>>, ProtocolError> {
    let Some((line, mut at)) = line(input, 0)? else {
        return Ok(None);
    };
    let Some(count) = line.strip_prefix(b"*") else {
        let words: Vec<&[u8]> = line
            .split(|byte| byte.is_ascii_whitespace())
            .filter(|word| !word.is_empty())
            .collect();
        if words.len() > ARGUMENTS_MAX {
            return Err(ProtocolError("too many arguments"));
        }
        return Ok(Some((words, at)));
    };
    let count = number(count).filter(|count| *count <= ARGUMENTS_MAX);
    let count = count.ok_or(ProtocolError("invalid number of arguments"))?;
    let mut arguments = Vec::with_capacity(count);
    for _ in 0..count {
        let Some((header, start)) = self::line(input, at)? else {
            return Ok(None);
        };
        let bytes = header
            .strip_prefix(b"$")
            .and_then(number)
            .filter(|bytes| *bytes <= ARGUMENT_BYTES_MAX);
        let bytes = bytes.ok_or(ProtocolError("invalid length of an argument"))?;
        let Some(rest) = input.get(start..start + bytes + 2) else {
            return Ok(None);
        };
        if &rest[bytes..] != b"\r\n" {
            return Err(ProtocolError("an argument is longer than its length says"));
        }
        arguments.push(&rest[..bytes]);
        at = start + bytes + 2;
    }
    Ok(Some((arguments, at)))
}

/// The line that begins at `at`, without its end, and where the next one begins.
fn line(input: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, ProtocolError> {
    let rest = &input[at..];
    match rest
        .iter()
        .take(LINE_BYTES_MAX + 2)
        .position(|byte| *byte == b'\n')
    {
        Some(end) => {
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            Ok(Some((line, at + end + 1)))
        }
        None if rest.len() > LINE_BYTES_MAX + 1 => Err(ProtocolError("too long a line")),
        None => Ok(None),
    }
}

/// A decimal number of at most nine digits.
pub fn number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |sum, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum * 10 + usize::from(digit - b'0'))
    })
}

/// Appends a simple string, `+text`.
pub fn simple(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("+{text}\r\n").as_bytes());
}

/// Appends an error, `-ERR text`.
pub fn error(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("-ERR {text}\r\n").as_bytes());
}

/// Appends a bulk string, or the null that stands for none.
pub fn bulk(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        None => out.extend_from_slice(b"$-1\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_a_request_is_incomplete() {
        let input = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\nPING  x\r\n";
        let first = input.len() - 9;
        for end in 0..first {
            assert_eq!(parse(&input[..end]), Ok(None), "{end} bytes");
        }
        let (arguments, taken) = parse(input).unwrap().unwrap();
        assert_eq!((arguments, taken), (vec![&b"SET"[..], b"k", b"a\r\nb"], first));
        let (arguments, taken) = parse(&input[first..]).unwrap().unwrap();
        assert_eq!((arguments, taken), (vec![&b"PING"[..], b"x"], 9));
    }

    #[test]
    fn limits_and_rubbish_are_refused() {
        for bad in [
            &b"*9\r\n"[..],
            b"*-1\r\n",
            b"*x\r\n",
            b"*1\r\n$1025\r\n",
            b"*1\r\n:3\r\n",
            b"*1\r\n$1\r\nabc\r\n",
            b"a a a a a a a a a\n",
            &[b'x'; LINE_BYTES_MAX + 2],
        ] {
            assert!(parse(bad).is_err(), "{:?}", core::str::from_utf8(bad));
        }
        assert_eq!(parse(b"\r\n"), Ok(Some((vec![], 2))));
        assert_eq!(parse(b"*0\r\n"), Ok(Some((vec![], 4))));
    }

    #[test]
    fn the_largest_request_fits_its_limit() {
        let mut input = format!("*{ARGUMENTS_MAX}\r\n").into_bytes();
        for _ in 0..ARGUMENTS_MAX {
            bulk(&mut input, Some(&[7; ARGUMENT_BYTES_MAX]));
        }
        assert!(input.len() <= REQUEST_BYTES_MAX);
        assert_eq!(parse(&input).unwrap().unwrap().1, input.len());
    }
}
