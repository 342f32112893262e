//! The guest's network cards on this host: whether packets get out by them, and whether a takeover could plug
//! them in.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kemari_vmm::machine::Machine;

use super::readiness::{Findings, Mtus, Source};
use crate::config::{Config, HostNet};
use crate::links::{Link, Watched};
use crate::ports::Ports;
use crate::steward;

/// What is found out stands for so long; it is looked five times a second.
const VALID: Duration = Duration::from_secs(3);

/// What matters of a TAP for whether it can be attached to: it is tried again when that has changed. It has a
/// carrier while somebody is attached to it, and a try is over before anybody looks. The last: whether any
/// can be attached to.
type Look = Option<(u32, bool, bool, bool)>;

/// What TAPs are attached to by.
const TUN: &str = "/dev/net/tun";

/// Watches the cards of one host, which is this one.
pub struct Cards {
    config: Arc<Config>,
    host: String,
    findings: Arc<Findings>,
    mtus: Arc<Mtus>,
    watched: Option<Watched>,
    ports: Ports,
    lost_since: Option<Instant>,
    /// What was last said of the way out.
    said: Option<String>,
    /// Why the devices cannot be looked at.
    unreadable: Option<String>,
    /// How each TAP looked when it was tried, and what came of it.
    tried: Vec<(Look, Option<String>)>,
    /// Why the TAP that was made instead of a deleted one cannot be attached to.
    unattached: Option<String>,
}

impl Cards {
    pub fn new(config: Arc<Config>, host: String, findings: Arc<Findings>, mtus: Arc<Mtus>) -> Self {
        Self {
            config,
            host,
            findings,
            mtus,
            watched: None,
            ports: Ports::default(),
            lost_since: None,
            said: None,
            unreadable: None,
            tried: Vec::new(),
            unattached: None,
        }
    }

    /// Another role watches from here on. Which bridges the TAPs were on is still known.
    pub fn begin_role(&mut self) {
        (self.lost_since, self.said, self.unattached) = (None, None, None);
        self.tried.clear();
        self.mtus.forget_theirs();
    }

    /// Why the packets of a guest that runs here do not get out, if that has lasted. As long as the devices
    /// cannot be looked at the last answer stands. A TAP that was deleted and made anew is attached again.
    pub fn of_running(&mut self, machine: Option<&Machine>) -> Option<String> {
        let Some((links, changed)) = self.look() else {
            return self.said.clone();
        };
        if let Some(machine) = machine.filter(|_| changed || self.unattached.is_some()) {
            self.attach_again(machine, &links);
        }
        let trouble = self.ports.trouble(&links, &self.config, &self.host);
        self.lasting(trouble.or_else(|| self.unattached.clone()))
    }

    /// The same of a guest that would run here. What would be in a takeover's way is noted at once.
    pub fn of_standby(&mut self) -> Option<String> {
        let Some((links, _)) = self.look() else {
            let why = self.unreadable.clone();
            self.findings.note(Source::Cards, Some(VALID), why);
            return self.said.clone();
        };
        let trouble = self.ports.trouble(&links, &self.config, &self.host);
        self.try_taps(&links);
        let refused = self.tried.iter().filter_map(|(_, refused)| refused.clone());
        let narrower = self.mtus.narrower(&self.config.nets_of(&self.host));
        self.findings.note(
            Source::Cards,
            Some(VALID),
            trouble.clone().into_iter().chain(refused).chain(narrower),
        );
        self.lasting(trouble)
    }

    /// The devices, and whether they may be others than the last time.
    fn look(&mut self) -> Option<(Arc<[Link]>, bool)> {
        let looked = match self.watched.take() {
            Some(watched) => Ok(watched),
            None => Watched::new(),
        }
        .and_then(|mut watched| {
            let looked = watched.look()?;
            self.watched = Some(watched);
            Ok(looked)
        });
        match looked {
            Ok((links, changed)) => {
                self.unreadable = None;
                if changed {
                    self.note_mtus(&links);
                }
                Some((links, changed))
            }
            Err(error) => {
                let why = format!("the network devices cannot be watched: {error}");
                if self.unreadable.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                self.unreadable = Some(why);
                None
            }
        }
    }

    fn note_mtus(&self, links: &[Link]) {
        let mtu = |net: HostNet<'_>| {
            let link = links.iter().find(|link| link.name == net.tap);
            link.map_or(0, |link| link.mtu)
        };
        let nets = self.config.nets_of(&self.host);
        self.mtus.note_ours(nets.into_iter().map(mtu).collect());
    }

    /// A card counts as cut off when it has been for as long as a silent peer is waited for: cables are
    /// moved, switches negotiate, devices are made anew.
    fn lasting(&mut self, trouble: Option<String>) -> Option<String> {
        let since = trouble
            .as_ref()
            .map(|_| self.lost_since.unwrap_or_else(Instant::now));
        let lasts = since.is_some_and(|since| since.elapsed() >= self.config.protection.suspicion_timeout());
        self.lost_since = since;
        self.said = trouble.filter(|_| lasts);
        self.said.clone()
    }

    fn attach_again(&mut self, machine: &Machine, links: &[Link]) {
        let cut = machine.cut_nets();
        self.unattached = None;
        for card in self.config.nets_of(&self.host) {
            let (id, tap) = (&card.net.id, &card.tap);
            let is_there = links.iter().any(|link| &link.name == tap);
            if !is_there || !cut.contains(&id.as_str()) {
                continue;
            }
            match steward::open_tap(&card).and_then(|tap| Ok(machine.attach_net(id, tap)?)) {
                Ok(()) => tracing::info!("the TAP {tap} was made anew; the card {id} is attached to it"),
                Err(error) => {
                    let why = format!("the TAP {tap} of the card {id} was made anew: {error:#}");
                    self.unattached.get_or_insert(why);
                }
            }
        }
    }

    /// Attaches to TAPs as a takeover does, and lets them go again, if they look different from when that was
    /// done last.
    fn try_taps(&mut self, links: &[Link]) {
        let nets = self.config.nets_of(&self.host);
        self.tried.resize(nets.len(), (None, None));
        let has_tun = fs::metadata(TUN).is_ok();
        for (net, tried) in nets.iter().zip(&mut self.tried) {
            let link = links.iter().find(|link| link.name == net.tap);
            let look = link.map(|link| {
                let tun = link.tun.unwrap_or_default();
                (link.index, tun.multi_queue, link.has_carrier, has_tun)
            });
            if look.is_some() && *tried == (look, None) {
                continue;
            }
            // That it is not there is said by who looks at the port.
            let refused = link.and_then(|link| refused(net, link));
            *tried = (look, refused);
        }
    }
}

