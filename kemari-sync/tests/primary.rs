//! The primary's transitions, one by one.

use kemari_sync::wire::{CommitId, Goodbye, Heartbeat, Message, Welcome};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, CopyLimits, Incarnation, Mode, OnSecondaryLoss, Phase, Primary,
    PrimaryAction, PrimaryConfig, PrimaryEvent, Protection, Record, Reign, Timing,
};

use PrimaryAction as Do;

fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

fn alone(term: u64) -> Record {
    let (owner, peer) = (host("a", 1), None);
    Record {
        vm: "vm".to_owned(),
        store: 9,
        term,
        base: term,
        owner,
        peer,
        phase: Phase::Acting,
    }
}

fn pair() -> Record {
    Record {
        peer: Some(host("b", 2)),
        ..alone(2)
    }
}

fn won() -> Record {
    Record {
        term: 3,
        phase: Phase::Won,
        ..pair()
    }
}

/// A primary and the record that its arbiter has.
struct Bench {
    primary: Primary,
    now_ms: u64,
    store: Record,
}

impl Bench {
    fn new(mode: Mode) -> Self {
        Self::with(mode, OnSecondaryLoss::Continue)
    }

    fn with(mode: Mode, on_secondary_loss: OnSecondaryLoss) -> Self {
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
        }
    }

    /// One event; what it leads to, but for words to humans.
    fn feed(&mut self, event: PrimaryEvent) -> Vec<PrimaryAction> {
        let mut actions = Vec::new();
        self.primary.handle(self.now_ms, event, &mut actions);
        actions.retain(|action| !matches!(action, Do::Report(_) | Do::Progress { .. }));
        actions
    }

    fn hear(&mut self, session: u64, message: Message) -> Vec<PrimaryAction> {
        self.feed(PrimaryEvent::Message { session, message })
    }

    fn answer(&mut self, asked: &[PrimaryAction], answer: ArbiterAnswer) -> Vec<PrimaryAction> {
        let ask = asked.iter().find_map(|action| match action {
            Do::Ask { ask, .. } => Some(*ask),
            _ => None,
        });
        self.feed(PrimaryEvent::Arbiter {
            ask: ask.expect("the arbiter is asked"),
            answer,
        })
    }

    fn read(&mut self, asked: &[PrimaryAction]) -> Vec<PrimaryAction> {
        self.answer(asked, ArbiterAnswer::Record(Some(self.store.clone())))
    }

    /// The arbiter carries out what is asked.
    fn swap(&mut self, asked: &[PrimaryAction]) -> Vec<PrimaryAction> {
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
    fn wait(&mut self, for_ms: u64) -> Vec<PrimaryAction> {
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

    fn welcome(&mut self, session: u64, nonce: u128, last: Option<CommitId>) -> Vec<PrimaryAction> {
        self.hear(
            session,
            Message::Welcome(Welcome {
                incarnation: host("b", nonce),
                last,
            }),
        )
    }

    /// Up to the first capture of a pair.
    fn copied(mode: Mode) -> (Self, Vec<PrimaryAction>) {
        let mut bench = Self::new(mode);
        let actions = bench.copy();
        (bench, actions)
    }

    fn copy(&mut self) -> Vec<PrimaryAction> {
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
        assert_eq!(
            self.read(&asked),
            [Do::Send {
                session: 1,
                message: Message::Prepare
            }]
        );
        let actions = self.hear(
            1,
            Message::Ready {
                staging_pages_max: 1_000,
            },
        );
        assert_eq!(
            actions,
            [Do::CopyRound {
                session: 1,
                first: true
            }]
        );
        let asked = self.feed(PrimaryEvent::CopyRoundSent {
            session: 1,
            dirty_pages: 10,
        });
        self.read(&asked)
    }

    /// Up to a recorded pair in which nothing is under way.
    fn protected(mode: Mode) -> Self {
        let (mut bench, _) = Self::copied(mode);
        bench.captured(1);
        let asked = bench.ack(1);
        bench.swap(&asked);
        assert_eq!(bench.status(), Protection::Protected);
        bench
    }

    fn captured(&mut self, epoch: u64) -> Vec<PrimaryAction> {
        self.feed(PrimaryEvent::Captured {
            epoch,
            pages: 5,
            bytes: 100,
            stop: false,
        })
    }

    fn ack(&mut self, epoch: u64) -> Vec<PrimaryAction> {
        self.hear(1, Message::Ack(CommitId { term: 2, epoch }))
    }

    fn status(&self) -> Protection {
        self.primary.status(self.now_ms).protection
    }
}

fn is_heartbeat(action: &PrimaryAction) -> bool {
    matches!(
        action,
        Do::Send {
            message: Message::Heartbeat(_),
            ..
        }
    )
}

fn capture(epoch: u64) -> PrimaryAction {
    Do::Capture {
        epoch,
        term: 2,
        hold: true,
    }
}

#[test]
fn output_is_held_from_the_first_capture_until_the_pair_is_recorded() {
    let (mut bench, actions) = Bench::copied(Mode::Lockstep);
    assert_eq!(actions, [capture(1)]);
    let actions = bench.captured(1);
    let [
        Do::Transmit {
            session: 1,
            begin,
            stop: false,
        },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (begin.epoch, begin.base, begin.term, begin.secondary),
        (1, None, 2, 2)
    );
    let asked = bench.ack(1);
    let [
        Do::Ask {
            request: ArbiterRequest::Swap { expected, new },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!((expected.as_ref(), new), (Some(&alone(1)), &pair()));
    assert_eq!(bench.status(), Protection::Pairing);
    assert_eq!(bench.swap(&asked), [Do::Release { epoch: 1 }, Do::Resume]);
}

#[test]
fn a_pair_that_was_certainly_not_recorded_is_given_up() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let asked = bench.ack(1);
    let actions = bench.answer(&asked, ArbiterAnswer::Unavailable("refused".to_owned()));
    assert_eq!(actions[0], Do::GiveBack { epoch: 1 });
    assert!(matches!(actions[1], Do::CloseSession { session: 1, .. }));
    assert_eq!(actions[2..], [Do::OpenGate, Do::Resume]);
    assert_eq!(bench.status(), Protection::Unprotected);
}

#[test]
fn while_the_record_of_a_pair_is_in_doubt_nothing_leaves() {
    let (mut bench, _) = Bench::copied(Mode::Pipelined);
    bench.captured(1);
    let asked = bench.ack(1);
    assert_eq!(
        bench.answer(&asked, ArbiterAnswer::Unknown("time-out".to_owned())),
        []
    );
    assert_eq!(
        bench.feed(PrimaryEvent::PeerClosed {
            session: 1,
            reason: "reset".to_owned()
        }),
        []
    );
    assert!(!bench.primary.wants_peer());
    let asked = bench.wait(200);
    assert!(
        matches!(
            asked[..],
            [Do::Ask {
                request: ArbiterRequest::Read,
                ..
            }]
        ),
        "{asked:?}"
    );
    // It was carried out: the pair stands, and has lost its session.
    bench.store = pair();
    assert_eq!(bench.read(&asked), [Do::Release { epoch: 1 }]);
    assert!(bench.primary.wants_peer());
    assert_eq!(bench.status(), Protection::Deciding);
}

#[test]
fn a_link_that_breaks_before_the_first_ack_gives_the_right_to_act_alone_back() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let actions = bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(actions, [Do::GiveBack { epoch: 1 }, Do::OpenGate, Do::Resume]);
    assert!(bench.primary.wants_peer());
    let actions = bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    assert!(
        matches!(&actions[..], [Do::Send { message: Message::Hello(hello), .. }] if hello.peer.is_none())
    );
}

#[test]
fn a_first_sync_without_ack_does_not_hold_output_for_ever() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    for _ in 0..60 {
        bench.hear(
            1,
            Message::Heartbeat(Heartbeat {
                sequence: 1,
                epoch: 0,
            }),
        );
        if bench.wait(100).contains(&Do::OpenGate) {
            return;
        }
    }
    panic!("output is held for ever");
}

