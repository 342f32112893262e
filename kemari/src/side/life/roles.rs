//! The changes of roles.
//!
//! Whoever has won a term has the VM, and nobody else does: so what a primary needs is there before, and
//! [`Life::take_over`] cannot fail. Whoever had the VM and has it no more holds nothing, but the other host
//! waits for it: [`Life::attend`] tries until it follows.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kemari_sync::{CopyLimits, Incarnation, OnSecondaryLoss, PrimaryConfig, Reign, SecondaryConfig};
use kemari_vmm::machine::Machine;

use super::super::fence;
use super::super::health::OwnIo;
use super::super::mailbox::Mailbox;
use super::super::primary::{self, PrimarySide, Seat};
use super::super::probe::Probe;
use super::super::readiness::{InUse, Source};
use super::super::secondary::{self, LastSign, SecondarySide, Standby};
use super::super::step::step;
use super::{IDLE_MS, IDLE_RANGE_MS, Life, first_status};
use crate::config;
use crate::control::{Status, Takeover};
use crate::replica::Tracker;

/// Pause before it is tried again to follow, in milliseconds: it doubles from the one to the other.
const RETRY_MS_MIN: u64 = 250;
const RETRY_MS_MAX: u64 = 10_000;
/// Starts of the VM that failed one after the other lengthen the pause before the next one up to 2 to the
/// power of this.
const FAILED_BOOTS_MAX: u32 = 5;

impl Life {
    /// A primary of this machine. All that can fail to be made is there.
    pub(super) fn primary(
        &self,
        me: Incarnation,
        reign: Reign,
        seat: Seat,
        trackers: Vec<Arc<Tracker>>,
    ) -> Box<PrimarySide> {
        self.type_to(Some(&seat.machine));
        // What was not needed. None is made for this, so that nothing can fail.
        let _ = kemari_vmm::threads::reserve(0);
        self.board.findings().begin_role();
        let answers = seat.mailbox.clone();
        let arbiter = self.arbiter.asker(move |ask, answer| {
            answers.post(primary::Input::Arbiter(ask, answer));
        });
        let sink = seat.mailbox.clone();
        let io = OwnIo::Of(Arc::downgrade(&seat.machine), trackers.clone());
        self.health
            .watch(io, move |trouble| sink.post(primary::Input::Health(trouble)));
        let protection = &self.config.protection;
        let mechanism = PrimaryConfig {
            me,
            config_digest: self.digest,
            mode: protection.mode.into(),
            timing: self.timing(),
            copy: CopyLimits::default(),
            on_secondary_loss: match protection.on_secondary_loss {
                config::OnSecondaryLoss::Continue => OnSecondaryLoss::Continue,
                config::OnSecondaryLoss::Stop => OnSecondaryLoss::Stop,
            },
            protect: protection.enabled,
            sources: trackers
                .iter()
                .filter_map(|tracker| tracker.image().source())
                .collect(),
        };
        Box::new(PrimarySide::new(primary::Setup {
            config: self.config.clone(),
            host: self.host.clone(),
            mechanism,
            reign,
            seat,
            arbiter,
            board: self.board.clone(),
            security: self.security.clone(),
            clock: self.clock,
            trace: self.trace.clone(),
            trackers,
        }))
    }

    /// A secondary that waits for primaries.
    pub(super) fn secondary(&self) -> anyhow::Result<Box<SecondarySide>> {
        self.type_to(None);
        let security = step("take the link's credentials", || {
            self.security.clone().context(
                "a secondary needs a link: name `certificates`, or say `plaintext = true`, in [protection]",
            )
        })?;
        let mailbox = step("make a mailbox", Mailbox::new)?;
        let findings = self.board.findings();
        findings.begin_role();
        for source in [Source::Cards, Source::Images] {
            findings.expect(source);
        }
        findings.expect_state();
        let images_in_use = InUse::default();
        let answers = mailbox.clone();
        let arbiter = self.arbiter.asker(move |ask, answer| {
            answers.post(secondary::Input::Arbiter(ask, answer));
        });
        let shares_disk = self
            .config
            .disks
            .iter()
            .any(|disk| disk.shared && !disk.read_only);
        let sink = mailbox.clone();
        let setup = secondary::Setup {
            config: self.config.clone(),
            host: self.host.clone(),
            spec: self.spec.clone(),
            mechanism: SecondaryConfig {
                me: self.incarnation(),
                vm: self.config.vm.clone(),
                config_digest: self.digest,
                timing: self.timing(),
                fence_ms_max: shares_disk
                    .then(|| fence::strikes_ms_max(self.config.host(&self.host).fence_timeout_ms)),
                // Known once the staging is there.
                staging_pages_max: 0,
            },
            mailbox,
            arbiter,
            board: self.board.clone(),
            security,
            clock: self.clock,
            overwrite_disks: self.overwrite_disks.clone(),
            idle_ms_max: self.idle_ms_max(),
            not_booted: self.not_booted.clone(),
            images_in_use: images_in_use.clone(),
        };
        let side = step("make a secondary", || SecondarySide::new(setup))?;
        // Last: its thread stays as long as a disk hangs, and all of this is tried again for as long as it
        // takes.
        let probe = step("probe the disks", || {
            Ok(Probe::start(
                &self.config,
                &self.host,
                findings.clone(),
                images_in_use.clone(),
            )?)
        })?;
        self.health.watch(OwnIo::Probed(probe), move |trouble| {
            sink.post(secondary::Input::Health(trouble));
        });
        Ok(Box::new(side))
    }