/// Why a takeover could not attach to a TAP.
fn refused(net: &HostNet<'_>, link: &Link) -> Option<String> {
    let (id, tap) = (&net.net.id, &net.tap);
    let why = match link.tun {
        None => "is no TAP".to_owned(),
        Some(tun) if tun.multi_queue => {
            "was made for several queues (multi_queue), which Kemari does not use".to_owned()
        }
        Some(_) => match steward::open_tap(net) {
            Ok(_) => return None,
            Err(error) => format!("cannot be used: {error:#}"),
        },
    };
    Some(format!("the device {tap} of the card {id} {why}"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use kemari_vmm::confine::{self, call};

    use super::*;

    fn cards() -> Cards {
        let text = include_str!("../../../docs/example.toml");
        let config = Arc::new(Config::parse(text, "test").unwrap());
        let host = config.hosts.keys().next().unwrap().clone();
        Cards::new(config, host, Findings::new(), Arc::default())
    }

    #[test]
    fn a_card_is_cut_off_only_if_that_lasts_without_a_break() {
        let mut cards = cards();
        let limit = cards.config.protection.suspicion_timeout();
        let trouble = || Some("down".to_owned());
        assert_eq!(cards.lasting(trouble()), None);
        cards.lost_since = Instant::now().checked_sub(limit);
        assert_eq!(cards.lasting(trouble()), trouble());
        assert_eq!(cards.lasting(None), None);
        assert_eq!(cards.lasting(trouble()), None, "another time is another time");
    }

    #[test]
    fn a_card_that_is_cut_off_stays_so_while_nobody_can_look() {
        let mut cards = cards();
        thread::scope(|threads| {
            threads.spawn(|| {
                let sockets = [call(libc::SYS_socket, "what this thread gets no more")];
                confine::refuse(&sockets, libc::ENOBUFS).unwrap();
                assert_eq!(cards.of_running(None), None);
                let trouble = Some("down".to_owned());
                cards.lost_since = Instant::now().checked_sub(cards.config.protection.suspicion_timeout());
                assert_eq!(cards.lasting(trouble.clone()), trouble);
                assert_eq!(cards.of_running(None), trouble);
                assert_eq!(cards.of_standby(), trouble);
                let found = cards.findings.reasons();
                assert!(
                    found.iter().any(|it| it.contains("cannot be watched")),
                    "{found:?}"
                );
                cards.begin_role();
                assert_eq!(cards.of_running(None), None);
            });
        });
    }

    #[test]
    fn a_tap_that_nobody_can_attach_to_any_more_is_told_although_it_looks_as_before() {
        let mut cards = cards();
        let net = &cards.config.nets_of(&cards.host)[0];
        let tap = net.tap.clone();
        thread::scope(|threads| {
            threads.spawn(|| {
                // SAFETY: the call has no arguments in memory.
                let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
                assert_eq!(unshared, 0);
                let run = |words: &str| {
                    let mut words = words.split(' ');
                    let mut command = std::process::Command::new(words.next().unwrap());
                    assert!(command.args(words).status().unwrap().success());
                };
                run("mount --make-rprivate /");
                run(&format!("ip tuntap add dev {tap} mode tap vnet_hdr"));
                let mut refused = || {
                    cards.of_standby();
                    cards.tried[0].1.clone().unwrap_or_default()
                };
                assert_eq!(refused(), "");
                run("mount -t tmpfs tmpfs /dev/net");
                let why = refused();
                assert!(why.contains(TUN), "{why}");
                run("umount /dev/net");
                assert_eq!(refused(), "");
                assert_eq!(cards.findings.stands_for(Source::Cards), Some(VALID));
                // It looks as it did when it was refused, which may have been for a moment only.
                cards.tried[0].1 = Some("it was busy".to_owned());
                cards.of_standby();
                assert_eq!(cards.tried[0].1, None);
                cards.mtus.note_theirs(&[9000]);
                assert_eq!(cards.mtus.narrower(&cards.config.nets_of(&cards.host)).len(), 1);
                cards.begin_role();
                assert!(cards.tried.is_empty(), "another role, another try");
                assert!(cards.mtus.narrower(&cards.config.nets_of(&cards.host)).is_empty());
            });
        });
    }
}
