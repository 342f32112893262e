//! A bench for the secondary: it plays the rest of the world.

use kemari_sync::wire::{Begin, Commit, CommitId, Goodbye, Hello, Message, PROTOCOL_VERSION};
use kemari_sync::{
    ArbiterAnswer, Incarnation, Phase, Record, Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent,
    Timing,
};

use SecondaryAction as Do;

/// A fence is over within so long, in milliseconds.
pub(crate) const FENCE_MS_MAX: u64 = 10_000;

pub(crate) fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

pub(crate) fn pair() -> Record {
    Record {
        vm: "vm".to_owned(),
        store: 9,
        term: 2,
        base: 2,
        owner: host("a", 1),
        peer: Some(host("b", 2)),
        phase: Phase::Acting,
        work: Default::default(),
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        vm: "vm".to_owned(),
        config_digest: 7,
        incarnation: host("a", 1),
        session: 1,
        term: 1,
        peer: None,
        last: None,
    }
}

/// The same primary's greeting once the pair is recorded.
pub(crate) fn hello_again() -> Hello {
    Hello {
        session: 2,
        term: 2,
        peer: Some(2),
        last: Some(1),
        ..hello()
    }
}

pub(crate) fn begin(epoch: u64, base: Option<u64>) -> Message {
    Message::Begin(Begin {
        epoch,
        base,
        term: 2,
        store: 9,
        primary: 1,
        secondary: 2,
    })
}

pub(crate) struct Bench {
    pub secondary: Secondary,
    pub now_ms: u64,
    /// What an arbiter without a store was told.
    pub assumed: Vec<SecondaryAction>,
}

impl Bench {
    pub(crate) fn new(fence: bool) -> Self {
        let config = SecondaryConfig {
            me: host("b", 2),
            vm: "vm".to_owned(),
            config_digest: 7,
            timing: Timing::default(),
            fence_ms_max: fence.then_some(FENCE_MS_MAX),
            staging_pages_max: 100,
        };
        Self {
            secondary: Secondary::new(config, 0),
            now_ms: 0,
            assumed: Vec::new(),
        }
    }

    pub(crate) fn feed(&mut self, event: SecondaryEvent) -> Vec<SecondaryAction> {
        let mut actions = Vec::new();
        self.secondary.handle(self.now_ms, event, &mut actions);
        actions.retain(|action| !matches!(action, Do::Report(_)));
        self.assumed
            .extend(actions.extract_if(.., |action| matches!(action, Do::Assume(_))));
        actions
    }

    pub(crate) fn hear(&mut self, session: u64, message: Message) -> Vec<SecondaryAction> {
        self.feed(SecondaryEvent::Message { session, message })
    }

    pub(crate) fn wait(&mut self, for_ms: u64) -> Vec<SecondaryAction> {
        let end_ms = self.now_ms + for_ms;
        let mut all = Vec::new();
        while let Some(due_ms) = self.secondary.next_deadline().filter(|due_ms| *due_ms <= end_ms) {
            self.now_ms = due_ms;
            let actions = self.feed(SecondaryEvent::Tick);
            let is_heartbeat = |a: &Do| {
                matches!(
                    a,
                    Do::Send {
                        message: Message::Heartbeat(_),
                        ..
                    }
                )
            };
            all.extend(actions.into_iter().filter(|action| !is_heartbeat(action)));
        }
        self.now_ms = end_ms;
        all
    }

    pub(crate) fn answer(
        &mut self,
        asked: &[SecondaryAction],
        answer: ArbiterAnswer,
    ) -> Vec<SecondaryAction> {
        let ask = asked.iter().find_map(|action| match action {
            Do::Ask { ask, .. } => Some(*ask),
            _ => None,
        });
        self.feed(SecondaryEvent::Arbiter {
            ask: ask.expect("the arbiter is asked"),
            answer,
        })
    }

    pub(crate) fn read(&mut self, asked: &[SecondaryAction], record: Record) -> Vec<SecondaryAction> {
        self.answer(asked, ArbiterAnswer::Record(Some(record)))
    }

    /// Up to the first copy.
    pub(crate) fn copying(fence: bool) -> Self {
        let mut bench = Self::new(fence);
        let actions = bench.hear(1, Message::Hello(hello()));
        assert!(matches!(&actions[..], [Do::Send { message: Message::Welcome(w), .. }] if w.last.is_none()));
        assert_eq!(bench.hear(1, Message::Prepare), [Do::Prepare { session: 1 }]);
        let actions = bench.feed(SecondaryEvent::Prepared {
            session: 1,
            result: Ok(Vec::new()),
        });
        assert_eq!(
            actions,
            [Do::Send {
                session: 1,
                message: Message::Ready {
                    staging_pages_max: 100,
                    disks: Vec::new(),
                }
            }]
        );
        bench
    }

    /// Up to the first commit, which is applied.
    pub(crate) fn holding(fence: bool) -> Self {
        let mut bench = Self::copying(fence);
        let commit = CommitId { term: 2, epoch: 1 };
        let actions = bench.sync(1, None, false);
        assert_eq!(
            actions,
            [
                Do::Send {
                    session: 1,
                    message: Message::Ack(commit)
                },
                Do::Apply { epoch: 1 }
            ]
        );
        assert_eq!(bench.feed(SecondaryEvent::Applied { epoch: 1 }), []);
        bench
    }

    /// Receives a whole sync, and finds it good.
    pub(crate) fn sync(&mut self, epoch: u64, base: Option<u64>, stop: bool) -> Vec<SecondaryAction> {
        self.receive(epoch, base, stop);
        self.feed(SecondaryEvent::Checked {
            epoch,
            result: Ok(()),
        })
    }

    pub(crate) fn receive(&mut self, epoch: u64, base: Option<u64>, stop: bool) {
        assert_eq!(
            self.hear(1, begin(epoch, base)),
            [Do::Stage { session: 1, epoch }]
        );
        let commit = Commit {
            epoch,
            pages: 1,
            states: 1,
            digest: 5,
            stop,
        };
        assert_eq!(self.hear(1, Message::Commit(commit)), [Do::Check { commit }]);
    }

    /// The primary is silent, and the arbiter is read.
    pub(crate) fn suspecting(&mut self) -> Vec<SecondaryAction> {
        self.wait(Timing::default().suspicion_ms)
    }

    /// Asks for the VM, and wins; what follows the win.
    pub(crate) fn winning(&mut self) -> Vec<SecondaryAction> {
        let asked = self.suspecting();
        let asked = self.read(&asked, pair());
        self.answer(&asked, ArbiterAnswer::Swapped)
    }
}

pub(crate) fn assert_unfit(actions: &[SecondaryAction]) {
    let [
        Do::Send {
            message: Message::Goodbye(Goodbye::Unfit(_)),
            ..
        },
        Do::CloseSession { .. },
        ..,
    ] = actions
    else {
        panic!("it does not refuse: {actions:?}")
    };
}
