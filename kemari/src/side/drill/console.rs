//! The console of a drill: nobody sees it, but a guest that is in trouble says so there.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::log::printable;

/// Bytes that are kept, of the last that the guest has written.
const BYTES_MAX: usize = 16 << 10;
/// Longest line that is quoted, in characters.
const LINE_CHARS_MAX: usize = 160;
/// What a kernel in trouble says: Linux, and the bare guest.
const TROUBLE: [&str; 5] = [
    "Kernel panic",
    "Oops:",
    "BUG:",
    "general protection fault",
    "bare guest fault",
];

/// What the guest writes.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    /// Forgets what was written so far.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The first line that speaks of trouble.
    pub fn trouble(&self) -> Option<String> {
        let bytes: Vec<u8> = {
            let written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            written.iter().copied().collect()
        };
        let text = String::from_utf8_lossy(&bytes);
        let line = text
            .lines()
            .find(|line| TROUBLE.iter().any(|trouble| line.contains(trouble)))?;
        Some(printable(line.trim(), LINE_CHARS_MAX))
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend(bytes);
        let surplus = written.len().saturating_sub(BYTES_MAX);
        written.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_found_and_only_since_the_last_clear() {
        let console = Console::default();
        let mut guest = console.clone();
        guest
            .write_all(b"hello\r\n[ 1.0] Kernel panic - not syncing: x\r\nmore")
            .unwrap();
        assert_eq!(console.trouble().unwrap(), "[ 1.0] Kernel panic - not syncing: x");
        console.clear();
        guest.write_all(b"all is well\n").unwrap();
        assert_eq!(console.trouble(), None);
        guest.write_all(&vec![b'x'; 3 * BYTES_MAX]).unwrap();
        assert_eq!(console.0.lock().unwrap().len(), BYTES_MAX);
        guest.write_all(b"\nBUG: y").unwrap();
        assert_eq!(console.trouble().unwrap(), "BUG: y");
    }

    #[test]
    fn what_is_quoted_commands_no_terminal() {
        let console = Console::default();
        console
            .clone()
            .write_all(b"BUG: \x1b[2J\rthe drill: passed\n")
            .unwrap();
        assert_eq!(console.trouble().unwrap(), "BUG: \\u{1b}[2J\\rthe drill: passed");
    }
}
