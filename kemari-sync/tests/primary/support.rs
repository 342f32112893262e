//! A bench for the primary: it plays the rest of the world.

use kemari_sync::wire::{CommitId, Heartbeat, Message, PROOF_BYTES, Welcome};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, CopyLimits, Incarnation, Mode, OnSecondaryLoss, Opening, Phase, Primary,
    PrimaryAction, PrimaryConfig, PrimaryEvent, Protection, Readiness, Record, Reign, Source, Timing,
    Trouble,
};

use PrimaryAction as Do;

pub(crate) fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

pub(crate) fn alone(term: u64) -> Record {
    let (owner, peer) = (host("a", 1), None);
    Record {
        vm: "vm".to_owned(),
        store: 9,
        term,
        base: term,
        owner,
        peer,
        phase: Phase::Acting,
        work: Default::default(),
    }
}

pub(crate) fn pair() -> Record {
    Record {
        peer: Some(host("b", 2)),
        ..alone(2)
    }
}

pub(crate) fn won() -> Record {
    Record {
        term: 3,
        phase: Phase::Won,
        ..pair()
    }
}

/// The secondary lives, and could take over.
pub(crate) fn heartbeat() -> Message {
    said(None, Some(&[]))
}

/// The secondary says how its host is, and what would keep it from taking over, if it has looked.
pub(crate) fn said(trouble: Option<Trouble>, reasons: Option<&[&str]>) -> Message {
    Message::Heartbeat(Heartbeat {
        sequence: 1,
        epoch: 1,
        trouble,
        readiness: reasons.map(|reasons| Readiness::found(reasons.iter().map(|reason| reason.to_string()))),
        wall_clock_ms: 0,
        mtus: Vec::new(),
    })
}

/// A primary and the record that its arbiter has.
pub(crate) struct Bench {
    pub primary: Primary,
    pub now_ms: u64,
    pub store: Record,
    /// What the last capture was allowed to send at once.
    pub at_once: Option<Opening>,
    /// What an arbiter without a store was told.
    pub assumed: Vec<PrimaryAction>,
}

impl Bench {
    pub(crate) fn new(mode: Mode) -> Self {
        Self::with(mode, OnSecondaryLoss::Continue)
    }

    pub(crate) fn with(mode: Mode, on_secondary_loss: OnSecondaryLoss) -> Self {
        Self::of(mode, on_secondary_loss, Vec::new())
    }

    /// A primary with replicated disks.
    pub(crate) fn with_sources(mode: Mode, sources: Vec<Source>) -> Self {
        Self::of(mode, OnSecondaryLoss::Continue, sources)
    }

    fn of(mode: Mode, on_secondary_loss: OnSecondaryLoss, sources: Vec<Source>) -> Self {
        let config = PrimaryConfig {
            me: host("a", 1),
            config_digest: 7,
            mode,
            timing: Timing::default(),
            copy: CopyLimits {
                converged_pages: 10,
                rounds_max: 3,
            },
            on_secondary_loss,
            protect: true,
            sources,
        };
        let primary = Primary::new(
            config,
            Reign {
                record: alone(1),
                last_epoch: 0,
            },
            0,
        );
        Self {
            primary,
            now_ms: 0,
            store: alone(1),
            at_once: None,
            assumed: Vec::new(),
        }
    }

    /// One event; what it leads to, but for words to humans.
    pub(crate) fn feed(&mut self, event: PrimaryEvent) -> Vec<PrimaryAction> {
        let mut actions = Vec::new();
        self.primary.handle(self.now_ms, event, &mut actions);
        actions.retain(|action| !matches!(action, Do::Report(_) | Do::Progress { .. }));
        self.assumed
            .extend(actions.extract_if(.., |action| matches!(action, Do::Assume(_))));
        for action in &mut actions {
            if let Do::Capture { at_once, .. } = action {
                self.at_once = at_once.take();
            }
        }
        actions
    }

    pub(crate) fn hear(&mut self, session: u64, message: Message) -> Vec<PrimaryAction> {
        self.feed(PrimaryEvent::Message { session, message })
    }

    pub(crate) fn answer(&mut self, asked: &[PrimaryAction], answer: ArbiterAnswer) -> Vec<PrimaryAction> {
        let ask = asked.iter().find_map(|action| match action {
            Do::Ask { ask, .. } => Some(*ask),
            _ => None,
        });
        self.feed(PrimaryEvent::Arbiter {
            ask: ask.expect("the arbiter is asked"),
            answer,
        })
    }

    pub(crate) fn read(&mut self, asked: &[PrimaryAction]) -> Vec<PrimaryAction> {
        self.answer(asked, ArbiterAnswer::Record(Some(self.store.clone())))
    }