#[test]
fn lockstep_resumes_at_the_ack_and_pipelined_at_the_capture() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Transmit { .. }]));
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, Do::Resume]);

    let mut bench = Bench::protected(Mode::Pipelined);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Resume, Do::Transmit { .. }]));
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }]);
}

#[test]
fn one_sync_is_under_way_and_the_rest_joins_the_next() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    assert_eq!(
        bench.feed(PrimaryEvent::OutputPending),
        [],
        "contained in the capture that is under way"
    );
    bench.captured(2);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, capture(3)]);
}

#[test]
fn without_output_a_sync_starts_at_the_interval_and_at_the_dirty_limit() {
    let mut bench = Bench::protected(Mode::Pipelined);
    assert_eq!(bench.wait(500), []);
    bench.hear(
        1,
        Message::Heartbeat(Heartbeat {
            sequence: 1,
            epoch: 1,
        }),
    );
    assert_eq!(bench.wait(Timing::default().max_interval_ms)[..1], [capture(2)]);
    bench.captured(2);
    assert_eq!(
        bench.feed(PrimaryEvent::DirtyLimit),
        [Do::Pause],
        "the next sync must not become larger still"
    );
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, Do::Resume, capture(3)]);
}

#[test]
fn an_ack_that_nobody_waits_for_ends_the_session_and_releases_nothing() {
    for ack in [
        CommitId { term: 2, epoch: 3 },
        CommitId { term: 1, epoch: 2 },
        CommitId { term: 2, epoch: 1 },
    ] {
        let mut bench = Bench::protected(Mode::Lockstep);
        bench.feed(PrimaryEvent::OutputPending);
        bench.captured(2);
        let actions = bench.hear(1, Message::Ack(ack));
        assert!(
            matches!(actions[..], [Do::CloseSession { session: 1, .. }]),
            "{actions:?}"
        );
    }
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    assert_eq!(
        bench.hear(8, Message::Ack(CommitId { term: 2, epoch: 2 })),
        [],
        "of another session"
    );
    let actions = bench.hear(1, Message::LetGo(CommitId { term: 2, epoch: 2 }));
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }]),
        "nobody has stopped the VM: {actions:?}"
    );
}

