//! What is refused at once, and what is answered when it is known.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use super::super::rig::{Rig, until};
use super::*;
use crate::config::Config;
use crate::control::{self, Control};
use crate::side::testing::watch_arbiter;

fn order(rig: &mut Rig, command: Command) -> Receiver<Outcome> {
    let (answer, answers) = sync_channel(1);
    rig.side.on_order(Order { command, answer });
    answers
}

/// What an order is answered at once.
fn refusal(rig: &mut Rig, command: Command) -> String {
    let answer = order(rig, command).try_recv().expect("it is answered");
    answer.expect_err("it is refused")
}

fn pace(max_dirty_pages: u32) -> Command {
    Command::Pace(PaceChange {
        max_dirty_pages: Some(max_dirty_pages),
        ..PaceChange::default()
    })
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let mut rig = Rig::new();
    for (command, why) in [
        (Command::Switchover, "no secondary"),
        (Command::Takeover, "is the primary already"),
        (Command::Drill { seconds: 1 }, "the secondary's"),
        (Command::Resume, "stands still for no failure"),
        (Command::Resize, "no disk's image has grown"),
        (pace(0), "cannot be 0"),
    ] {
        let said = refusal(&mut rig, command.clone());
        assert!(said.contains(why), "{command:?}: {said}");
        assert!(rig.side.orders.is_empty(), "{command:?}");
    }
    assert!(!rig.tells(|event| matches!(
        event,
        PrimaryEvent::OperatorSwitchover | PrimaryEvent::OperatorPace(_)
    )));
}

#[test]
fn a_disk_that_fails_here_cannot_be_switched_over() {
    let mut rig = Rig::new();
    rig.side.on_disk_trouble("blk0", "it is full", false);
    let said = refusal(&mut rig, Command::Switchover);
    assert!(said.contains("cannot be finished first"), "{said}");
}

#[test]
fn who_asks_after_an_answer_finds_what_was_done() {
    let mut rig = Rig::new();
    // As it was shown last, some moments ago.
    rig.side
        .board
        .show(|status| status.protection = control::Protection::On);
    let unprotect = order(&mut rig, Command::Unprotect);
    rig.side.answer_orders();
    let said = unprotect.try_recv().expect("it is answered").expect("it is done");
    assert!(said.contains("runs on unprotected"), "{said}");
    assert_eq!(rig.side.board.status().protection, control::Protection::Off);
}

#[test]
fn a_record_is_given_back_once_at_a_time() {
    let mut rig = Rig::new();
    let first = order(&mut rig, Command::AdoptRecord);
    let said = refusal(&mut rig, Command::AdoptRecord);
    assert!(said.contains("already"), "{said}");
    rig.side.on_adopted(Ok("it is back".into()));
    assert_eq!(first.try_recv().expect("it is answered"), Ok("it is back".into()));
    let again = order(&mut rig, Command::AdoptRecord);
    assert!(again.try_recv().is_err(), "it is begun");
}

#[test]
fn a_new_pace_counts_at_once_and_looks_at_what_the_old_one_let_wait() {
    let mut rig = Rig::new();
    rig.capture(1);
    rig.make_output();
    rig.events();
    let answer = order(&mut rig, pace(1000));
    assert!(answer.try_recv().expect("it is answered").is_ok());
    assert_eq!(rig.side.demand.pace().max_dirty_pages, 1000);
    let shown = rig.side.board.status().pace.expect("a primary shows its pace");
    assert_eq!(shown.max_dirty_pages, 1000, "who asks next finds it");
    let told = rig.events();
    assert!(matches!(
        told[..],
        [PrimaryEvent::OperatorPace(_), PrimaryEvent::OutputPending]
    ));
}

#[test]
fn every_open_order_is_answered_when_the_vm_ends() {
    let mut rig = Rig::new();
    let orders = [
        Command::Stop,
        Command::Protect,
        Command::AdoptRecord,
        Command::Unprotect,
    ];
    let answers = orders.map(|command| order(&mut rig, command));
    rig.side.end = Some(End::Stopped("a test".into()));
    rig.side.answer_orders();
    let answers = answers.map(|answer| answer.try_recv().expect("it is answered"));
    assert!(
        answers[0].is_ok() && answers[1..].iter().all(Result::is_err),
        "{answers:?}"
    );
}

/// A pair whose secondary could go on, and whose arbiter is watched.
fn protected() -> (Rig, Arc<Mutex<bool>>) {
    let mut rig = Rig::new();
    rig.protect();
    rig.hear_readiness(&[]);
    let answers = watch_arbiter(&rig.side.board);
    (rig, answers)
}

