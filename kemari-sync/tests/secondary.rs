//! The secondary's transitions, one by one.

use kemari_sync::wire::{Begin, Commit, CommitId, Goodbye, Hello, Message, PROTOCOL_VERSION};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, Incarnation, Phase, Protection, Record, Reign, Secondary, SecondaryAction,
    SecondaryConfig, SecondaryEvent, Timing,
};

use SecondaryAction as Do;

fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

fn pair() -> Record {
    Record {
        vm: "vm".to_owned(),
        store: 9,
        term: 2,
        base: 2,
        owner: host("a", 1),
        peer: Some(host("b", 2)),
        phase: Phase::Acting,
    }
}

fn hello() -> Hello {
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
fn hello_again() -> Hello {
    Hello {
        session: 2,
        term: 2,
        peer: Some(2),
        last: Some(1),
        ..hello()
    }
}

fn begin(epoch: u64, base: Option<u64>) -> Message {
    Message::Begin(Begin {
        epoch,
        base,
        term: 2,
        store: 9,
        primary: 1,
        secondary: 2,
    })
}

struct Bench {
    secondary: Secondary,
    now_ms: u64,
}

impl Bench {
    fn new(fence: bool) -> Self {
        let config = SecondaryConfig {
            me: host("b", 2),
            vm: "vm".to_owned(),
            config_digest: 7,
            timing: Timing::default(),
            fence,
            staging_pages_max: 100,
        };
        Self {
            secondary: Secondary::new(config, 0),
            now_ms: 0,
        }
    }

    fn feed(&mut self, event: SecondaryEvent) -> Vec<SecondaryAction> {
        let mut actions = Vec::new();
        self.secondary.handle(self.now_ms, event, &mut actions);
        actions.retain(|action| !matches!(action, Do::Report(_)));
        actions
    }

    fn hear(&mut self, session: u64, message: Message) -> Vec<SecondaryAction> {
        self.feed(SecondaryEvent::Message { session, message })
    }

    fn wait(&mut self, for_ms: u64) -> Vec<SecondaryAction> {
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

    fn answer(&mut self, asked: &[SecondaryAction], answer: ArbiterAnswer) -> Vec<SecondaryAction> {
        let ask = asked.iter().find_map(|action| match action {
            Do::Ask { ask, .. } => Some(*ask),
            _ => None,
        });
        self.feed(SecondaryEvent::Arbiter {
            ask: ask.expect("the arbiter is asked"),
            answer,
        })
    }

    fn read(&mut self, asked: &[SecondaryAction], record: Record) -> Vec<SecondaryAction> {
        self.answer(asked, ArbiterAnswer::Record(Some(record)))
    }

    /// Up to the first copy.
    fn copying(fence: bool) -> Self {
        let mut bench = Self::new(fence);
        let actions = bench.hear(1, Message::Hello(hello()));
        assert!(matches!(&actions[..], [Do::Send { message: Message::Welcome(w), .. }] if w.last.is_none()));
        assert_eq!(bench.hear(1, Message::Prepare), [Do::Prepare { session: 1 }]);
        let actions = bench.feed(SecondaryEvent::Prepared {
            session: 1,
            result: Ok(()),
        });
        assert_eq!(
            actions,
            [Do::Send {
                session: 1,
                message: Message::Ready {
                    staging_pages_max: 100
                }
            }]
        );
        bench
    }

    /// Up to the first commit, which is applied.
    fn holding(fence: bool) -> Self {
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
    fn sync(&mut self, epoch: u64, base: Option<u64>, stop: bool) -> Vec<SecondaryAction> {
        self.receive(epoch, base, stop);
        self.feed(SecondaryEvent::Checked {
            epoch,
            result: Ok(()),
        })
    }

    fn receive(&mut self, epoch: u64, base: Option<u64>, stop: bool) {
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
    fn suspecting(&mut self) -> Vec<SecondaryAction> {
        self.wait(Timing::default().suspicion_ms)
    }

    /// Asks for the VM, and wins; what follows the win.
    fn winning(&mut self) -> Vec<SecondaryAction> {
        let asked = self.suspecting();
        let asked = self.read(&asked, pair());
        self.answer(&asked, ArbiterAnswer::Swapped)
    }
}

fn assert_unfit(actions: &[SecondaryAction]) {
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

#[test]
fn strangers_are_refused_with_a_reason() {
    let cases = [
        (
            Hello {
                protocol: 9,
                ..hello()
            },
            "same version",
        ),
        (
            Hello {
                vm: "other".to_owned(),
                ..hello()
            },
            "for VM vm",
        ),
        (
            Hello {
                config_digest: 8,
                ..hello()
            },
            "configurations differ",
        ),
        (
            Hello {
                incarnation: host("b", 2),
                ..hello()
            },
            "follow itself",
        ),
    ];
    for (hello, why) in cases {
        let mut bench = Bench::new(false);
        let actions = bench.hear(1, Message::Hello(hello));
        let [
            Do::Send {
                message: Message::Refuse(text),
                ..
            },
            Do::CloseSession { .. },
        ] = &actions[..]
        else {
            panic!("{actions:?}")
        };
        assert!(text.contains(why), "{text}");
        assert_eq!(bench.secondary.status(0).protection, Protection::Unprotected);
    }
    let mut bench = Bench::new(false);
    assert!(matches!(
        bench.hear(1, Message::Prepare)[..],
        [Do::CloseSession { session: 1, .. }]
    ));
}

#[test]
fn a_greeting_that_a_newer_one_has_overtaken_begins_no_session() {
    let mut bench = Bench::holding(false);
    // The session of the commit was the second; the connection of the first is heard only now.
    bench.hear(2, Message::Hello(hello_again()));
    let actions = bench.hear(3, Message::Hello(hello()));
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                session: 3,
                message: Message::Refuse(_)
            },
            Do::CloseSession { session: 3, .. }
        ]
    ));
    assert!(bench.secondary.holds().is_some(), "the commit stays");
}

#[test]
fn whoever_holds_a_commit_follows_nobody_else() {
    let mut bench = Bench::holding(false);
    let another = Hello {
        incarnation: host("c", 3),
        ..hello_again()
    };
    let actions = bench.hear(2, Message::Hello(another.clone()));
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Refuse(_),
                ..
            },
            Do::CloseSession { session: 2, .. }
        ]
    ));
    bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    let actions = bench.hear(2, Message::Hello(another));
    assert!(
        matches!(&actions[0], Do::Send { message: Message::Refuse(text), .. } if text.contains("holds term 2"))
    );
    assert_eq!(bench.secondary.holds(), Some(CommitId { term: 2, epoch: 1 }));
}