    /// How long a side that may also run the VM waits for a primary.
    fn idle_ms_max(&self) -> Option<u64> {
        let idle_ms = rand::random_range(IDLE_MS..IDLE_MS + IDLE_RANGE_MS);
        self.may_start
            .then_some(idle_ms << self.failed_boots.min(FAILED_BOOTS_MAX))
    }

    /// This side is a secondary again: whatever is in the way of that is tried again,
    /// for as long as it takes.
    pub(super) fn attend(&self) -> Box<SecondarySide> {
        self.health.rest();
        let mut pause_ms = RETRY_MS_MIN;
        let mut told = String::new();
        loop {
            let reason = match self.secondary() {
                Ok(side) => return side,
                Err(error) => format!("{error:#}"),
            };
            if reason != told {
                tracing::error!("this host cannot follow yet: {reason}; it is tried again");
            }
            // It holds nothing, so a signal ends it at once.
            self.board.show(|status| {
                *status = Status {
                    arbiter: status.arbiter.clone(),
                    takeover: status.takeover.take(),
                    waiting_because: Some(format!("this host cannot follow yet: {reason}")),
                    ..first_status(&self.config, &self.host)
                }
            });
            told = reason;
            thread::sleep(Duration::from_millis(pause_ms));
            pause_ms = (2 * pause_ms).min(RETRY_MS_MAX);
        }
    }

    /// The term is won, the state is restored and the arbiter knows: the VM goes on here. From here on there
    /// is nobody else who could, so nothing may fail.
    pub(super) fn take_over(&self, reign: Reign, standby: Standby, last_sign: &LastSign) -> Box<PrimarySide> {
        let Standby { seat, trackers, .. } = standby;
        let machine = seat.machine.clone();
        awaken(&machine);
        let me = reign.record.owner.clone();
        let mut side = self.primary(me, reign, seat, trackers);
        side.note_takeover();
        machine.resume();
        self.tell_takeover(last_sign);
        side
    }

    fn tell_takeover(&self, last_sign: &LastSign) {
        let ms = (self.clock.now_us() - last_sign.heard_us) as f64 / 1000.0;
        let planned_pause_ms = last_sign.paused_ms.map(|paused_ms| paused_ms as f64 + ms);
        match planned_pause_ms {
            Some(ms) => {
                tracing::info!("the VM goes on here, as planned; the guest stood still for {ms:.1} ms")
            }
            None => tracing::info!("the VM goes on here, {ms:.1} ms after the last sign of the old primary"),
        }
        let cut_in_step = Some(last_sign.step.to_owned());
        self.board.show(|status| {
            status.takeover = Some(Takeover {
                ms,
                cut_in_step,
                planned_pause_ms,
            })
        });
    }
}

/// What the state of a guest that went on elsewhere has left to do is begun here. The guest runs when it is
/// resumed.
fn awaken(machine: &Machine) {
    machine.open_gate();
    machine.wake();
}

#[cfg(test)]
mod tests {
    use kemari_vmm::machine::MachineEvent;
    use kemari_vmm::state::StateKind;

    use super::super::super::secondary::rig::Rig;
    use super::super::super::testing::until;
    use super::*;

    #[test]
    fn what_the_state_has_left_to_do_is_begun_where_the_vm_goes_on() {
        let mut rig = Rig::new();
        let standby = rig.standby();
        let mut states = standby.states.iter_mut();
        let power = states
            .find(|state| state.kind == StateKind::Power)
            .expect("a state");
        // Neither a power-off, nor a reset, nor a kick: now the guest has asked for a reset.
        assert_eq!(power.bytes, [0, 0, 0]);
        power.bytes[1] = 1;
        let seat = &standby.seat;
        seat.machine.load(&standby.states, false).expect("its own state");
        let was_asked = || {
            let said = seat.mailbox.take().into_iter();
            said.into_iter()
                .any(|input| matches!(input, primary::Input::Machine(MachineEvent::Reset)))
        };
        assert!(!was_asked(), "a standby VM resets nothing");
        awaken(&seat.machine);
        until("the guest is reset", was_asked);
    }
}