/// A sync was sent, the link broke, and the secondary says what it has.
fn rejoined(last_epoch: u64) -> (Bench, Vec<PrimaryAction>) {
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

#[test]
fn a_handshake_counts_as_an_ack() {
    let (bench, actions) = rejoined(2);
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Resume]);
    assert_eq!(bench.status(), Protection::Protected);
}

#[test]
fn a_sync_lost_with_the_link_is_given_back_and_follows_under_a_new_number() {
    let (mut bench, actions) = rejoined(1);
    assert_eq!(actions, [Do::GiveBack { epoch: 2 }, capture(3)]);
    let actions = bench.captured(3);
    let [
        Do::Transmit {
            session: 2, begin, ..
        },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!((begin.epoch, begin.base), (3, Some(1)));
}

#[test]
fn a_secondary_that_holds_another_state_is_parted_from() {
    let (_, actions) = rejoined(7);
    assert!(matches!(
        actions[..],
        [
            Do::CloseSession { .. },
            Do::Ask {
                request: ArbiterRequest::Read,
                ..
            }
        ]
    ));
}

#[test]
fn a_capture_is_sent_in_the_session_that_follows() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.captured(2), [], "there is no session");
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.welcome(2, 2, Some(CommitId { term: 2, epoch: 1 }));
    assert!(
        matches!(&actions[..], [Do::Transmit { session: 2, begin, .. }] if begin.epoch == 2),
        "{actions:?}"
    );
}

/// A secondary is lost with a sync under way, and the arbiter is about to be asked.
fn parting() -> (Bench, Vec<PrimaryAction>) {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.wait(Timing::default().reconnect_ms - 1), []);
    let asked = bench.wait(1);
    (bench, asked)
}

#[test]
fn a_lost_secondary_is_left_by_a_won_term_only() {
    let (mut bench, asked) = parting();
    let asked = bench.read(&asked);
    let [
        Do::Ask {
            request: ArbiterRequest::Swap { expected, new },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (expected.as_ref(), new),
        (Some(&pair()), &Record { base: 2, ..won() })
    );
    let asked = bench.swap(&asked);
    assert!(
        matches!(asked[..], [Do::Ask { .. }]),
        "no output before the record says `acting`: {asked:?}"
    );
    assert_eq!(
        bench.swap(&asked),
        [Do::GiveBack { epoch: 2 }, Do::OpenGate, Do::Resume]
    );
    assert_eq!(*bench.primary.record(), alone(3));
    assert!(bench.primary.wants_peer(), "a new secondary may come");
}

#[test]
fn a_secondary_that_is_back_in_time_is_kept() {
    let (mut bench, _) = parting();
    assert!(bench.primary.wants_peer());
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.welcome(2, 2, Some(CommitId { term: 2, epoch: 2 }));
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Resume]);
    assert_eq!(bench.status(), Protection::Protected);
}

