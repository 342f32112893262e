//! The planned change of roles: both state machines and the arbiter's record,
//! driven until nothing happens any more.

mod pair;

use kemari_sync::wire::Message;
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, Mode, Phase, PrimaryAction, PrimaryEvent, Protection, Record, Reign,
    SecondaryAction, SecondaryEvent, Timing,
};

use PrimaryAction as Do;
use SecondaryAction as Then;
use pair::{Sides, Wanted, alone, captured, commit, host, primary, secondary};

/// A fence is over within so long, in milliseconds.
const FENCE_MS_MAX: u64 = 10_000;

/// What may be kept from happening.
#[derive(Default)]
struct Trouble {
    /// `Drain` is not answered.
    keeps_draining: bool,
    /// The secondary hears nothing more, and its link is gone.
    secondary_is_dead: bool,
    /// Every restore fails.
    restore_fails: bool,
}

/// A primary on `a` and a secondary on `b` with a link and a record.
struct Pair {
    sides: Sides,
    store: Record,
    /// What each host knows of the record, where nobody keeps one for both.
    own: Option<[Record; 2]>,
    trouble: Trouble,
    session: u64,
    /// What happened to the guest and its output, in order.
    log: Vec<String>,
    ended: Option<String>,
    runs: Option<Reign>,
}

impl Pair {
    /// Protected, in term 2.
    fn protected(mode: Mode) -> Self {
        let mut pair = Self {
            sides: Sides::new(primary(mode), secondary(Some(FENCE_MS_MAX))),
            store: alone(),
            own: None,
            trouble: Trouble::default(),
            session: 1,
            log: Vec::new(),
            ended: None,
            runs: None,
        };
        pair.settle();
        assert_eq!(pair.sides.a.status(0).protection, Protection::Protected);
        pair.log.clear();
        pair
    }

    /// The same without an arbiter: silence means death.
    fn without_arbiter() -> Self {
        let mut pair = Self::protected(Mode::Lockstep);
        pair.own = Some([pair.store.clone(), pair.store.clone()]);
        pair
    }

    fn order(&mut self, event: PrimaryEvent) {
        self.sides.to_a.push_back(event);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(wanted) = self.sides.step() {
            match wanted {
                Wanted::ByA(actions) => actions.into_iter().for_each(|action| self.perform_a(action)),
                Wanted::ByB(actions) => actions.into_iter().for_each(|action| self.perform_b(action)),
            }
        }
    }

    fn wait(&mut self, for_ms: u64) {
        let end_ms = self.sides.now_ms + for_ms;
        loop {
            let b_due_ms = self
                .sides
                .b
                .next_deadline()
                .filter(|_| !self.trouble.secondary_is_dead);
            let due_ms = [self.sides.a.next_deadline(), b_due_ms]
                .into_iter()
                .flatten()
                .min();
            let Some(due_ms) = due_ms.filter(|due_ms| *due_ms <= end_ms) else {
                break;
            };
            self.sides.now_ms = self.sides.now_ms.max(due_ms);
            self.sides.to_a.push_back(PrimaryEvent::Tick);
            if !self.trouble.secondary_is_dead {
                self.sides.to_b.push_back(SecondaryEvent::Tick);
            }
            self.settle();
        }
        self.sides.now_ms = end_ms;
    }

    /// The record as `side` sees it: 0 is a.
    fn record(&mut self, side: usize) -> &mut Record {
        match &mut self.own {
            Some(own) => &mut own[side],
            None => &mut self.store,
        }
    }

    fn assume(&mut self, side: usize, record: Record) {
        if let Some(own) = &mut self.own {
            own[side] = record;
        }
    }

