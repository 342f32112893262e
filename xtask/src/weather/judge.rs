//! What is seen of a pair from outside, and the judgement on it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::world::{TO_FILE, World};
use crate::demo::pair::Side;
use crate::proof::client::{ask, ping};
use crate::proof::clients::{Clients, PATIENCE};
use crate::tools::{output_of, wait_for};

/// Weather on the hosts is known to both sides after so long: twice the time between two looks,
/// and a heartbeat.
pub(crate) const KNOWN_AFTER: Duration = Duration::from_secs(4);
/// What is wrong with the arbiter is known later: it is asked every 3 to 5 s,
/// and given a second for its answer.
pub(crate) const ARBITER_KNOWN_AFTER: Duration = Duration::from_secs(7);
/// How long an order to the guest may take.
const ORDER_MAX: Duration = Duration::from_secs(15);

/// What `kemari status --check` says, by its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// 0: protected, and a takeover would succeed.
    Ready,
    /// 1: not protected, or not ready.
    NotReady,
    /// 2: it cannot be told.
    Doubt,
    /// 3: nobody is here.
    Nobody,
}

/// What `kemari status --json` says, as far as it is judged here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    /// "starting", "primary", "secondary" or "stopped".
    pub role: String,
    /// The term.
    pub term: u64,
    /// "off", "on", "doubtful" or how far the first copy is.
    pub protection: serde_json::Value,
    /// The last committed sync.
    pub epoch: u64,
    /// The last takeover by this side.
    #[serde(default)]
    pub takeover: Option<Takeover>,
    /// The last drill.
    #[serde(default)]
    pub drill: serde_json::Value,
}

/// How a takeover went.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Takeover {
    /// For how long the guest stood still, if it was planned.
    pub planned_pause_ms: Option<f64>,
}

impl Status {
    /// Whether the VM executes here.
    pub(crate) fn is_primary(&self) -> bool {
        self.role == "primary"
    }

    /// Whether it does so without a secondary.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_primary() && self.protection == "off"
    }
}

/// The lines of a status that say why the VM is not protected: others name the arbiter,
/// disks and drills that are well.
fn reasons(status: &str) -> String {
    let gives_one = |line: &&str| {
        ["protection ", "waits "]
            .iter()
            .any(|word| line.trim_start().starts_with(word))
    };
    status.lines().filter(gives_one).collect::<Vec<_>>().join("\n")
}

impl World {
    /// What the side on a host says of itself; `None` while it says nothing.
    pub(crate) fn status(&self, side: Side) -> Option<Status> {
        let json = output_of(&mut self.command(side, &["status", "--json"])).ok()?;
        serde_json::from_str(&json).ok()
    }

    /// What it says for people.
    pub(crate) fn said_in_words(&self, side: Side) -> String {
        output_of(&mut self.command(side, &["status"])).unwrap_or_default()
    }

    /// What `kemari status --check` says on a host.
    pub(crate) fn check(&self, side: Side) -> Result<Said> {
        let mut command = self.command(side, &["status", "--check"]);
        let output = command.stdin(Stdio::null()).output()?;
        match output.status.code() {
            Some(0) => Ok(Said::Ready),
            Some(1) => Ok(Said::NotReady),
            Some(2) => Ok(Said::Doubt),
            Some(3) => Ok(Said::Nobody),
            _ => bail!("`kemari status --check` ended with {}", output.status),
        }
    }

    /// Runs the VM on A, protected by B, until both say ready.
    pub(crate) fn protect(&mut self) -> Result<()> {
        self.protect_as([TO_FILE, TO_FILE])
    }

    /// The same, with scripts that start the program on A and on B.
    pub(crate) fn protect_as(&mut self, scripts: [&str; 2]) -> Result<()> {
        self.start(Side::A, "run", scripts[0])?;
        self.await_service()?;
        self.start(Side::B, "secondary", scripts[1])?;
        self.await_ready(Side::A)
    }

    /// Waits until the guest's service answers.
    pub(crate) fn await_service(&mut self) -> Result<()> {
        let load = self.load();
        wait_for("an answer of the guest's service", PATIENCE, || {
            Ok(ping(&load).ok())
        })
    }

    /// Waits until the primary on `side` is protected, and both sides say that it is ready.
    pub(crate) fn await_ready(&mut self, side: Side) -> Result<()> {
        self.await_ready_within(side, PATIENCE)
    }

    /// The same, where much else runs.
    pub(crate) fn await_ready_within(&mut self, side: Side, limit: Duration) -> Result<()> {
        wait_for("protected and ready", limit, || {
            ensure!(self.is_running(side), "the process on {} has ended", side.name());
            let runs = self.status(side).is_some_and(|status| status.is_primary());
            let both = || -> Result<bool> {
                Ok(self.check(side)? == Said::Ready && self.check(side.other())? == Said::Ready)
            };
            Ok((runs && both()?).then_some(()))
        })
    }

    /// Waits until a side says that it is not protected and ready, or in doubt,
    /// and gives one of these words as a reason.
    pub(crate) fn await_not_ready(&mut self, side: Side, words: &[&str]) -> Result<()> {
        let mut last = String::new();
        let found = wait_for(&format!("not ready, said on {}", side.name()), PATIENCE, || {
            ensure!(self.is_running(side), "the process on {} has ended", side.name());
            last = self.said_in_words(side);
            let lower = reasons(&last).to_lowercase();
            let named = words.is_empty() || words.iter().any(|word| lower.contains(word));
            Ok((named && matches!(self.check(side)?, Said::NotReady | Said::Doubt)).then_some(()))
        });
        found.with_context(|| format!("none of {words:?} was said; the last words:\n{last}"))
    }