#[test]
fn the_same_pair_goes_on_in_a_new_session() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let actions = bench.hear(2, Message::Hello(hello_again()));
    assert!(
        matches!(actions[0], Do::CloseSession { session: 1, .. }),
        "the old one is closed first"
    );
    assert_eq!(actions[1], Do::Discard { epoch: 2 });
    assert!(
        matches!(&actions[2], Do::Send { session: 2, message: Message::Welcome(welcome) }
        if welcome.last == Some(CommitId { term: 2, epoch: 1 }))
    );
    assert_eq!(
        bench.feed(SecondaryEvent::Checked {
            epoch: 2,
            result: Ok(())
        }),
        [],
        "it was rolled back"
    );
    assert_eq!(
        bench.hear(2, begin(3, Some(1))),
        [Do::Stage { session: 2, epoch: 3 }]
    );
}

#[test]
fn a_primary_whose_record_leaves_this_side_out_makes_its_commit_void() {
    let never_recorded = hello();
    let alone_since = Hello { term: 3, ..hello() };
    let with_another = Hello {
        term: 2,
        peer: Some(3),
        ..hello()
    };
    for hello in [never_recorded, alone_since, with_another] {
        let mut bench = Bench::holding(false);
        bench.feed(SecondaryEvent::PeerClosed {
            session: 1,
            reason: "reset".to_owned(),
        });
        let actions = bench.hear(2, Message::Hello(hello));
        assert!(
            matches!(&actions[..], [Do::Forget { .. }, Do::Send { message: Message::Welcome(w), .. }] if w.last.is_none())
        );
        assert_eq!(bench.secondary.holds(), None);
    }
}

#[test]
fn a_sync_must_build_upon_the_last_commit() {
    let wrong = [
        begin(2, None),
        begin(2, Some(0)),
        begin(1, Some(1)),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 3,
            store: 9,
            primary: 1,
            secondary: 2,
        }),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 2,
            store: 8,
            primary: 1,
            secondary: 2,
        }),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 2,
            store: 9,
            primary: 4,
            secondary: 2,
        }),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 2,
            store: 9,
            primary: 1,
            secondary: 4,
        }),
    ];
    for message in wrong {
        let mut bench = Bench::holding(false);
        assert_unfit(&bench.hear(1, message));
        assert_eq!(
            bench.secondary.holds(),
            Some(CommitId { term: 2, epoch: 1 }),
            "the last commit stays"
        );
    }
    assert_unfit(&Bench::copying(false).hear(1, begin(1, Some(0))));
}