    /// The arbiter carries out what is asked.
    pub(crate) fn swap(&mut self, asked: &[PrimaryAction]) -> Vec<PrimaryAction> {
        let new = asked.iter().find_map(|action| match action {
            Do::Ask {
                request: ArbiterRequest::Swap { new, .. },
                ..
            } => Some(new.clone()),
            _ => None,
        });
        self.store = new.expect("a swap is asked for");
        self.answer(asked, ArbiterAnswer::Swapped)
    }

    /// Lets time pass without a sign of the secondary; what follows at the first thing that happens.
    pub(crate) fn wait(&mut self, for_ms: u64) -> Vec<PrimaryAction> {
        let end_ms = self.now_ms + for_ms;
        let mut all = Vec::new();
        while let Some(due_ms) = self.primary.next_deadline().filter(|due_ms| *due_ms <= end_ms) {
            self.now_ms = due_ms;
            let actions = self.feed(PrimaryEvent::Tick);
            all.extend(actions.into_iter().filter(|action| !is_heartbeat(action)));
        }
        self.now_ms = end_ms;
        all
    }

    pub(crate) fn welcome(
        &mut self,
        session: u64,
        nonce: u128,
        last: Option<CommitId>,
    ) -> Vec<PrimaryAction> {
        self.hear(
            session,
            Message::Welcome(Welcome {
                incarnation: host("b", nonce),
                last,
            }),
        )
    }

    /// The secondary answers that it got the proof.
    pub(crate) fn prove(&mut self, session: u64) -> Vec<PrimaryAction> {
        self.hear(session, Message::Proof { bytes: PROOF_BYTES })
    }

    /// Up to the first capture of a pair.
    pub(crate) fn copied(mode: Mode) -> (Self, Vec<PrimaryAction>) {
        let mut bench = Self::new(mode);
        let actions = bench.copy();
        (bench, actions)
    }

    pub(crate) fn copy(&mut self) -> Vec<PrimaryAction> {
        let asked = self.copy_up_to_confirmation();
        self.read(&asked)
    }

    /// Up to the last look at the record before the first sync.
    pub(crate) fn copy_up_to_confirmation(&mut self) -> Vec<PrimaryAction> {
        assert!(self.primary.wants_peer());
        let actions = self.feed(PrimaryEvent::PeerConnected { session: 1 });
        assert!(matches!(
            &actions[..],
            [Do::Send {
                message: Message::Hello(_),
                ..
            }]
        ));
        let asked = self.welcome(1, 2, None);
        let proof = Message::Proof { bytes: PROOF_BYTES };
        assert_eq!(
            self.read(&asked),
            [Do::Send {
                session: 1,
                message: proof.clone()
            }],
            "the way is proved first"
        );
        assert_eq!(
            self.hear(1, proof),
            [Do::Send {
                session: 1,
                message: Message::Prepare
            }]
        );
        let actions = self.hear(
            1,
            Message::Ready {
                staging_pages_max: 1_000,
                disks: Vec::new(),
            },
        );
        assert_eq!(
            actions,
            [Do::CopyRound {
                session: 1,
                first: true
            }]
        );
        self.feed(PrimaryEvent::CopyRoundSent {
            session: 1,
            dirty_pages: 10,
        })
    }

    /// Up to a recorded pair in which nothing is under way.
    pub(crate) fn protected(mode: Mode) -> Self {
        let (mut bench, _) = Self::copied(mode);
        bench.captured(1);
        let asked = bench.ack(1);
        bench.swap(&asked);
        assert_eq!(bench.status(), Protection::Protected);
        bench
    }

    pub(crate) fn captured(&mut self, epoch: u64) -> Vec<PrimaryAction> {
        self.feed(PrimaryEvent::Captured {
            epoch,
            pages: 5,
            bytes: 100,
            stop: false,
        })
    }

    pub(crate) fn ack(&mut self, epoch: u64) -> Vec<PrimaryAction> {
        self.hear(1, Message::Ack(CommitId { term: 2, epoch }))
    }

    pub(crate) fn status(&self) -> Protection {
        self.primary.status(self.now_ms).protection
    }
}

pub(crate) fn is_heartbeat(action: &PrimaryAction) -> bool {
    matches!(
        action,
        Do::Send {
            message: Message::Heartbeat(_),
            ..
        }
    )
}

pub(crate) fn capture(epoch: u64) -> PrimaryAction {
    Do::Capture {
        epoch,
        term: 2,
        hold: true,
        at_once: None,
    }
}

/// A sync was sent, the link broke, and the secondary says what it has.
pub(crate) fn rejoined(last_epoch: u64) -> (Bench, Vec<PrimaryAction>) {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    assert_eq!(
        bench.feed(PrimaryEvent::PeerClosed {
            session: 1,
            reason: "reset".to_owned()
        }),
        []
    );
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.welcome(
        2,
        2,
        Some(CommitId {
            term: 2,
            epoch: last_epoch,
        }),
    );
    (bench, actions)
}
