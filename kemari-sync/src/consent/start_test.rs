use super::*;

fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

fn config() -> StartConfig {
    StartConfig {
        me: host("a", 7),
        vm: "vm".to_owned(),
        store: 9,
        assert_dead: None,
        alone_on_host: true,
        ask_retry_ms: 10,
        images: Vec::new(),
        adopt_images: false,
    }
}

fn record(owner: Incarnation, peer: Option<Incarnation>, phase: Phase) -> Record {
    Record {
        vm: "vm".to_owned(),
        store: 3,
        term: 4,
        base: 4,
        owner,
        peer,
        phase,
        work: Default::default(),
    }
}

/// Feeds an event, and expects exactly one action.
fn step(start: &mut Start, event: StartEvent) -> StartAction {
    let mut actions = Vec::new();
    start.handle(1_000, event, &mut actions);
    assert_eq!(actions.len(), 1, "{actions:?}");
    actions.remove(0)
}

/// Starts over this record; returns what follows the read.
fn over(config: StartConfig, found: Option<Record>) -> (Start, StartAction) {
    let mut start = Start::new(config);
    let StartAction::Ask {
        ask,
        request: ArbiterRequest::Read,
    } = step(&mut start, StartEvent::Tick)
    else {
        panic!("it reads first")
    };
    let action = step(
        &mut start,
        StartEvent::Arbiter {
            ask,
            answer: ArbiterAnswer::Record(found),
        },
    );
    (start, action)
}

fn assert_runs(mut start: Start, action: StartAction, term: Term) {
    let StartAction::Ask {
        ask,
        request: ArbiterRequest::Swap { new, .. },
    } = action
    else {
        panic!("it asks, not {action:?}")
    };
    assert_eq!(
        (new.term, new.base, new.phase, &new.peer),
        (term, term, Phase::Acting, &None)
    );
    let action = step(
        &mut start,
        StartEvent::Arbiter {
            ask,
            answer: ArbiterAnswer::Swapped,
        },
    );
    assert_eq!(action, StartAction::Run(new));
}

fn assert_refused(action: &StartAction, why: &str) {
    let StartAction::Refuse(text) = action else {
        panic!("it refuses, not {action:?}")
    };
    assert!(text.contains(why), "{text}");
}

#[test]
fn a_new_or_stopped_vm_starts() {
    let (start, action) = over(config(), None);
    assert_runs(start, action, 1);
    let (start, action) = over(config(), Some(record(host("b", 1), None, Phase::Stopped)));
    assert_runs(start, action, 5);
}

#[test]
fn a_vm_of_another_host_is_refused_unless_asserted_dead() {
    let found = Some(record(host("b", 1), None, Phase::Acting));
    assert_refused(&over(config(), found.clone()).1, "belongs to b");
    assert_refused(&over(config(), found.clone()).1, "say `kemari secondary` here");
    assert_refused(
        &over(
            StartConfig {
                assert_dead: Some(3),
                ..config()
            },
            found.clone(),
        )
        .1,
        "term is 4, not 3",
    );
    let (start, action) = over(
        StartConfig {
            assert_dead: Some(4),
            ..config()
        },
        found,
    );
    assert_runs(start, action, 5);
}

#[test]
fn an_older_life_of_this_host_must_be_proved_dead() {
    let found = Some(record(host("a", 1), None, Phase::Acting));
    assert_refused(
        &over(
            StartConfig {
                alone_on_host: false,
                ..config()
            },
            found.clone(),
        )
        .1,
        "belongs to a",
    );
    let (start, action) = over(config(), found);
    assert_runs(start, action, 5);
}

#[test]
fn a_recorded_peer_must_say_that_it_holds_nothing() {
    let found = Some(record(host("a", 1), Some(host("b", 2)), Phase::Acting));
    let words = [
        (PeerWord::Holds("sync 8 of term 4".to_owned()), "let it take over"),
        (PeerWord::Silent("refused".to_owned()), "is not reached"),
    ];
    for (word, why) in words {
        let (mut start, action) = over(config(), found.clone());
        assert_eq!(action, StartAction::AskPeer(host("b", 2)));
        assert_refused(&step(&mut start, StartEvent::Peer(word)), why);
        assert_eq!(start.next_deadline(), None);
    }
    let (mut start, _) = over(config(), found);
    let action = step(&mut start, StartEvent::Peer(PeerWord::HoldsNothing));
    assert_runs(start, action, 5);
}

#[test]
fn an_arbiter_without_answer_is_given_up() {
    let mut start = Start::new(config());
    let mut now_ms = 0;
    let mut event = StartEvent::Tick;
    for _ in 0..2 * TRIES_MAX {
        let mut actions = Vec::new();
        start.handle(now_ms, event, &mut actions);
        now_ms += 100;
        match actions.pop() {
            Some(StartAction::Ask { ask, .. }) => {
                let answer = ArbiterAnswer::Unknown("no route".to_owned());
                event = StartEvent::Arbiter { ask, answer };
            }
            Some(action) => return assert_refused(&action, "no route"),
            None => event = StartEvent::Tick,
        }
    }
    panic!("it asks for ever");
}

#[test]
fn a_fence_that_may_still_strike_is_waited_for() {
    let mut found = record(host("b", 1), Some(host("a", 5)), Phase::Won);
    found.work.fence_ms_max = 20_000;
    let mut start = Start::new(StartConfig {
        assert_dead: Some(4),
        ..config()
    });
    let (mut now_ms, mut reads) = (1_000, 0);
    let request = loop {
        let mut actions = Vec::new();
        start.handle(now_ms, StartEvent::Tick, &mut actions);
        let Some(StartAction::Ask { ask, request }) = actions.pop() else {
            panic!("it asks at its time")
        };
        if request != ArbiterRequest::Read {
            break request;
        }
        let answer = ArbiterAnswer::Record(Some(found.clone()));
        start.handle(now_ms, StartEvent::Arbiter { ask, answer }, &mut actions);
        reads += 1;
        match &actions[..] {
            [StartAction::Report(text), ..] => {
                assert!(text.contains("begun to fence"), "{text}");
            }
            [StartAction::Ask { request, .. }] => break request.clone(),
            other => panic!("{other:?}"),
        }
        now_ms = start.next_deadline().expect("it reads again");
    };
    assert!(matches!(request, ArbiterRequest::Swap { .. }));
    assert!(
        reads == 2 && now_ms >= 1_000 + 21_000,
        "{reads} reads until {now_ms} ms"
    );
}

#[test]
fn a_record_may_say_anything_of_a_fence() {
    let mut found = record(host("b", 1), Some(host("a", 5)), Phase::Won);
    found.work.fence_ms_max = u64::MAX;
    let asserted = StartConfig {
        assert_dead: Some(4),
        ..config()
    };
    let (start, action) = over(asserted, Some(found));
    assert!(matches!(action, StartAction::Report(_)), "{action:?}");
    assert_eq!(start.next_deadline(), Some(u64::MAX));
}
