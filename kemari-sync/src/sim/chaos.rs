//! What goes wrong, and when: drawn from the seed.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::primary::PrimaryEvent;
use crate::secondary::SecondaryEvent;
use crate::trouble::Trouble;

use super::HOSTS;
use super::events::{Event, ToProcess};
use super::failing::UNTIL_HEALED;
use super::host::Process;
use super::net::PRIMARY;
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
    RestoreFails,
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
    pub(super) restore_fails: bool,
    pub(super) fence_fails: bool,
    pub(super) disk_stalls: bool,
    pub(super) uplink_lost: [bool; HOSTS],
    pub(super) disk_stuck: [bool; HOSTS],
    pub(super) disk_failures: [u32; HOSTS],
    pub(super) flush_failures: [u32; HOSTS],
    /// The link breaks when the first sync of a pair is committed, before its ack arrives.
    pub(super) breaks_pairing: bool,
}

/// A run's script.
pub(super) struct Script {
    pub(super) blows: Vec<(u64, Blow)>,
    /// One failure only, after which the VM must run again within [`SINGLE_BOUND_US`].
    pub(super) is_single: bool,
    pub(super) third_host: bool,
    pub(super) breaks_pairing: bool,
    /// The replicated disk is to grow.
    pub(super) grows: bool,
    pub(super) heal_us: u64,
    pub(super) end_us: u64,
}

/// Within this time after a single failure clients are served again, in microseconds.
pub(super) const SINGLE_BOUND_US: u64 = 900_000;
/// From the healing to the end, in microseconds.
const CONVERGE_US: u64 = 1_200_000;

/// When the primary of the scenario dies, comes back, and when its successor is stopped, in microseconds.
const SCENARIO_US: [u64; 3] = [110_000, 130_000, 330_000];
/// When all that the crashes have left is repaired, in microseconds.
const SCENARIO_HEAL_US: u64 = 400_000;

impl Script {
    /// Boot, protection, outputs, a takeover, a new protection, a stop: what crashes are laid over.
    pub(super) fn scenario() -> Self {
        let [dies_us, returns_us, stops_us] = SCENARIO_US;
        Self {
            blows: vec![
                (dies_us, Blow::Kill(Target::Any(0))),
                (returns_us, Blow::Return(0)),
                (stops_us, Blow::OperatorStop),
            ],
            is_single: false,
            third_host: false,
            breaks_pairing: false,
            grows: false,
            heal_us: SCENARIO_HEAL_US,
            end_us: SCENARIO_HEAL_US + CONVERGE_US,
        }
    }

    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (third_host, breaks_pairing) = (rng.random_bool(0.4), rng.random_bool(0.1));
        let is_single = rng.random_bool(0.4);
        if is_single {
            let at_us = rng.random_range(100_000..300_000);
            let heal_us = at_us + SINGLE_BOUND_US + 50_000;
            let blows = vec![(at_us, single(rng))];
            return Self {
                blows,
                is_single,
                third_host,
                breaks_pairing,
                grows: false,
                heal_us,
                end_us: heal_us + CONVERGE_US,
            };
        }
        let count = rng.random_range(0..10);
        let mut blows: Vec<_> = (0..count)
            .map(|_| (rng.random_range(20_000..500_000), any(rng)))
            .collect();
        // Failures that follow close upon each other hit the recovery from the first.
        for index in 1..blows.len() {
            if rng.random_bool(0.4) {
                blows[index].0 = blows[index - 1].0 + rng.random_range(0..150_000);
            }
        }
        // A stop that is interrupted within its few steps.
        let mut interruptions = Vec::new();
        for (at_us, blow) in &blows {
            if matches!(blow, Blow::OperatorStop | Blow::PowerOff) && rng.random_bool(0.6) {
                interruptions.push((
                    at_us + rng.random_range(0..6_000),
                    Blow::CutPower(Target::Primary),
                ));
            }
        }
        // One of what a flush has lost just before.
        for (at_us, blow) in &blows {
            if matches!(blow, Blow::OperatorStop | Blow::PowerOff) && rng.random_bool(0.4) {
                let before_us = rng.random_range(1_000..20_000);
                let blow = Blow::FlushFails(Target::Primary, 1);
                interruptions.push((at_us - before_us, blow));
            }
        }
        blows.extend(interruptions);
        let grows = rng.random_bool(0.5);
        if grows {
            blows.extend(growth(rng));
        }
        if rng.random_bool(0.15) {
            blows.push((0, Blow::DiskStalls));
        }
        if rng.random_bool(0.1) {
            blows.push((0, Blow::StoreLossy));
        }
        let last_us = blows
            .iter()
            .map(|(at_us, _)| *at_us)
            .max()
            .unwrap_or(0)
            .max(100_000);
        let heal_us = last_us + rng.random_range(0..400_000);
        Self {
            blows,
            is_single,
            third_host,
            breaks_pairing,
            grows,
            heal_us,
            end_us: heal_us + CONVERGE_US,
        }
    }
}

