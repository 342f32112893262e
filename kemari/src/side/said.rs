//! What a program says that a side runs, for its log.
//!
//! It is read here: if the program wrote to the side's own standard error, a reader that stands still would
//! make it hang, and what waits for its end.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::log::printable;

/// What is kept: the end, in bytes.
const SAID_BYTES_MAX: usize = 1024;
/// Most reads at a time: who speaks without end is left all the same.
const READS_MAX: usize = 256;

/// The end of what was said.
pub struct Said {
    pipe: File,
    end: Vec<u8>,
}

impl Said {
    /// With the descriptor that the program is to write to.
    pub fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // The program's end waits, as programs expect; this one never does.
        rustix::io::ioctl_fionbio(&reader, true)?;
        let said = Self {
            pipe: reader.into(),
            end: Vec::new(),
        };
        Ok((said, writer))
    }

    /// Takes what was said since. To be called now and then: a pipe that is full holds the program up.
    pub fn listen(&mut self) {
        let mut part = [0; SAID_BYTES_MAX];
        for _ in 0..READS_MAX {
            let Ok(count @ 1..) = self.pipe.read(&mut part) else {
                return;
            };
            self.end.extend(&part[..count]);
            let excess = self.end.len().saturating_sub(SAID_BYTES_MAX);
            self.end.drain(..excess);
        }
    }

    /// The last words, as they may be shown. A process that the program has left behind may say more; that is
    /// not waited for.
    pub fn last_words(mut self) -> String {
        self.listen();
        printable(String::from_utf8_lossy(&self.end).trim(), SAID_BYTES_MAX)
    }
}
