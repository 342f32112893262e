//! A terminal for a log, at which somebody sits.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// What Ctrl-S sends.
const STOP: u8 = 0x13;
/// The terminal takes that as a character typed, which it is told by nobody: so long it may take.
const TYPED_AFTER: Duration = Duration::from_millis(100);

/// The side of the one who sits there. What little is written on the other before it is stopped waits to be
/// read.
pub(crate) struct Terminal {
    keyboard: File,
    name: String,
}

impl Terminal {
    /// A new one.
    pub(crate) fn open() -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master: OwnedFd = openpt(flags).context("no terminal can be made")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?
            .into_string()
            .map_err(|_| anyhow!("the terminal's name is no text"))?;
        Ok(Self {
            keyboard: File::from(master),
            name,
        })
    }

    /// Starts a program whose output goes there.
    pub(crate) fn script(&self) -> String {
        format!("exec \"$0\" \"$@\" >{0} 2>&1", self.name)
    }

    /// Ctrl-S: from then on whoever writes there waits.
    pub(crate) fn stop(&self) -> Result<()> {
        (&self.keyboard).write_all(&[STOP])?;
        std::thread::sleep(TYPED_AFTER);
        Ok(())
    }
}
