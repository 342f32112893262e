//! RESP, the protocol of Redis, as far as a client needs it.
//!
//! Source: the Redis serialization protocol specification, version 2 (simple strings, errors, integers, bulk
//! strings, arrays).

/// Longest line of a reply, without its end, in bytes.
pub const LINE_BYTES_MAX: usize = 4096;
/// Longest bulk string of a reply, in bytes.
pub const BULK_BYTES_MAX: usize = 1 << 20;
/// Most elements of an array.
pub const ARRAY_LEN_MAX: usize = 1024;
/// Deepest nesting of arrays.
const DEPTH_MAX: usize = 4;

/// One reply of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+text`
    Simple(String),
    /// `-text`: the server refused.
    Error(String),
    /// `:number`
    Integer(i64),
    /// `$length` and so many bytes; `None` is `$-1`.
    Bulk(Option<Vec<u8>>),
    /// `*length` and so many replies; `None` is `*-1`.
    Array(Option<Vec<Reply>>),
}

/// Bytes that are no RESP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// The first byte of a reply is none of `+ - : $ *`.
    #[error("a reply begins with byte {0:#04x}, which is none of RESP's types")]
    Type(u8),
    /// A line is too long, or is not text.
    #[error("a reply's line is longer than {LINE_BYTES_MAX} bytes or is not UTF-8")]
    Line,
    /// A number is none.
    #[error("a reply has `{0}` where a number must stand")]
    Number(String),
    /// A length is beyond the limits of this module.
    #[error("a reply announces a length of {0}, which is over the limit")]
    Length(i64),
    /// A bulk string is not followed by CR LF.
    #[error("a bulk string does not end with CR LF")]
    End,
    /// Arrays are nested too deeply.
    #[error("a reply nests arrays more than {DEPTH_MAX} deep")]
    Depth,
}

/// Appends a request, an array of bulk strings, to `out`.
pub fn encode_request(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Cuts a stream of bytes into replies.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes bytes as they came from the socket.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole reply, or `None` if more bytes are needed. After an error the stream is useless.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, RespError> {
        let mut cursor = Cursor {
            bytes: &self.buffer[self.start..],
            at: 0,
        };
        let reply = cursor.reply(0)?;
        if reply.is_some() {
            self.start += cursor.at;
        }
        Ok(reply)
    }

    /// Number of bytes that belong to no reply given out so far.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn reply(&mut self, depth: usize) -> Result<Option<Reply>, RespError> {
        let Some(&kind) = self.bytes.get(self.at) else {
            return Ok(None);
        };
        if !b"+-:$*".contains(&kind) {
            return Err(RespError::Type(kind));
        }
        if depth > DEPTH_MAX {
            return Err(RespError::Depth);
        }
        self.at += 1;
        let Some(line) = self.line()? else { return Ok(None) };
        match kind {
            b'+' => Ok(Some(Reply::Simple(line.to_owned()))),
            b'-' => Ok(Some(Reply::Error(line.to_owned()))),
            b':' => Ok(Some(Reply::Integer(number(line)?))),
            b'$' => self.bulk(number(line)?),
            _ => self.array(number(line)?, depth),
        }
    }

    fn line(&mut self) -> Result<Option<&'a str>, RespError> {
        let rest = &self.bytes[self.at..];
        let searched = &rest[..rest.len().min(LINE_BYTES_MAX + 2)];
        let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
            return if rest.len() > LINE_BYTES_MAX + 1 {
                Err(RespError::Line)
            } else {
                Ok(None)
            };
        };
        self.at += end + 2;
        std::str::from_utf8(&rest[..end])
            .map(Some)
            .map_err(|_| RespError::Line)
    }

    fn bulk(&mut self, length: i64) -> Result<Option<Reply>, RespError> {
        if length == -1 {
            return Ok(Some(Reply::Bulk(None)));
        }
        let bytes = limited(length, BULK_BYTES_MAX)?;
        let Some(body) = self.bytes.get(self.at..self.at + bytes + 2) else {
            return Ok(None);
        };
        if &body[bytes..] != b"\r\n" {
            return Err(RespError::End);
        }
        self.at += bytes + 2;
        Ok(Some(Reply::Bulk(Some(body[..bytes].to_vec()))))
    }

    fn array(&mut self, length: i64, depth: usize) -> Result<Option<Reply>, RespError> {
        if length == -1 {
            return Ok(Some(Reply::Array(None)));
        }
        let mut elements = Vec::new();
        for _ in 0..limited(length, ARRAY_LEN_MAX)? {
            let Some(element) = self.reply(depth + 1)? else {
                return Ok(None);
            };
            elements.push(element);
        }
        Ok(Some(Reply::Array(Some(elements))))
    }
}

fn number(line: &str) -> Result<i64, RespError> {
    line.parse()
        .map_err(|_| RespError::Number(line.chars().take(32).collect()))
}

fn limited(length: i64, max: usize) -> Result<usize, RespError> {
    usize::try_from(length)
        .ok()
        .filter(|&length| length <= max)
        .ok_or(RespError::Length(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        encode_request(&mut out, &[b"GET", b"k"]);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }

    #[test]
    fn replies_come_out_whole_however_they_are_cut() {
        let stream = b"+OK\r\n-ERR no\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n:1\r\n$0\r\n\r\n*-1\r\n";
        let mut decoder = Decoder::default();
        let mut replies = Vec::new();
        for byte in stream {
            decoder.feed(&[*byte]);
            while let Some(reply) = decoder.next_reply().unwrap() {
                replies.push(reply);
            }
        }
        let expected = vec![
            Reply::Simple("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Integer(-7),
            Reply::Bulk(Some(b"a\r\n".to_vec())),
            Reply::Bulk(None),
            Reply::Array(Some(vec![Reply::Integer(1), Reply::Bulk(Some(Vec::new()))])),
            Reply::Array(None),
        ];
        assert_eq!(replies, expected);
        assert_eq!(decoder.pending_bytes(), 0);
    }

    #[test]
    fn what_is_no_resp_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            decoder.next_reply().unwrap_err()
        };
        assert_eq!(refused(b"HTTP"), RespError::Type(b'H'));
        assert_eq!(refused(b":x\r\n"), RespError::Number("x".into()));
        assert_eq!(refused(b"$99999999\r\n"), RespError::Length(99_999_999));
        assert_eq!(refused(b"$1\r\nabc"), RespError::End);
        assert_eq!(refused(&b"*1\r\n".repeat(9)), RespError::Depth);
        let mut long = vec![b'+'];
        long.resize(LINE_BYTES_MAX + 10, b'x');
        assert_eq!(refused(&long), RespError::Line);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next_reply() {}
        }
    }
}
