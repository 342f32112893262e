//! How long a listening socket that cannot accept is left alone. When descriptors or memory are short, a
//! connection that waits would be tried again at once, and for ever.

use std::io;

/// The first rest, in milliseconds. Each one after it is twice as long.
const REST_MS_MIN: u64 = 20;
/// The longest, in milliseconds: so late the right peer may be heard when the shortage is over.
const REST_MS_MAX: u64 = 1000;

/// The rest of one socket.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    length_ms: u64,
    until_ms: u64,
}

impl Rest {
    /// It could not accept. Whether that is news: true until it could again.
    pub(crate) fn begin(&mut self, now_ms: u64) -> bool {
        let is_news = self.length_ms == 0;
        self.length_ms = (2 * self.length_ms).clamp(REST_MS_MIN, REST_MS_MAX);
        self.until_ms = now_ms + self.length_ms;
        is_news
    }

    /// It could accept, or there was nothing to accept.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    /// When it is to be tried again, if it rests.
    pub(crate) fn until_ms(&self, now_ms: u64) -> Option<u64> {
        (now_ms < self.until_ms).then_some(self.until_ms)
    }
}

/// Whether an error of accept(2) is that of the connection alone, which is gone; others can be accepted.
pub(crate) fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NetworkDown, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | NetworkDown | NetworkUnreachable
    ) || error.raw_os_error() == Some(libc::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_to_a_limit_and_begin_anew_after_a_success() {
        let mut rest = Rest::default();
        assert_eq!(rest.until_ms(0), None);
        assert!(rest.begin(100));
        assert_eq!(rest.until_ms(100), Some(100 + REST_MS_MIN));
        assert_eq!(rest.until_ms(100 + REST_MS_MIN), None);
        assert!(!rest.begin(200));
        assert_eq!(rest.until_ms(200), Some(200 + 2 * REST_MS_MIN));
        for _ in 0..20 {
            rest.begin(300);
        }
        assert_eq!(rest.until_ms(300), Some(300 + REST_MS_MAX));
        rest.end();
        assert_eq!(rest.until_ms(300), None);
        assert!(rest.begin(400));
    }
}