#[test]
fn a_failed_check_commits_nothing() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let actions = bench.feed(SecondaryEvent::Checked {
        epoch: 2,
        result: Err("a bad page".to_owned()),
    });
    assert_unfit(&actions);
    assert_eq!(actions[2], Do::Discard { epoch: 2 });
    let mut bench = Bench::holding(false);
    bench.hear(1, begin(2, Some(1)));
    assert_unfit(&bench.feed(SecondaryEvent::StagingFailed {
        epoch: 2,
        reason: "full".to_owned(),
    }));
    assert_eq!(bench.secondary.holds(), Some(CommitId { term: 2, epoch: 1 }));
}

#[test]
fn an_ack_waits_until_the_commit_before_is_applied() {
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.sync(2, Some(1), false)[..],
        [Do::Send { .. }, Do::Apply { epoch: 2 }]
    ));
    assert_eq!(bench.sync(3, Some(2), false), []);
    let actions = bench.feed(SecondaryEvent::Applied { epoch: 2 });
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Ack(_),
                ..
            },
            Do::Apply { epoch: 3 }
        ]
    ));
}

#[test]
fn a_takeover_asks_wins_rolls_back_fences_restores_declares_and_runs() {
    let mut bench = Bench::holding(true);
    bench.hear(1, begin(2, Some(1)));
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    let [
        Do::Ask {
            request:
                ArbiterRequest::Swap {
                    expected: Some(expected),
                    new,
                },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!((expected, new.term, new.phase), (&pair(), 3, Phase::Won));
    let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert!(matches!(
        &actions[..],
        [Do::CloseSession { .. }, Do::Discard { epoch: 2 }, Do::Fence { old }] if *old == host("a", 1)
    ));
    assert_eq!(
        bench.feed(SecondaryEvent::Fenced { result: Ok(()) }),
        [Do::Restore { epoch: 1 }]
    );
    let asked = bench.feed(SecondaryEvent::Restored { result: Ok(()) });
    assert!(
        matches!(asked[..], [Do::Ask { .. }]),
        "the guest does not run before the record says so"
    );
    let record = Record {
        term: 3,
        base: 3,
        owner: host("b", 2),
        peer: None,
        ..pair()
    };
    let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert_eq!(
        actions,
        [Do::Run(Reign {
            record,
            last_epoch: 1
        })]
    );
    assert!(bench.secondary.is_over());
}

#[test]
fn a_takeover_waits_for_the_last_commit_to_be_applied() {
    let mut bench = Bench::holding(false);
    bench.sync(2, Some(1), false);
    assert!(matches!(bench.winning()[..], [Do::CloseSession { .. }]));
    assert_eq!(
        bench.feed(SecondaryEvent::Applied { epoch: 2 }),
        [Do::Restore { epoch: 2 }]
    );
}

#[test]
fn while_an_ask_is_open_nothing_is_committed() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    assert_eq!(
        bench.feed(SecondaryEvent::Checked {
            epoch: 2,
            result: Ok(())
        }),
        []
    );
    assert_eq!(bench.secondary.holds(), Some(CommitId { term: 2, epoch: 1 }));
    // Nothing was done: the ask is over for now, and the sync is good.
    let actions = bench.answer(&asked, ArbiterAnswer::Unavailable("refused".to_owned()));
    assert!(
        matches!(
            actions[..],
            [
                Do::Send {
                    message: Message::Ack(_),
                    ..
                },
                Do::Apply { epoch: 2 }
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_primary_that_is_heard_again_is_not_taken_over() {
    let mut bench = Bench::holding(false);
    let asked = bench.suspecting();
    bench.hear(1, begin(2, Some(1)));
    assert_eq!(bench.read(&asked, pair()), [], "nobody asks any more");
    assert_eq!(
        bench.secondary.status(bench.now_ms).protection,
        Protection::Protected
    );
    assert!(bench.wait(Timing::default().suspicion_ms - 1).is_empty());
}

#[test]
fn a_broken_link_may_be_replaced_in_time() {
    let mut bench = Bench::holding(false);
    bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.wait(Timing::default().reconnect_ms - 1), []);
    assert!(matches!(
        bench.wait(1)[..],
        [Do::Ask {
            request: ArbiterRequest::Read,
            ..
        }]
    ));
    assert!(matches!(
        bench.hear(2, Message::Hello(hello_again()))[..],
        [Do::Send {
            message: Message::Welcome(_),
            ..
        }]
    ));
}

#[test]
fn nobody_is_welcome_while_a_won_term_is_at_stake() {
    let mut bench = Bench::holding(true);
    bench.winning();
    let actions = bench.hear(2, Message::Hello(hello_again()));
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Refuse(_),
                ..
            },
            Do::CloseSession { .. }
        ]
    ));
}