#[test]
fn an_ack_counts_after_the_arbiter_was_asked() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    let asked = bench.wait(Timing::default().suspicion_ms);
    let asked = bench.read(&asked);
    assert_eq!(
        bench.ack(2),
        [Do::Release { epoch: 2 }],
        "and no further sync begins"
    );
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    let asked = bench.swap(&asked);
    let actions = bench.swap(&asked);
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::Alone(_)),
                ..
            },
            Do::CloseSession { .. },
            Do::OpenGate
        ]
    ));
}

#[test]
fn a_primary_that_lost_waits_paused_and_halts_when_the_other_acts() {
    let mut bench = Bench::protected(Mode::Pipelined);
    let asked = bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(asked, []);
    let asked = bench.wait(Timing::default().reconnect_ms);
    let other_won = Record {
        owner: host("b", 2),
        peer: Some(host("a", 1)),
        base: 2,
        ..won()
    };
    bench.store = other_won.clone();
    assert_eq!(bench.read(&asked), [Do::Pause]);
    let asked = bench.wait(200);
    bench.store = Record {
        base: 3,
        peer: None,
        phase: Phase::Acting,
        ..other_won
    };
    assert!(matches!(bench.read(&asked)[..], [Do::Halt { .. }]));
    assert!(bench.primary.is_over());
    assert_eq!(bench.primary.next_deadline(), None);
}

#[test]
fn an_arbiter_that_does_not_answer_keeps_output_waiting_and_says_so() {
    let (mut bench, mut asked) = parting();
    for _ in 0..20 {
        assert_eq!(
            bench.answer(&asked, ArbiterAnswer::Unavailable("no route".to_owned())),
            []
        );
        asked = bench.wait(200);
    }
    let waiting = bench.primary.status(bench.now_ms).waiting.expect("it waits");
    assert!(
        waiting.contains("no route") && waiting.contains("link"),
        "{waiting}"
    );
}

#[test]
fn a_heard_secondary_that_does_not_ack_is_parted_from_at_the_progress_limit() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    for _ in 0..49 {
        bench.hear(
            1,
            Message::Heartbeat(Heartbeat {
                sequence: 1,
                epoch: 1,
            }),
        );
        assert_eq!(bench.wait(100), []);
    }
    bench.hear(
        1,
        Message::Heartbeat(Heartbeat {
            sequence: 1,
            epoch: 1,
        }),
    );
    assert!(matches!(bench.wait(100)[..], [Do::Ask { .. }]));
}

#[test]
fn a_process_that_stood_still_has_proved_no_silence() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.now_ms += 60_000;
    let actions = bench.feed(PrimaryEvent::Tick);
    assert!(
        actions
            .iter()
            .all(|action| is_heartbeat(action) || *action == capture(2)),
        "{actions:?}"
    );
}

#[test]
fn a_clean_stop_is_a_sync_that_the_secondary_lets_go_with() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::OperatorStop), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Transmit { stop: true, .. }]));
    let actions = bench.hear(1, Message::LetGo(CommitId { term: 2, epoch: 2 }));
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Drain]);
    let asked = bench.feed(PrimaryEvent::Drained);
    let asked = bench.read(&asked);
    let actions = bench.swap(&asked);
    assert_eq!(bench.store.phase, Phase::Stopped);
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::Stopped),
                ..
            },
            Do::CloseSession { .. },
            Do::Exit { .. }
        ]
    ));
}

#[test]
fn a_power_off_in_a_capture_makes_it_the_last() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    let actions = bench.feed(PrimaryEvent::Captured {
        epoch: 2,
        pages: 1,
        bytes: 1,
        stop: true,
    });
    assert!(
        matches!(actions[..], [Do::Transmit { stop: true, .. }]),
        "and the guest stays paused: {actions:?}"
    );
}

