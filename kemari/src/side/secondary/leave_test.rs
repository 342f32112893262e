//! Orders to end, while the arbiter can be asked, and while it cannot.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

use super::rig::{Rig, until};
use super::*;
use crate::control::Command;
use crate::side::testing::watch_arbiter;

type Answered = Receiver<Result<String, String>>;

fn leave(rig: &mut Rig) -> Answered {
    let (answer, answers) = sync_channel(1);
    rig.side.on_order(Order {
        command: Command::Leave,
        answer,
    });
    answers
}

fn await_answer(rig: &mut Rig, answer: &Answered) -> Result<String, String> {
    let mut answered = None;
    until("the order is answered", || {
        rig.side.leave_when_known();
        answered = answer.try_recv().ok();
        answered.is_some()
    });
    answered.expect("it was answered")
}

fn holding() -> (Rig, Arc<Mutex<bool>>) {
    let mut rig = Rig::new();
    rig.hold();
    let answers = watch_arbiter(&rig.side.board);
    (rig, answers)
}

fn has_left(rig: &Rig) -> bool {
    matches!(rig.side.end, Some(End::Left))
}

#[test]
fn a_side_that_holds_the_vm_looks_at_the_arbiter_before_it_ends() {
    let (mut rig, answers) = holding();
    let looks = answers.lock().expect("no panic");
    let answer = leave(&mut rig);
    assert!(answer.try_recv().is_err() && !has_left(&rig));
    assert!(rig.side.orders.leaves.due_ms(0).is_some(), "the loop comes again");
    drop(looks);
    assert!(await_answer(&mut rig, &answer).is_ok() && has_left(&rig));
    assert_eq!(rig.side.orders.leaves.due_ms(0), None);
}

#[test]
fn an_arbiter_that_is_away_keeps_a_side_from_ending_once() {
    let (mut rig, answers) = holding();
    assert_eq!(rig.side.board.arbiter_trouble(), None, "nobody has noticed yet");
    *answers.lock().expect("no panic") = false;
    let first = leave(&mut rig);
    let said = await_answer(&mut rig, &first).expect_err("the arbiter is away");
    assert!(said.contains("it is away") && said.contains("again"), "{said}");
    assert!(!has_left(&rig));
    // Only this side's own way to it may be broken.
    let second = leave(&mut rig);
    assert!(await_answer(&mut rig, &second).is_ok() && has_left(&rig));
}

#[test]
fn a_refusal_counts_no_more_when_the_arbiter_was_back() {
    let (mut rig, answers) = holding();
    for _ in 0..2 {
        *answers.lock().expect("no panic") = false;
        let answer = leave(&mut rig);
        assert!(await_answer(&mut rig, &answer).is_err());
        *answers.lock().expect("no panic") = true;
        rig.side.board.look_at_arbiter();
        until("it is back", || rig.side.board.arbiter_trouble().is_none());
        rig.side.leave_when_known();
    }
    assert!(!has_left(&rig));
}

#[test]
fn a_side_that_holds_nothing_ends_whatever_the_arbiter_says() {
    let mut rig = Rig::new();
    let answers = watch_arbiter(&rig.side.board);
    let _looks = answers.lock().expect("no panic");
    let answer = leave(&mut rig);
    assert!(answer.try_recv().expect("it is answered").is_ok() && has_left(&rig));
}

#[test]
fn an_order_is_answered_when_the_vm_ends_meanwhile() {
    let (mut rig, answers) = holding();
    let _looks = answers.lock().expect("no panic");
    let answer = leave(&mut rig);
    rig.side.end = Some(End::Stopped("a test".into()));
    let said = await_answer(&mut rig, &answer).expect("nothing is in the way");
    assert!(said.contains("has ended"), "{said}");
}
