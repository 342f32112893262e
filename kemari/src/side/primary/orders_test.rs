//! What is refused at once, and what is answered when it is known.

use std::sync::mpsc::{Receiver, sync_channel};

use super::super::rig::Rig;
use super::*;

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
    assert_eq!(rig.side.pace.max_dirty_pages, 1000);
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
