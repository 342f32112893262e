//! What goes wrong, and what that does to whom.

use crate::primary::PrimaryEvent;
use crate::secondary::SecondaryEvent;
use crate::trouble::Trouble;

use super::HOSTS;
use super::events::{Event, ToProcess};
use super::host::Process;
use super::net::PRIMARY;
use super::script::SINGLE_BOUND_US;
use super::world::World;

/// Whom a blow hits, decided when it falls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Primary,
    Secondary,
    Any(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Blow {
    /// The process dies; its kernel lives and says so to its peers.
    Kill(Target),
    /// The host dies silently.
    CutPower(Target),
    /// The process stands still for so long, in microseconds.
    Freeze(Target, u64),
    /// Whatever is dead comes back as a secondary.
    Return(usize),
    /// The way from the primary to the secondary, the way back, or both, for so long, in microseconds.
    CutLink {
        there: bool,
        back: bool,
        for_us: u64,
    },
    ResetLink,
    Mend,
    CutStore(Target),
    CutClients(Target),
    StoreDown,
    StoreLossy,
    Damage,
    CheckFails,
    CaptureFails,
    PrepareFails,
    /// So many parts of restores fail, from here on.
    RestoreFails(u32),
    FenceFails,
    DiskStalls,
    /// No packet gets in or out, and the host sees it.
    UplinkLost(Target),
    /// No write that is released from here on lands, and after a while the host sees it.
    DiskStuck(Target),
    /// So many requests of the disk fail, from here on.
    DiskFails(Target, u32),
    /// So many flushes of an image fail, from here on: what they were for is lost, and later ones succeed.
    FlushFails(Target, u32),
    /// The operator makes a host's image of the replicated disk larger.
    Enlarge(usize),
    /// The operator says to the primary that the image has grown.
    Resize,
    /// A card has no port on the host, for so long, in microseconds: a takeover would fail.
    Unplug(Target, u64),
    /// It has one again.
    Plug(usize),
    HostFailing,
    OperatorStop,
    OperatorTakeover,
    Unprotect,
    Protect,
    PowerOff,
}

/// What is wrong right now.
#[derive(Debug, Default)]
pub(super) struct Flags {
    pub(super) store_cut: [bool; HOSTS],
    pub(super) client_cut: [bool; HOSTS],
    pub(super) damage: bool,
    pub(super) check_fails: bool,
    pub(super) capture_fails: bool,
    pub(super) prepare_fails: bool,
    /// So many parts of restores fail.
    pub(super) restore_failures: u32,
    pub(super) fence_fails: bool,
    pub(super) disk_stalls: bool,
    pub(super) uplink_lost: [bool; HOSTS],
    pub(super) disk_stuck: [bool; HOSTS],
    pub(super) disk_failures: [u32; HOSTS],
    pub(super) flush_failures: [u32; HOSTS],
    /// When a way was mended last, in microseconds: what had waited there came then.
    pub(super) mended_us: u64,
    /// Since when a card has no port, in microseconds.
    pub(super) unplugged_us: [Option<u64>; HOSTS],
    /// The link breaks when the first sync of a pair is committed, before its ack arrives.
    pub(super) breaks_pairing: bool,
}

impl World {
    fn resolve(&mut self, target: Target) -> usize {
        let primary = self.hosts.iter_mut().position(|host| host.primary().is_some());
        let is_secondary =
            |host: &mut super::host::Host| host.secondary().is_some_and(|s| s.machine.holds().is_some());
        match target {
            Target::Any(host) => host,
            Target::Primary => primary.unwrap_or(0),
            Target::Secondary => self.hosts.iter_mut().position(is_secondary).unwrap_or(1),
        }
    }

    pub(super) fn strike(&mut self, blow: Blow) {
        self.note(|| format!("=== {blow:?}"));
        if self.script.is_single {
            let is_protected = self
                .store
                .record
                .as_ref()
                .is_some_and(|record| record.peer.is_some());
            if is_protected {
                self.after(SINGLE_BOUND_US, Event::CheckProgress);
            }
        }
        match blow {
            Blow::Kill(target) => {
                let host = self.resolve(target);
                self.kill(host);
            }
            Blow::CutPower(target) => {
                let host = self.resolve(target);
                self.cut_power(host);
            }
            Blow::Freeze(target, for_us) => {
                let host = self.resolve(target);
                self.hosts[host].stopped_until_us = self.now_us + for_us;
            }
            Blow::Return(host) => self.bring_back(host),
            Blow::CutLink { there, back, for_us } => {
                let (primary, secondary) = (self.resolve(Target::Primary), self.resolve(Target::Secondary));
                self.cuts[primary][secondary] |= there;
                self.cuts[secondary][primary] |= back;
                self.after(for_us, Event::Blow(Blow::Mend));
            }
            Blow::Mend => {
                self.cuts = Default::default();
                self.flags.mended_us = self.now_us;
            }
            Blow::ResetLink => {
                let host = self.resolve(Target::Primary);
                let it = &self.hosts[host];
                let life = it.life;
                let session = self
                    .connections
                    .iter()
                    .rev()
                    .find(|connection| connection.ends[PRIMARY].life == life && connection.open[PRIMARY]);
                if let Some(session) = session.map(|connection| connection.id) {
                    self.reset_session(session);
                }
            }
            Blow::CutStore(target) => {
                let host = self.resolve(target);
                self.flags.store_cut[host] = true;
            }
            Blow::CutClients(target) => {
                let host = self.resolve(target);
                self.flags.client_cut[host] = true;
            }
            Blow::StoreDown => self.store.is_down = true,
            Blow::StoreLossy => self.store.is_lossy = true,
            Blow::Damage => self.flags.damage = true,
            Blow::CheckFails => self.flags.check_fails = true,
            Blow::CaptureFails => self.flags.capture_fails = true,
            Blow::PrepareFails => self.flags.prepare_fails = true,
            Blow::RestoreFails(failures) => self.flags.restore_failures = failures,
            Blow::FenceFails => self.flags.fence_fails = true,
            Blow::DiskStalls => self.flags.disk_stalls = true,
            Blow::UplinkLost(target) => {
                let host = self.resolve(target);
                self.flags.uplink_lost[host] = true;
                self.tell_after(0, host, ToProcess::Look);
            }
            Blow::DiskStuck(target) => {
                let host = self.resolve(target);
                self.flags.disk_stuck[host] = true;
                self.tell_after(self.setup.timing.progress_ms * 1_000, host, ToProcess::Look);
            }
            Blow::DiskFails(target, failures) => {
                let host = self.resolve(target);
                self.flags.disk_failures[host] = failures;
            }
            Blow::FlushFails(target, failures) => {
                let host = self.resolve(target);
                self.flags.flush_failures[host] = failures;
            }
            Blow::Unplug(target, for_us) => {
                let host = self.resolve(target);
                self.unplug(host, for_us);
            }
            Blow::Plug(host) => self.flags.unplugged_us[host] = None,
            Blow::Enlarge(host) => self.enlarge_image(host),
            Blow::Resize => self.order_resize(),
            Blow::HostFailing => {
                self.order_primary(PrimaryEvent::HostFailing {
                    reason: "a deliberate failure".to_owned(),
                });
            }
            Blow::OperatorStop => self.order_primary(PrimaryEvent::OperatorStop),
            Blow::Unprotect => self.order_primary(PrimaryEvent::OperatorUnprotect),
            Blow::Protect => self.order_primary(PrimaryEvent::OperatorProtect),
            Blow::OperatorTakeover => {
                let host = self.resolve(Target::Secondary);
                if self.hosts[host].secondary().is_some() {
                    self.tell_after(0, host, ToProcess::Secondary(SecondaryEvent::OperatorTakeover));
                }
            }
            Blow::PowerOff => {
                let host = self.resolve(Target::Primary);
                if let Some(side) = self.hosts[host].primary()
                    && !side.is_still()
                {
                    side.vm.powered_off = true;
                    side.paused = true;
                    self.order_primary(PrimaryEvent::PoweredOff);
                }
            }
        }
    }

    /// What a host sees of its own trouble.
    fn trouble(&self, host: usize) -> Option<Trouble> {
        if self.flags.uplink_lost[host] {
            Some(Trouble::Uplink("a deliberate failure".to_owned()))
        } else if self.flags.disk_stuck[host] {
            Some(Trouble::Disk("a deliberate failure".to_owned()))
        } else {
            None
        }
    }

    /// A process looks at its host.
    pub(super) fn look(&mut self, host: usize) {
        let trouble = self.trouble(host);
        match &self.hosts[host].process {
            Process::Primary(_) => self.feed_primary(host, PrimaryEvent::Health { trouble }),
            Process::Secondary(_) => self.feed_secondary(host, SecondaryEvent::Health { trouble }),
            Process::None | Process::Starting(_) => {}
        }
    }

    /// What a process that begins finds, and one whose host is healed.
    pub(super) fn look_soon(&mut self, host: usize) {
        if self.trouble(host).is_some() {
            self.tell_after(1_000, host, ToProcess::Look);
        }
    }

    /// Whether clients cannot reach a host.
    pub(super) fn is_cut_off(&self, host: usize) -> bool {
        self.flags.client_cut[host] || self.flags.uplink_lost[host]
    }

    fn order_primary(&mut self, event: PrimaryEvent) {
        let host = self.resolve(Target::Primary);
        if self.hosts[host].primary().is_some() {
            self.tell_after(0, host, ToProcess::Primary(event));
        }
    }
}