#[test]
fn a_failed_fence_is_tried_again_only_while_the_win_stands() {
    let mut bench = Bench::holding(true);
    bench.winning();
    let failed = || SecondaryEvent::Fenced {
        result: Err("no route".to_owned()),
    };
    assert_eq!(bench.feed(failed()), []);
    let waiting = bench.secondary.status(bench.now_ms).waiting.expect("it waits");
    assert!(waiting.contains("no route"), "{waiting}");
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    let won = Record {
        term: 3,
        owner: host("b", 2),
        peer: Some(host("a", 1)),
        phase: Phase::Won,
        ..pair()
    };
    assert_eq!(bench.read(&asked, won.clone()), [Do::Fence { old: host("a", 1) }]);
    bench.feed(failed());
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    let acting = Record {
        term: 4,
        base: 4,
        owner: host("a", 1),
        peer: None,
        ..pair()
    };
    assert!(
        matches!(bench.read(&asked, acting)[..], [Do::Forget { .. }]),
        "the loser has replaced it"
    );
}

#[test]
fn a_failed_restore_never_runs() {
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.winning()[..],
        [Do::CloseSession { .. }, Do::Restore { epoch: 1 }]
    ));
    assert_eq!(
        bench.feed(SecondaryEvent::Restored {
            result: Err("KVM".to_owned())
        }),
        []
    );
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    assert!(matches!(
        asked[..],
        [Do::Ask {
            request: ArbiterRequest::Read,
            ..
        }]
    ));
}

#[test]
fn a_lost_ask_is_forgotten_when_the_other_acts() {
    let mut bench = Bench::holding(false);
    let asked = bench.suspecting();
    let won_by_the_other = Record {
        term: 3,
        phase: Phase::Won,
        ..pair()
    };
    assert_eq!(bench.read(&asked, won_by_the_other), []);
    assert!(
        bench.secondary.holds().is_some(),
        "the state is kept until the other acts"
    );
    let asked = bench.wait(200);
    let acting = Record {
        term: 3,
        base: 3,
        peer: None,
        ..pair()
    };
    let actions = bench.read(&asked, acting);
    assert!(matches!(
        actions[..],
        [Do::CloseSession { .. }, Do::Forget { .. }]
    ));
    assert_eq!(bench.secondary.holds(), None);
}

#[test]
fn a_stop_is_let_go_with_and_never_runs() {
    let mut bench = Bench::holding(true);
    let actions = bench.sync(2, Some(1), true);
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::LetGo(_),
                ..
            },
            Do::Apply { epoch: 2 }
        ]
    ));
    bench.feed(SecondaryEvent::Applied { epoch: 2 });
    let actions = bench.winning();
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }, Do::Fence { .. }]),
        "its last writes may be under way"
    );
    let asked = bench.feed(SecondaryEvent::Fenced { result: Ok(()) });
    let [
        Do::Ask {
            request: ArbiterRequest::Swap { new, .. },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!(new.phase, Phase::Stopped);
    let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert!(matches!(actions[..], [Do::Forget { .. }, Do::Exit { .. }]));
}

#[test]
fn a_stopped_record_ends_the_secondary() {
    let mut bench = Bench::holding(false);
    let asked = bench.hear(1, Message::Goodbye(Goodbye::Stopped));
    let stopped = Record {
        term: 3,
        base: 3,
        peer: None,
        phase: Phase::Stopped,
        ..pair()
    };
    let actions = bench.read(&asked, stopped);
    assert!(
        matches!(actions[..], [Do::Forget { .. }, Do::Exit { .. }]),
        "{actions:?}"
    );
}

#[test]
fn a_hand_over_is_taken_at_once_and_an_operators_word_too() {
    let mut bench = Bench::holding(false);
    let actions = bench.hear(1, Message::Goodbye(Goodbye::HandOver("KVM".to_owned())));
    assert!(matches!(actions[..], [Do::CloseSession { .. }, Do::Ask { .. }]));
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.feed(SecondaryEvent::OperatorTakeover)[..],
        [Do::Ask { .. }]
    ));
    assert_eq!(
        Bench::copying(false).feed(SecondaryEvent::OperatorTakeover),
        [],
        "there is nothing to take over"
    );
}

#[test]
fn an_unfinished_copy_is_worth_nothing() {
    let mut bench = Bench::copying(false);
    let actions = bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert!(matches!(actions[..], [Do::Forget { .. }]));
    let mut bench = Bench::copying(false);
    let actions = bench.wait(Timing::default().suspicion_ms);
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }, Do::Forget { .. }]),
        "{actions:?}"
    );
    let mut bench = Bench::new(false);
    bench.hear(1, Message::Hello(hello()));
    bench.hear(1, Message::Prepare);
    let no_memory = SecondaryEvent::Prepared {
        session: 1,
        result: Err("no memory".to_owned()),
    };
    assert_unfit(&bench.feed(no_memory));
}