/// Its guest's replicated disk is larger than it was.
fn grow(rig: &Rig) {
    let path = rig.tracker.image().path();
    let image = std::fs::File::options().write(true).open(path).expect("an image");
    image.set_len(2 * rig.tracker.image().bytes()).expect("room");
}

#[test]
fn an_order_that_ends_a_pair_looks_at_the_arbiter_anew() {
    for command in [
        Command::Unprotect,
        Command::Resize,
        Command::Switchover,
        Command::Leave,
    ] {
        let (mut rig, answers) = protected();
        grow(&rig);
        rig.hear_readiness(&["the arbiter: it is away"]);
        // Nobody has noticed yet.
        assert_eq!(rig.side.board.arbiter_trouble(), None);
        *answers.lock().expect("no panic") = false;
        let answer = order(&mut rig, command.clone());
        let said = rig.await_answer(&answer).expect_err("the arbiter is away");
        assert!(
            said.contains("stand still until the arbiter can be asked"),
            "{command:?}: {said}"
        );
        assert!(
            rig.side.orders.is_empty() && rig.events().is_empty(),
            "{command:?}"
        );
    }
}

#[test]
fn an_order_that_ends_a_pair_waits_for_a_look_and_begins_after_it() {
    for command in [Command::Unprotect, Command::Resize, Command::Switchover] {
        let (mut rig, answers) = protected();
        grow(&rig);
        let looks = answers.lock().expect("no panic");
        let _answer = order(&mut rig, command.clone());
        rig.side.begin_orders();
        rig.side.answer_orders();
        assert!(rig.events().is_empty(), "{command:?}: nothing is known yet");
        drop(looks);
        until("it begins", || {
            rig.side.begin_orders();
            !rig.side.events.is_empty()
        });
        assert!(rig.side.orders[0].awaits.is_none(), "{command:?}");
    }
}

#[test]
fn who_is_to_go_on_is_heard_before_it_is_told_to() {
    let (mut rig, answers) = protected();
    *answers.lock().expect("no panic") = false;
    let switchover = order(&mut rig, Command::Switchover);
    let unprotect = order(&mut rig, Command::Unprotect);
    // Here the VM would go on alone: what the other side finds is nothing to that.
    assert!(rig.await_answer(&unprotect).is_err());
    rig.side.begin_orders();
    assert!(
        switchover.try_recv().is_err(),
        "only this side's way to the arbiter may be broken"
    );
    rig.hear_readiness(&["the arbiter: it is away"]);
    let said = rig
        .await_answer(&switchover)
        .expect_err("neither host could go on");
    assert!(said.contains("on either host"), "{said}");
}

/// The pair ends by itself while an order to end it waits for its look: that is not what came of the order.
#[test]
fn a_resize_that_waits_is_not_over_because_the_pair_is() {
    let (mut rig, answers) = protected();
    grow(&rig);
    let looks = answers.lock().expect("no panic");
    let answer = order(&mut rig, Command::Resize);
    let alone = Rig::new().side.core;
    rig.side.core = alone;
    rig.side.answer_orders();
    assert!(answer.try_recv().is_err() && rig.events().is_empty());
    drop(looks);
    let said = rig.await_answer(&answer).expect("it grows");
    assert!(said.contains("has") && rig.side.orders.is_empty(), "{said}");
    let is_protected_again = |event: &PrimaryEvent| matches!(event, PrimaryEvent::OperatorProtect);
    assert!(
        !rig.tells(is_protected_again),
        "the order has not ended the protection"
    );
}

#[test]
fn a_resize_that_ends_no_pair_waits_for_nothing() {
    let (mut rig, answers) = protected();
    let _looks = answers.lock().expect("no panic");
    let said = refusal(&mut rig, Command::Resize);
    assert!(said.contains("no disk's image has grown"), "{said}");
}

#[test]
fn a_switchover_without_an_arbiter_is_no_success_before_somebody_has_looked() {
    let mut rig = Rig::new();
    let said = |rig: &mut Rig| {
        let (answer, answers) = sync_channel(1);
        let command = Command::Switchover;
        rig.side.keep_order(Order { command, answer }, None);
        rig.side.end = Some(End::Halted("b has the VM now".into()));
        rig.side.answer_orders();
        answers
            .try_recv()
            .expect("it is answered")
            .expect("the VM is given away")
    };
    assert!(said(&mut rig).starts_with("switched over: b has the VM now"));
    let mut config = Config::clone(&rig.side.config);
    config.arbiter.kind = ArbiterKind::None;
    rig.side.config = Arc::new(config);
    let said = said(&mut rig);
    assert!(
        said.starts_with("given to the other host") && said.contains("look there"),
        "{said}"
    );
}
