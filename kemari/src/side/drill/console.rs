//! The console of a drill: nobody sees it, but a guest that is in trouble says so there.
//!
//! Programs of the guest write to it as well, and may say `BUG:` or `Oops:` of themselves: that is nothing
//! against the state. A line counts if the guest's *kernel* says it: Linux begins each line with the time in
//! brackets (`printk.time`, on unless somebody has turned it off). A panic counts without it, too, where a
//! line begins with it: after that nothing else is said.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::printable;

/// Bytes of a line that are looked at.
const LINE_BYTES_MAX: usize = 1 << 10;
/// Longest line that is quoted, in characters.
const LINE_CHARS_MAX: usize = 160;
/// What Linux says when it is in trouble.
const TROUBLE: [&str; 4] = ["Kernel panic", "Oops:", "BUG:", "general protection fault"];
/// How a line of Linux begins after which there is nothing more to come.
const LAST_WORDS: &str = "Kernel panic - not syncing";
/// What the bare guest says, which has no programs, nor a clock that it shows.
const BARE_TROUBLE: &str = "bare guest fault";

/// What the guest writes.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Written>>);

#[derive(Default)]
struct Written {
    /// The line that is being written, as far as it is looked at.
    line: Vec<u8>,
    /// The first line that spoke of trouble.
    trouble: Option<String>,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was written so far.
    pub fn clear(&self) {
        *self.lock() = Written::default();
    }

    /// The first line of the guest's kernel that speaks of trouble, whether it is whole or not.
    pub fn trouble(&self) -> Option<String> {
        let mut written = self.lock();
        written.look();
        written.trouble.clone()
    }
}

impl Written {
    fn look(&mut self) {
        if self.trouble.is_none() {
            let line = String::from_utf8_lossy(&self.line);
            let line = line.trim();
            self.trouble = speaks_of_trouble(line).then(|| printable(line, LINE_CHARS_MAX));
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    self.look();
                    self.line.clear();
                }
                _ if self.line.len() < LINE_BYTES_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn speaks_of_trouble(line: &str) -> bool {
    let said = kernel_says(line).unwrap_or_default();
    let is_kernels = TROUBLE.iter().any(|trouble| said.contains(trouble));
    is_kernels || line.starts_with(LAST_WORDS) || line.contains(BARE_TROUBLE)
}

/// What stands behind the time that Linux puts before a line: `[    1.234567] `, perhaps after the level,
/// as `<4>`.
fn kernel_says(line: &str) -> Option<&str> {
    let line = match line.strip_prefix('<') {
        Some(rest) => rest.split_once('>')?.1,
        None => line,
    };
    let (time, said) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, fraction) = time.trim_start().split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(seconds) && fraction.len() == 6 && is_number(fraction)).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(text: &[u8]) -> Option<String> {
        let console = Console::default();
        console.clone().write_all(text).unwrap();
        console.trouble()
    }

    #[test]
    fn trouble_is_found_and_only_since_the_last_clear() {
        let console = Console::default();
        let mut guest = console.clone();
        let panic = "[    1.000000] Kernel panic - not syncing: x";
        write!(guest, "hello\r\n{panic}\r\nmore").unwrap();
        assert_eq!(console.trouble().unwrap(), panic);
        // The first line is the one that explains the others, however many they are.
        for _ in 0..10_000 {
            writeln!(guest, "[    1.000001] BUG: another").unwrap();
        }
        assert_eq!(console.trouble().unwrap(), panic);
        console.clear();
        guest.write_all(b"all is well\n").unwrap();
        assert_eq!(console.trouble(), None);
        // Byte by byte, and without an end.
        for byte in b"[  100.123456] Oops: 0000 [#1]" {
            guest.write_all(&[*byte]).unwrap();
        }
        assert_eq!(console.trouble().unwrap(), "[  100.123456] Oops: 0000 [#1]");
    }

    #[test]
    fn what_the_kernel_says_is_told_from_what_a_program_says() {
        for line in [
            "[    0.000000] BUG: unable to handle page fault for address: 0",
            "[12345.678901] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
            "<0>[   26.000000] kernel BUG at mm/slub.c:1!\n[   26.000001] Oops: 0000 [#1]",
            "[    7.000000][    T1] general protection fault, probably for non-canonical address",
            "Kernel panic - not syncing: Fatal exception",
            "bare guest fault: vector 14",
        ] {
            assert!(trouble(line.as_bytes()).is_some(), "{line}");
        }
        for line in [
            "BUG: this program has one",
            "app[12]: Oops: try again",
            "[info] BUG: 17 is open",
            "[ 1.5] BUG: short time",
            "[2026-11-29 12:00:00] Oops: no",
            "login: Kernel panic - not syncing is what one reads then",
            "[    1.000000] all is well",
            "<",
            "[",
            "",
        ] {
            assert_eq!(trouble(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn what_is_quoted_commands_no_terminal_and_long_lines_take_no_memory() {
        assert_eq!(
            trouble(b"[    1.000000] BUG: \x1b[2J\rthe drill: passed\n").unwrap(),
            "[    1.000000] BUG: \\u{1b}[2J\\rthe drill: passed"
        );
        let console = Console::default();
        console
            .clone()
            .write_all(&vec![b'x'; 3 * LINE_BYTES_MAX])
            .unwrap();
        assert_eq!(console.lock().line.len(), LINE_BYTES_MAX);
    }
}
