//! The guest's console as a user's terminal: what it says, and keys that are typed.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{CONFIG, CONSOLE, EmulatedPair, Pair, Side};

/// What is written there is typed, on whichever host.
const KEYS: &str = "/run/kemari/keys";
/// The shell's words around the program: its input and its output are the guest's console.
const AT_TERMINAL: &str = "[ -p \"$KEYS\" ] || mkfifo \"$KEYS\"; exec \"$@\" <>\"$KEYS\" >>\"$CONSOLE\"";

impl EmulatedPair<'_> {
    /// Programs that are started from here on have the guest's console at a terminal.
    pub(crate) fn sit_down(&mut self) -> Result<()> {
        for host in &mut self.plan.hosts {
            host.console = None;
        }
        self.toml = self.plan.to_toml()?;
        for side in Side::BOTH {
            self.place.host(side).put_text(&self.toml, CONFIG)?;
        }
        self.at_terminal = true;
        Ok(())
    }

    /// The words that start a program, and what it finds in its environment.
    pub(super) fn words<'w>(&self, words: &[&'w str]) -> (Vec<&'w str>, Vec<(&'static str, &'static str)>) {
        let mut environment: Vec<_> = self.words.iter().map(|words| ("KEMARI_FAULTS", *words)).collect();
        if !self.at_terminal {
            return (words.to_vec(), environment);
        }
        environment.extend([("KEYS", KEYS), ("CONSOLE", CONSOLE)]);
        let shell = ["/bin/sh", "-c", AT_TERMINAL, "sh"];
        ([&shell[..], words].concat(), environment)
    }

    /// Types at a side's terminal.
    pub(crate) fn type_in(&self, side: Side, text: &str) -> Result<()> {
        let host = self.place.host(side);
        host.exec_with(
            &["/bin/sh", "-c", &format!("cat >{KEYS}")],
            text.as_bytes(),
            Duration::from_secs(10),
        )
        .map(drop)
        .context("nothing can be typed")
    }

    /// All that the guest has said on a side since that host has power.
    pub(crate) fn console(&self, side: Side) -> String {
        let bytes = self.place.host(side).get(CONSOLE).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Puts a host's clock so far ahead of the other's.
    pub(crate) fn put_clock_ahead(&self, side: Side, ahead: Duration) -> Result<()> {
        let now = self.place.host(side.other()).sh("date +%s")?;
        let now: u64 = now.trim().parse().context("a host knows no time")?;
        let line = format!("date -s @{}", now + ahead.as_secs());
        Ok(self.place.host(side).sh(&line).map(drop)?)
    }

    /// How long a side's takeover took, in ms.
    pub(crate) fn takeover_ms(&mut self, side: Side) -> Result<f64> {
        let status = self.status(side)?.context("it does not answer")?;
        Ok(status.takeover.context("it has taken nothing over")?.ms)
    }
}