    /// Kills a side. If that is the primary of a pair that says it is ready, a takeover is owed.
    pub(crate) fn kill(&mut self, side: Side) -> Result<()> {
        let runs = self.status(side).is_some_and(|status| status.is_primary());
        // The killed one's word and the other's: whoever says "ready" of the two is taken at it.
        let said = [self.check(side)?, self.check(side.other())?];
        if runs && said.contains(&Said::Ready) {
            self.owed = Some(side);
        }
        self.end(side)
    }

    /// Sets clients to work, and waits until each was answered.
    pub(crate) fn clients(&mut self) -> Result<Clients> {
        let clients = Clients::start(self.load())?;
        clients.go_on()?;
        Ok(clients)
    }

    /// Waits until the VM runs on a host, and only there, and its clients go on.
    pub(crate) fn await_vm(&mut self, side: Side, clients: &Clients) -> Result<()> {
        wait_for(&format!("the VM on {}", side.name()), PATIENCE, || {
            ensure!(self.is_running(side), "the process on {} has ended", side.name());
            let runs = |side| self.status(side).is_some_and(|status| status.is_primary());
            Ok((runs(side) && !runs(side.other())).then_some(()))
        })?;
        clients.go_on()?;
        if self.owed == Some(side.other()) {
            self.owed = None;
        }
        self.passed += 1;
        Ok(())
    }

    /// Waits until a host runs the VM without a secondary.
    pub(crate) fn await_alone(&mut self, side: Side) -> Result<()> {
        wait_for(&format!("running alone on {}", side.name()), PATIENCE, || {
            ensure!(self.is_running(side), "the process on {} has ended", side.name());
            Ok(self.status(side).filter(Status::is_alone).map(drop))
        })
    }

    /// Waits until exactly one host runs the VM, whichever it is, and clients go on.
    pub(crate) fn await_one_vm(&mut self, clients: &Clients) -> Result<Side> {
        let side = wait_for("exactly one VM", PATIENCE, || {
            let running: Vec<Side> = Side::BOTH
                .into_iter()
                .filter(|side| self.status(*side).is_some_and(|status| status.is_primary()))
                .collect();
            Ok(match running.as_slice() {
                [one] => Some(*one),
                _ => None,
            })
        })?;
        self.await_vm(side, clients).map(|()| side)
    }

    /// The roles change by the operator's word.
    pub(crate) fn switchover(&mut self, from: Side, clients: &Clients) -> Result<()> {
        self.owed = Some(from);
        output_of(&mut self.command(from, &["switchover"]))?;
        self.await_vm(from.other(), clients)?;
        ensure!(
            self.is_running(from),
            "the old primary's process has ended by a switchover"
        );
        self.await_ready(from.other())
    }

    /// Kills the primary `side` whatever was said, mends what `mend` mends, and sees the VM go on at the
    /// other: if ready was said, even without having mended anything.
    pub(crate) fn kill_and_tell(
        &mut self,
        side: Side,
        clients: &Clients,
        mend: impl FnOnce(&mut World) -> Result<()>,
    ) -> Result<()> {
        self.kill(side)?;
        if self.owed.is_some() {
            self.await_vm(side.other(), clients)
                .context("protected and ready was said")?;
            return mend(self);
        }
        // It may not be able to, it must not give up.
        std::thread::sleep(KNOWN_AFTER);
        mend(self)?;
        self.await_vm(side.other(), clients)
            .context("after everything was mended")
    }

    /// A side that was killed becomes the secondary, until the pair is ready again.
    pub(crate) fn revive(&mut self, side: Side) -> Result<()> {
        self.secondary(side)?;
        self.await_ready(side.other())
    }

    /// Sends the guest an order.
    pub(crate) fn order(&mut self, words: &[&str]) -> Result<()> {
        ask(&self.load(), words, ORDER_MAX).map(drop)
    }

    /// Whether anybody has the VM still: runs it, or holds a state of it and lives.
    pub(crate) fn somebody_has_it(&mut self) -> bool {
        Side::BOTH.into_iter().any(|side| {
            let status = self.status(side);
            self.is_running(side) && status.is_some_and(|status| status.is_primary() || status.epoch > 0)
        })
    }

    /// `kemari check` on a host by a script of the shell, as [`World::start`] has them: whether it found
    /// everything well, and what it printed.
    pub(crate) fn kemari_check(&mut self, side: Side, script: &str) -> Result<(bool, String)> {
        let said = self.path(&format!("{}.check", side.name()));
        let mut process = self.launch(side, "check", &script.replace(">>", ">"), &said)?;
        let status = process.wait(PATIENCE)?.context("`kemari check` does not end")?;
        Ok((
            status.success(),
            std::fs::read_to_string(said).unwrap_or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_not_what_else_a_status_names() {
        let status = "weather on a: primary, term 2, epoch 7\n  protection  not ready: no tap0; it hangs, \
                      for 2 s\n  waits       for the other\n  arbiter     etcd\n  disk        blk0";
        let found = reasons(status);
        assert!(found.contains("tap0") && found.contains("the other"));
        assert!(!found.contains("etcd") && !found.contains("blk0") && !found.contains("primary"));
    }
}