fn single(rng: &mut ChaCha8Rng) -> Blow {
    let target = if rng.random_bool(0.7) {
        Target::Primary
    } else {
        Target::Secondary
    };
    let for_us = rng.random_range(10_000..500_000);
    match rng.random_range(0..19) {
        0 | 1 => Blow::Kill(target),
        2 | 3 => Blow::CutPower(target),
        4 => Blow::Freeze(target, for_us),
        5 => Blow::CutLink {
            there: true,
            back: true,
            for_us: 10_000_000,
        },
        6 => Blow::CutLink {
            there: rng.random_bool(0.5),
            back: rng.random_bool(0.5),
            for_us,
        },
        7 => Blow::ResetLink,
        8 => Blow::StoreDown,
        9 => Blow::Damage,
        10 => Blow::CheckFails,
        11 => Blow::CaptureFails,
        12 => Blow::UplinkLost(target),
        13 => Blow::DiskStuck(target),
        14 | 15 => Blow::DiskFails(target, failures(rng)),
        16 | 17 => Blow::FlushFails(target, rng.random_range(1..4)),
        _ => Blow::HostFailing,
    }
}

fn any(rng: &mut ChaCha8Rng) -> Blow {
    let target = match rng.random_range(0..5) {
        0 | 1 => Target::Primary,
        2 | 3 => Target::Secondary,
        _ => Target::Any(rng.random_range(0..HOSTS)),
    };
    let for_us = rng.random_range(5_000..400_000);
    match rng.random_range(0..46) {
        0..=2 => Blow::Kill(target),
        3..=5 => Blow::CutPower(target),
        6 | 7 => Blow::Freeze(target, for_us),
        8..=10 => Blow::Return(rng.random_range(0..HOSTS)),
        11..=13 => Blow::CutLink {
            there: rng.random_bool(0.7),
            back: rng.random_bool(0.7),
            for_us,
        },
        14..=17 => Blow::ResetLink,
        18 => Blow::Mend,
        19 => Blow::CutStore(target),
        20 => Blow::CutClients(target),
        21 => Blow::StoreDown,
        22 | 23 => Blow::StoreLossy,
        24 => Blow::Damage,
        25 => Blow::CheckFails,
        26 => Blow::CaptureFails,
        27 => {
            if rng.random_bool(0.5) {
                Blow::PrepareFails
            } else {
                Blow::RestoreFails
            }
        }
        28 => Blow::FenceFails,
        29 => Blow::DiskStalls,
        30 => Blow::HostFailing,
        31 => Blow::OperatorStop,
        32 => Blow::OperatorTakeover,
        33 => Blow::Unprotect,
        34 => Blow::Protect,
        35 | 36 => Blow::UplinkLost(target),
        37 => Blow::DiskStuck(target),
        38..=41 => Blow::DiskFails(target, failures(rng)),
        42..=44 => Blow::FlushFails(target, rng.random_range(1..4)),
        _ => Blow::PowerOff,
    }
}

/// How many requests of a disk fail: a few, or all until everything is healed.
fn failures(rng: &mut ChaCha8Rng) -> u32 {
    match rng.random_bool(0.6) {
        true => rng.random_range(1..4),
        false => UNTIL_HEALED,
    }
}

/// The images are made larger, in any order, and the primary is told, once or twice: maybe too early.
fn growth(rng: &mut ChaCha8Rng) -> Vec<(u64, Blow)> {
    let begins_us = rng.random_range(60_000..400_000);
    let mut growth = Vec::new();
    for host in 0..HOSTS {
        growth.push((begins_us + rng.random_range(0..60_000), Blow::Enlarge(host)));
    }
    for _ in 0..2 {
        growth.push((begins_us + rng.random_range(0..120_000), Blow::Resize));
    }
    if rng.random_bool(0.4) {
        let crash = match rng.random_bool(0.5) {
            true => Blow::CutPower(Target::Any(rng.random_range(0..HOSTS))),
            false => Blow::Kill(Target::Primary),
        };
        growth.push((begins_us + rng.random_range(0..140_000), crash));
    }
    growth
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
            Blow::Mend => self.cuts = Default::default(),
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
            Blow::RestoreFails => self.flags.restore_fails = true,
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
