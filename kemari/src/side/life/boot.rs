//! A start of the VM: the term, the images, the kernel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kemari_sync::{
    ArbiterRequest, AskId, Incarnation, PeerWord, Record, Reign, Start, StartAction, StartConfig, StartEvent,
    Timing,
};

use super::super::assembly;
use super::super::clock::Clock;
use super::super::primary::{PrimarySide, Seat};
use super::super::query::ask_peer;
use super::Life;
use crate::config::ArbiterKind;
use crate::replica::Image;

impl Life {
    /// Wins a term, builds the machine and boots it. The inner error is why the VM may not be started here.
    pub(super) fn cold_boot(
        &self,
        assert_dead: Option<u64>,
        adopt_disks: bool,
    ) -> anyhow::Result<Result<Box<PrimarySide>, String>> {
        let images = Image::open_all(&self.config, &self.host, None)?;
        let seat = Seat::make(&self.config, &self.host, self.spec.clone())?;
        let me = self.incarnation();
        let record = match self.win(&me, assert_dead, &images, adopt_disks)? {
            Ok(record) => record,
            Err(reason) => return Ok(Err(reason)),
        };
        for image in &images {
            image.start(record.term, adopt_disks)?;
        }
        let machine = &seat.machine;
        let trackers = assembly::watch_disks(machine, &self.config, &images)?;
        for disk in self.config.disks_of(&self.host) {
            assembly::attach_disk(machine, &disk, false)?;
        }
        for net in self.config.nets_of(&self.host) {
            assembly::attach_net(machine, &net)?;
        }
        machine.boot()?;
        let last_epoch = 0;
        let reign = Reign { record, last_epoch };
        Ok(Ok(self.primary(me, reign, seat, trackers)))
    }

    /// Asks a host what it holds of the VM.
    fn ask(&self, host: &str, address: SocketAddr) -> PeerWord {
        match &self.security {
            Some(security) => ask_peer(security, host, address),
            None => PeerWord::Silent(
                "the configuration names neither `certificates` nor `plaintext = true`".into(),
            ),
        }
    }

    /// Where there is no arbiter, the other hosts are asked whether they have the VM.
    /// A silent one counts as dead.
    fn ask_around(&self) -> Result<(), String> {
        if self.config.arbiter.kind != ArbiterKind::None {
            return Ok(());
        }
        for (name, host) in self.config.hosts.iter().filter(|(name, _)| **name != self.host) {
            match self.ask(name, host.listen.address()) {
                PeerWord::HoldsNothing => {}
                PeerWord::Holds(what) => {
                    return Err(format!(
                        "{name} holds {what} of VM {}: let it take over",
                        self.config.vm
                    ));
                }
                PeerWord::Silent(why) => tracing::warn!(
                    "there is no arbiter, and {name} does not answer ({why}): on the operator's word it \
                     counts as dead; if it runs the VM, there are two now"
                ),
            }
        }
        Ok(())
    }

    /// Asks the arbiter for a term. The inner error is why it is refused.
    fn win(
        &self,
        me: &Incarnation,
        assert_dead: Option<u64>,
        images: &[Arc<Image>],
        adopt_images: bool,
    ) -> anyhow::Result<Result<Record, String>> {
        if let Err(reason) = self.ask_around() {
            return Ok(Err(reason));
        }
        let (sender, inputs) = channel();
        let answers = sender.clone();
        let arbiter = self.arbiter.asker(move |ask, answer| {
            // The start may have ended already.
            let _ = answers.send(StartEvent::Arbiter { ask, answer });
        });
        let start = Start::new(StartConfig {
            me: me.clone(),
            vm: self.config.vm.clone(),
            store: rand::random(),
            assert_dead,
            // The lock on the state directory is held: every older process of this host is dead.
            alone_on_host: true,
            ask_retry_ms: Timing::default().ask_retry_ms,
            images: images.iter().map(|image| image.offer()).collect(),
            adopt_images,
        });
        let ask_peer = |peer: Incarnation| {
            let word = match self.config.hosts.get(&peer.host) {
                Some(host) => self.ask(&peer.host, host.listen.address()),
                None => PeerWord::Silent("it is not in the configuration".into()),
            };
            // This function holds the receiver.
            let _ = sender.send(StartEvent::Peer(word));
        };
        play(
            start,
            images,
            self.clock,
            &inputs,
            |ask, request| arbiter.ask(ask, request),
            ask_peer,
        )
    }
}

/// Plays a start to its end; answers come as `inputs`. The inner error is why it is refused.
///
/// A term that is asked for is announced in the images before: who loses its power when it has won, and
/// before it knows, still has the last image.
fn play(
    mut start: Start,
    images: &[Arc<Image>],
    clock: Clock,
    inputs: &Receiver<StartEvent>,
    ask_arbiter: impl Fn(AskId, ArbiterRequest),
    ask_peer: impl Fn(Incarnation),
) -> anyhow::Result<Result<Record, String>> {
    let mut event = StartEvent::Tick;
    loop {
        let mut actions = Vec::new();
        start.handle(clock.now_ms(), event, &mut actions);
        for action in actions {
            match action {
                StartAction::Ask { ask, request } => {
                    if let ArbiterRequest::Swap { new, .. } = &request {
                        for image in images {
                            image.announce(new.term)?;
                        }
                    }
                    ask_arbiter(ask, request);
                }
                StartAction::AskPeer(peer) => ask_peer(peer),
                StartAction::Run(record) => return Ok(Ok(record)),
                StartAction::Refuse(reason) => return Ok(Err(reason)),
                StartAction::Report(text) => tracing::warn!("{text}"),
            }
        }
        let now_ms = clock.now_ms();
        let wait_ms = start
            .next_deadline()
            .map_or(1000, |due_ms| due_ms.saturating_sub(now_ms));
        event = inputs
            .recv_timeout(Duration::from_millis(wait_ms))
            .unwrap_or(StartEvent::Tick);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kemari_sync::ArbiterAnswer;

    use super::*;
    use crate::replica::testing::Scratch;

    #[test]
    fn a_term_is_announced_in_every_image_before_it_is_asked_for() {
        let scratches = [Scratch::new(1 << 20), Scratch::new(1 << 20)];
        let images: Vec<_> = scratches.iter().map(|scratch| scratch.image()).collect();
        let (sender, inputs) = channel();
        let start = Start::new(StartConfig {
            me: Incarnation {
                host: "a".into(),
                nonce: 1,
            },
            vm: "demo".into(),
            store: 1,
            assert_dead: None,
            alone_on_host: true,
            ask_retry_ms: Timing::default().ask_retry_ms,
            images: images.iter().map(|image| image.offer()).collect(),
            adopt_images: false,
        });
        let asked_for = Cell::new(None);
        let ask_arbiter = |ask, request| {
            let answer = match request {
                ArbiterRequest::Read => ArbiterAnswer::Record(None),
                ArbiterRequest::Swap { new, .. } => {
                    for image in &images {
                        let word = image.offer().word.expect("it has a record");
                        assert_eq!(word.next_term, new.term);
                    }
                    asked_for.set(Some(new.term));
                    ArbiterAnswer::Swapped
                }
            };
            sender.send(StartEvent::Arbiter { ask, answer }).unwrap();
        };
        let nobody = |peer| panic!("{peer:?} is asked");
        let won = play(start, &images, Clock::start(), &inputs, ask_arbiter, nobody);
        let record = won.expect("the images can be written").expect("it may start");
        assert_eq!(Some(record.term), asked_for.get());
    }
}
