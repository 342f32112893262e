//! What a pair does in the end, waited for from outside.

use anyhow::{Context, Result, ensure};
use kemari::control::{Protection, Role, Status};
use kemari_sync::UNSEEN;
use xtask::proof::client::ping;

use super::{Clients, Host, PATIENCE, Scene, wait_for};

impl Scene {
    /// Waits for a status of a host that `is_it`, while its process lives.
    pub(crate) fn await_status(
        &mut self,
        what: &str,
        host: Host,
        is_it: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let mut last = None;
        let found = wait_for(&format!("{what} on {}", host.name()), PATIENCE, || {
            ensure!(self.is_running(host), "the process on {} has ended", host.name());
            last = self.status(host);
            Ok(last.clone().filter(|status| is_it(status)))
        });
        found.with_context(|| format!("the last status of {}: {last:?}", host.name()))
    }

    /// Waits until the VM that `host` runs is protected by the other, and somebody has looked whether a
    /// takeover would succeed.
    pub(crate) fn await_protected(&mut self, host: Host) -> Result<Status> {
        let is_known = |status: &Status| {
            let reasons = status.readiness.iter().flat_map(|readiness| &readiness.reasons);
            reasons.into_iter().all(|reason| !reason.starts_with(UNSEEN))
        };
        self.await_status("protection", host, |status| {
            status.role == Role::Primary && status.protection == Protection::On && is_known(status)
        })
    }

    /// Waits until `host` runs the VM.
    pub(crate) fn await_primary(&mut self, host: Host) -> Result<Status> {
        self.await_status("the VM", host, |status| status.role == Role::Primary)
    }

    /// Waits until `host` runs the VM without a secondary.
    pub(crate) fn await_alone(&mut self, host: Host) -> Result<Status> {
        let alone = |status: &Status| status.role == Role::Primary && status.protection == Protection::Off;
        self.await_status("running alone", host, alone)
    }

    /// Waits until the guest's service answers.
    pub(crate) fn await_service(&mut self, host: Host) -> Result<()> {
        let load = self.load();
        wait_for("an answer of the guest's service", PATIENCE, || {
            ensure!(self.is_running(host), "the process on {} has ended", host.name());
            Ok(ping(&load).ok())
        })
    }

    /// Runs the VM on A, protected by B.
    pub(crate) fn protect(&mut self) -> Result<()> {
        self.run(Host::A)?;
        self.secondary(Host::B)?;
        self.await_service(Host::A)?;
        self.await_protected(Host::A).map(drop)
    }

    /// The same, with a fault of the program on one host.
    #[cfg(feature = "faults")]
    pub(crate) fn protect_with(&mut self, host: Host, fault: &str) -> Result<()> {
        for (side, word) in [(Host::A, "run"), (Host::B, "secondary")] {
            let faults = [("KEMARI_FAULTS", fault)];
            let env = if side == host { &faults[..] } else { &[] };
            self.start(side, &[word], "scene.toml", env)?;
        }
        self.await_service(Host::A)?;
        self.await_protected(Host::A).map(drop)
    }

    /// The pair that A leads has not parted since `before`: it is in the same term, and no sync has failed.
    pub(crate) fn ensure_together(&mut self, before: &Status) -> Result<()> {
        let after = self.await_protected(Host::A)?;
        ensure!(
            after.term == before.term && after.counters.syncs_failed == before.counters.syncs_failed,
            "the pair has parted: term {} after {}, {} syncs failed after {}",
            after.term,
            before.term,
            after.counters.syncs_failed,
            before.counters.syncs_failed
        );
        Ok(())
    }

    /// Kills the primary on `host`: the other goes on, and so do the clients.
    pub(crate) fn take_over_from(&mut self, host: Host, clients: &Clients) -> Result<()> {
        self.kill(host)?;
        self.await_primary(host.other())?;
        clients.go_on()
    }
}