#[test]
fn a_vm_that_is_alone_stops_after_its_io() {
    let mut bench = Bench::new(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::PoweredOff), [Do::Drain]);
    let asked = bench.feed(PrimaryEvent::Drained);
    let asked = bench.read(&asked);
    assert!(matches!(bench.swap(&asked)[..], [Do::Exit { .. }]));
    assert_eq!((bench.store.term, bench.store.phase), (2, Phase::Stopped));
}

#[test]
fn the_policy_may_be_to_stop_without_a_secondary() {
    let mut bench = Bench::with(Mode::Lockstep, OnSecondaryLoss::Stop);
    bench.copy();
    bench.captured(1);
    let asked = bench.ack(1);
    bench.swap(&asked);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    let asked = bench.wait(Timing::default().reconnect_ms);
    let asked = bench.read(&asked);
    let asked = bench.swap(&asked);
    assert_eq!(bench.swap(&asked), [Do::OpenGate, Do::Drain]);
}

#[test]
fn unprotecting_is_a_change_of_the_record() {
    let mut bench = Bench::protected(Mode::Pipelined);
    let asked = bench.feed(PrimaryEvent::OperatorUnprotect);
    let asked = bench.read(&asked);
    let asked = bench.swap(&asked);
    assert!(bench.swap(&asked).contains(&Do::OpenGate));
    assert!(!bench.primary.wants_peer());
    bench.feed(PrimaryEvent::OperatorProtect);
    assert!(bench.primary.wants_peer());
}

#[test]
fn a_failing_host_hands_over() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let actions = bench.feed(PrimaryEvent::HostFailing {
        reason: "KVM".to_owned(),
    });
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::HandOver(_)),
                ..
            },
            Do::Halt { .. },
            Do::CloseSession { .. }
        ]
    ));
}

#[test]
fn captures_that_fail_again_and_again_are_the_hosts_failure() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    let failed = |epoch| PrimaryEvent::CaptureFailed {
        epoch,
        reason: "KVM".to_owned(),
    };
    assert_eq!(bench.feed(failed(2)), [Do::GiveBack { epoch: 2 }, capture(3)]);
    assert_eq!(bench.feed(failed(3)), [Do::GiveBack { epoch: 3 }, capture(4)]);
    assert!(
        bench
            .feed(failed(4))
            .iter()
            .any(|action| matches!(action, Do::Halt { .. }))
    );
}

#[test]
fn a_sync_beyond_the_secondarys_staging_is_not_sent() {
    let (mut bench, _) = rejoined(1);
    let actions = bench.feed(PrimaryEvent::Captured {
        epoch: 3,
        pages: 1_001,
        bytes: 1,
        stop: false,
    });
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }, Do::Ask { .. }]),
        "{actions:?}"
    );
}

#[test]
fn a_copy_goes_on_until_few_pages_are_left_or_is_given_up() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.read(&asked);
    bench.hear(
        1,
        Message::Ready {
            staging_pages_max: 100,
        },
    );
    let round = |dirty_pages| PrimaryEvent::CopyRoundSent {
        session: 1,
        dirty_pages,
    };
    for _ in 0..2 {
        assert_eq!(
            bench.feed(round(5_000)),
            [Do::CopyRound {
                session: 1,
                first: false
            }]
        );
    }
    assert!(matches!(bench.feed(round(5_000))[..], [Do::CloseSession { .. }]));
    assert!(!bench.primary.wants_peer());
}

#[test]
fn protection_waits_for_the_arbiter_before_the_first_page() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    assert_eq!(
        bench.answer(&asked, ArbiterAnswer::Unavailable("no route".to_owned())),
        []
    );
    let waiting = bench.primary.status(0).waiting.expect("it waits");
    assert!(waiting.contains("no route"), "{waiting}");
}

#[test]
fn a_record_that_passed_to_another_halts() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.store = Record {
        owner: host("c", 3),
        ..alone(2)
    };
    assert!(matches!(
        bench.read(&asked)[..],
        [Do::Halt { .. }, Do::CloseSession { .. }]
    ));
}