    fn ask(&mut self, side: usize, request: ArbiterRequest) -> ArbiterAnswer {
        let record = self.record(side);
        match request {
            ArbiterRequest::Read => ArbiterAnswer::Record(Some(record.clone())),
            ArbiterRequest::Swap { expected, new } if expected.as_ref() == Some(record) => {
                *record = new;
                ArbiterAnswer::Swapped
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Conflict(Some(record.clone())),
        }
    }

    fn tell_b(&mut self, message: Message) {
        if !self.trouble.secondary_is_dead {
            self.sides.to_b.push_back(SecondaryEvent::Message {
                session: self.session,
                message,
            });
        }
    }

    fn perform_a(&mut self, action: PrimaryAction) {
        match action {
            Do::MarkSources { .. } | Do::CopyDisks { .. } | Do::PeerFlushed(_) => {
                unreachable!("there is no disk")
            }
            Do::SendAhead(_) => unreachable!("nothing is dirty"),
            Do::Adopted(_) | Do::TrustArbiter => unreachable!("the arbiter has its record"),
            Do::Send { message, .. } => {
                if let Message::Goodbye(goodbye) = &message {
                    self.log.push(format!("a says {goodbye:?}"));
                }
                self.tell_b(message);
            }
            Do::CopyRound { session, .. } => {
                self.sides.to_a.push_back(PrimaryEvent::CopyRoundSent {
                    session,
                    dirty_pages: 0,
                });
            }
            Do::Capture { epoch, .. } => {
                self.log.push("a captures".to_owned());
                self.sides.to_a.push_back(captured(epoch));
            }
            Do::Transmit { begin, stop, .. } => {
                let epoch = begin.epoch;
                self.tell_b(Message::Begin(begin));
                self.tell_b(commit(epoch, stop));
            }
            Do::Release { .. } => self.log.push("a releases".to_owned()),
            Do::Pause => self.log.push("a pauses".to_owned()),
            Do::Resume => self.log.push("a resumes".to_owned()),
            Do::OpenGate => self.log.push("a opens its gate".to_owned()),
            Do::Drain => {
                self.log.push("a drains".to_owned());
                if !self.trouble.keeps_draining {
                    self.sides.to_a.push_back(PrimaryEvent::Drained);
                }
            }
            Do::CloseDisks => {
                self.log.push("a closes its disks".to_owned());
                if !self.trouble.keeps_draining {
                    let result = Ok(());
                    self.sides.to_a.push_back(PrimaryEvent::DisksClosed { result });
                }
            }
            Do::Assume(record) => self.assume(0, record),
            Do::Ask { ask, request } => {
                let answer = self.ask(0, request);
                self.sides.to_a.push_back(PrimaryEvent::Arbiter { ask, answer });
            }
            Do::Halt { reason } => {
                self.log.push("a halts".to_owned());
                self.ended = Some(reason);
            }
            Do::CloseSession { session, reason } => self
                .sides
                .to_b
                .push_back(SecondaryEvent::PeerClosed { session, reason }),
            Do::GiveBack { .. } | Do::Progress { .. } | Do::Report(_) => {}
            Do::Exit { reason } => panic!("nothing is stopped: {reason}"),
        }
    }

    fn perform_b(&mut self, action: SecondaryAction) {
        match action {
            Then::MarkTargets { .. } | Then::Settled(_) => unreachable!("there is no disk"),
            Then::Send { session, message } => self
                .sides
                .to_a
                .push_back(PrimaryEvent::Message { session, message }),
            Then::Prepare { session } => self.sides.to_b.push_back(SecondaryEvent::Prepared {
                session,
                result: Ok(Vec::new()),
            }),
            Then::Check { commit } => {
                self.sides.to_b.push_back(SecondaryEvent::Checked {
                    epoch: commit.epoch,
                    result: Ok(()),
                });
            }
            Then::Apply { epoch } => self.sides.to_b.push_back(SecondaryEvent::Applied { epoch }),
            Then::Assume(record) => self.assume(1, record),
            Then::Ask { ask, request } => {
                let answer = self.ask(1, request);
                self.sides.to_b.push_back(SecondaryEvent::Arbiter { ask, answer });
            }
            Then::Fence { .. } => {
                self.log.push("b fences".to_owned());
                self.sides
                    .to_b
                    .push_back(SecondaryEvent::Fenced { result: Ok(()) });
            }
            Then::Restore { .. } => {
                self.log.push("b restores".to_owned());
                let result = if self.trouble.restore_fails {
                    Err("no disk".to_owned())
                } else {
                    Ok(())
                };
                self.sides.to_b.push_back(SecondaryEvent::Restored { result });
            }
            Then::Run(reign) => {
                self.log.push("b runs".to_owned());
                self.runs = Some(reign);
            }
            Then::CloseSession { session, reason } => self
                .sides
                .to_a
                .push_back(PrimaryEvent::PeerClosed { session, reason }),
            Then::Forget { .. } => self.log.push("b forgets".to_owned()),
            Then::Stage { .. } | Then::Discard { .. } | Then::Report(_) => {}
            Then::Leave => panic!("nobody was told to leave"),
            Then::Exit { reason } => panic!("nothing is stopped: {reason}"),
        }
    }
}

const HANDED_OVER: [&str; 4] = [
    "a captures",
    "a releases",
    "a drains",
    "a says SwitchOver { paused_ms: 0 }",
];

#[test]
fn the_roles_change_without_a_fence_and_the_guest_never_runs_twice() {
    for mode in [Mode::Lockstep, Mode::Pipelined] {
        let mut pair = Pair::protected(mode);
        assert_eq!(pair.sides.a.refuses_switchover(), None);
        pair.order(PrimaryEvent::OperatorSwitchover);
        let after = ["b restores", "b runs"];
        assert_eq!(
            pair.log,
            [&HANDED_OVER[..], &after[..]].concat(),
            "{mode:?}: the guest stays paused on a"
        );
        let reign = pair.runs.take().expect("b runs");
        assert_eq!(reign.last_epoch, 2, "from the last sync");
        assert_eq!((reign.record.term, reign.record.phase), (3, Phase::Acting));
        assert_eq!(reign.record, pair.store);
        // The old primary learns it from the record, and is free to follow.
        pair.wait(Timing::default().ask_retry_ms);
        assert_eq!(pair.log.last().map(String::as_str), Some("a halts"));
        assert!(pair.ended.is_some_and(|reason| reason.contains("b/")));
    }
}

#[test]
fn a_sync_that_is_under_way_is_not_the_last() {
    let mut pair = Pair::protected(Mode::Pipelined);
    let mut actions = Vec::new();
    pair.sides.a.handle(0, PrimaryEvent::OutputPending, &mut actions);
    // Ordered while the capture is being sent.
    pair.sides.to_a.push_back(PrimaryEvent::OperatorSwitchover);
    actions.into_iter().for_each(|action| pair.perform_a(action));
    pair.settle();
    let first = ["a captures", "a resumes", "a releases"];
    assert_eq!(pair.log[..7], [&first[..], &HANDED_OVER[..]].concat());
    assert_eq!(pair.runs.expect("b runs").last_epoch, 3);
}

#[test]
fn nothing_is_handed_over_before_all_io_is_finished() {
    let mut pair = Pair::protected(Mode::Lockstep);
    pair.trouble.keeps_draining = true;
    pair.order(PrimaryEvent::OperatorSwitchover);
    pair.wait(700);
    assert_eq!(pair.log, HANDED_OVER[..3], "neither a word nor another sync");
    assert!(
        pair.sides
            .a
            .refuses_switchover()
            .is_some_and(|reason| reason.contains("under way"))
    );
    pair.order(PrimaryEvent::Drained);
    assert!(
        pair.log[3].starts_with("a says SwitchOver { paused_ms: 7"),
        "{:?}",
        pair.log
    );
    assert!(pair.runs.is_some());
}

#[test]
fn a_secondary_that_dies_at_the_switchover_leaves_the_vm_where_it_was() {
    let mut pair = Pair::protected(Mode::Lockstep);
    pair.trouble.keeps_draining = true;
    pair.order(PrimaryEvent::OperatorSwitchover);
    pair.trouble.secondary_is_dead = true;
    pair.order(PrimaryEvent::Drained);
    let reason = "reset".to_owned();
    pair.order(PrimaryEvent::PeerClosed { session: 1, reason });
    pair.wait(Timing::default().progress_ms - 500);
    assert_eq!(pair.log, HANDED_OVER, "the secondary may still be winning");
    pair.wait(1000);
    assert_eq!(pair.log[4..], ["a opens its gate", "a resumes"]);
    assert_eq!(
        pair.sides.a.status(pair.sides.now_ms).protection,
        Protection::Unprotected
    );
    assert_eq!(pair.store.owner, host("a", 1));
    assert!(pair.sides.a.wants_peer(), "a new secondary may come");
}

#[test]
fn a_secondary_that_cannot_restore_gives_the_vm_back() {
    let mut pair = Pair::protected(Mode::Lockstep);
    pair.trouble.restore_fails = true;
    pair.order(PrimaryEvent::OperatorSwitchover);
    assert_eq!(pair.log[..4], HANDED_OVER);
    assert_eq!(pair.store.phase, Phase::Won);
    pair.wait(10_000);
    let tail: Vec<&str> = pair.log[4..]
        .iter()
        .map(String::as_str)
        .filter(|line| *line != "b restores")
        .collect();
    assert_eq!(tail, ["a opens its gate", "a resumes", "b forgets"]);
    assert!(pair.runs.is_none());
    assert_eq!(
        (pair.store.owner.host.as_str(), pair.store.phase),
        ("a", Phase::Acting)
    );
}

#[test]
fn a_failing_host_that_has_closed_its_disks_is_not_fenced() {
    let mut pair = Pair::protected(Mode::Lockstep);
    let reason = "its disk fails".to_owned();
    pair.order(PrimaryEvent::HostFailing { reason });
    let expected = [
        "a closes its disks",
        "a says Closed(\"its disk fails\")",
        "a halts",
        "b restores",
        "b runs",
    ];
    assert_eq!(pair.log, expected);
}

#[test]
fn a_failing_host_whose_disks_do_not_close_in_time_is_fenced() {
    let mut pair = Pair::protected(Mode::Lockstep);
    pair.trouble.keeps_draining = true;
    let reason = "its disk fails".to_owned();
    pair.order(PrimaryEvent::HostFailing { reason });
    let limit_ms = Timing::default().suspicion_ms;
    pair.wait(limit_ms - 1);
    assert_eq!(pair.log, ["a closes its disks"], "neither is it taken for silent");
    pair.wait(1);
    // Too late.
    pair.order(PrimaryEvent::DisksClosed { result: Ok(()) });
    let expected = [
        "a closes its disks",
        "a says HandOver(\"its disk fails\")",
        "a halts",
        "b fences",
        "b restores",
        "b runs",
    ];
    assert_eq!(pair.log, expected);
}

#[test]
fn what_cannot_be_switched_over_is_refused_with_the_reason() {
    let mut pair = Pair::protected(Mode::Lockstep);
    pair.trouble.secondary_is_dead = true;
    let reason = "reset".to_owned();
    pair.order(PrimaryEvent::PeerClosed { session: 1, reason });
    assert!(
        pair.sides
            .a
            .refuses_switchover()
            .is_some_and(|reason| reason.contains("not connected"))
    );
    pair.order(PrimaryEvent::OperatorSwitchover);
    pair.wait(2000);
    assert!(
        pair.sides
            .a
            .refuses_switchover()
            .is_some_and(|reason| reason.contains("not protected"))
    );
    assert!(
        !pair.log.iter().any(|line| line.contains("SwitchOver")),
        "{:?}",
        pair.log
    );
}

/// Long after every time-out.
const LATER_MS: u64 = 30_000;

#[test]
fn without_an_arbiter_too_only_one_side_goes_on() {
    let failing = || PrimaryEvent::HostFailing {
        reason: "KVM".to_owned(),
    };
    let mut switched = Pair::without_arbiter();
    switched.order(PrimaryEvent::OperatorSwitchover);
    let mut handed_over = Pair::without_arbiter();
    handed_over.order(failing());
    let mut taken = Pair::without_arbiter();
    taken.sides.to_b.push_back(SecondaryEvent::OperatorTakeover);
    taken.settle();
    for (how, mut pair) in [
        ("switched over", switched),
        ("handed over", handed_over),
        ("taken over", taken),
    ] {
        pair.wait(LATER_MS);
        let runs = pair.runs.take().expect("b runs");
        assert!(
            pair.ended.is_some() && !pair.log.iter().any(|line| line == "a opens its gate"),
            "{how}: both go on: {:?}",
            pair.log
        );
        let own = pair.own.expect("there is no arbiter");
        assert_eq!(own[0], own[1], "{how}: they know of two records");
        assert_eq!(own[0], runs.record, "{how}");
    }
}

/// It keeps its commit, and would win by its own record.
#[test]
fn without_an_arbiter_a_secondary_that_is_unfit_does_not_go_on() {
    let mut pair = Pair::without_arbiter();
    pair.tell_b(Message::Prepare);
    pair.settle();
    assert!(pair.sides.b.holds().is_some(), "its last commit stays");
    pair.wait(LATER_MS);
    assert!(
        pair.log.iter().any(|line| line == "a opens its gate"),
        "{:?}",
        pair.log
    );
    assert!(pair.runs.is_none(), "both go on: {:?}", pair.log);
    assert_eq!(pair.sides.b.holds(), None);
    let own = pair.own.expect("there is no arbiter");
    assert_eq!(own[0], own[1], "they know of two records");
    assert_eq!((own[0].owner.host.as_str(), own[0].phase), ("a", Phase::Acting));
}

#[test]
fn without_an_arbiter_a_silent_side_counts_as_dead() {
    let mut pair = Pair::without_arbiter();
    pair.trouble.secondary_is_dead = true;
    pair.wait(LATER_MS);
    assert_eq!(pair.sides.a.status(LATER_MS).protection, Protection::Unprotected);
    assert!(
        pair.log.iter().any(|line| line == "a opens its gate"),
        "{:?}",
        pair.log
    );
}

fn ready() -> SecondaryEvent {
    SecondaryEvent::Readiness { reasons: Vec::new() }
}

fn uplink(text: &str) -> PrimaryEvent {
    PrimaryEvent::Health {
        trouble: Some(kemari_sync::Trouble::Uplink(text.to_owned())),
    }
}

/// A host in trouble has stepped down, and its secondary cannot go on.
fn stepped_down() -> Pair {
    let mut pair = Pair::protected(Mode::Lockstep);
    pair.sides.to_b.push_back(ready());
    pair.wait(1_000);
    pair.trouble.restore_fails = true;
    pair.order(uplink("eth1 has no carrier"));
    pair
}

/// Waits until it has the VM back.
fn wait_until_it_is_back(pair: &mut Pair) {
    while !pair.log.iter().any(|line| line == "a opens its gate") {
        assert!(pair.sides.now_ms < LATER_MS, "{:?}", pair.log);
        pair.wait(100);
    }
    assert!(pair.runs.is_none() && !pair.sides.a.wants_peer(), "not at once");
}

#[test]
fn trouble_that_is_told_in_other_words_meanwhile_is_no_new_trouble() {
    let mut pair = stepped_down();
    pair.order(uplink("eth1 and eth2 have no carrier"));
    wait_until_it_is_back(&mut pair);
}

#[test]
fn a_host_in_trouble_steps_down_again_when_it_has_a_pair_again() {
    let mut pair = stepped_down();
    wait_until_it_is_back(&mut pair);
    // What was in the way has passed.
    pair.trouble.restore_fails = false;
    pair.wait(Timing::default().protect_retry_ms_max);
    assert!(pair.sides.a.wants_peer());
    pair.session = 2;
    pair.order(PrimaryEvent::PeerConnected { session: 2 });
    pair.sides.to_b.push_back(ready());
    pair.wait(1_000);
    assert!(pair.runs.is_some(), "{:?}", pair.log);
}
