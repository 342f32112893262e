//! The list of a device through captures, acks, failures, takeovers and resets.

use super::*;
use crate::release::Releasable::{Any, UpTo};

const COST: Cost = Cost {
    segments: 1,
    bytes: 512,
};

fn list_of(stages: &[Stage]) -> RequestList<u32> {
    let mut list = RequestList::default();
    for (index, stage) in stages.iter().enumerate() {
        list.push((0, index as u16), *stage, index as u32, COST).unwrap();
    }
    list
}

#[test]
fn an_ack_releases_only_what_its_capture_contained() {
    let mut list = list_of(&[Stage::Held, Stage::Held]);
    list.capture(7, |body| Ok(vec![*body as u8])).unwrap();
    list.push((0, 2), Stage::Held, 2, COST).unwrap();
    assert!(list.release_next(UpTo(6), 0).is_none());
    let released: Vec<u16> =
        std::iter::from_fn(|| list.release_next(UpTo(7), 0).map(|request| request.head)).collect();
    assert_eq!(released, [0, 1]);
    assert!(
        list.has_held(),
        "the request that came after the capture waits for the next one"
    );
}

#[test]
fn the_bytes_of_an_output_are_those_of_its_capture() {
    let mut list = list_of(&[Stage::Held]);
    let mut memory = vec![1u8];
    list.capture(1, |_| Ok(memory.clone())).unwrap();
    memory[0] = 2;
    list.capture(2, |_| Ok(memory.clone())).unwrap();
    assert_eq!(
        list.release_next(UpTo(2), 0).unwrap().data.as_deref(),
        Some(&[1u8][..])
    );
}

#[test]
fn a_capture_that_failed_gives_its_output_to_the_next_one() {
    let mut list = list_of(&[Stage::Held]);
    let mut memory = vec![1u8];
    list.capture(1, |_| Ok(memory.clone())).unwrap();
    list.uncapture(1);
    assert!(list.has_held() && list.release_next(UpTo(1), 0).is_none());
    memory[0] = 2;
    list.capture(2, |_| Ok(memory.clone())).unwrap();
    assert_eq!(
        list.release_next(UpTo(2), 0).unwrap().data.as_deref(),
        Some(&[2u8][..])
    );
}

#[test]
fn a_chain_cannot_be_available_twice() {
    let mut list = list_of(&[Stage::Released]);
    assert!(list.push((0, 0), Stage::Held, 9, COST).is_err());
    assert!(
        list.push((1, 0), Stage::Held, 9, COST).is_ok(),
        "another queue has its own heads"
    );
    list.finish(0).unwrap();
    assert!(list.push((0, 0), Stage::Held, 9, COST).is_ok());
}

#[test]
fn a_takeover_reissues_the_whole_list_in_order() {
    let mut list = list_of(&[Stage::Released, Stage::Held, Stage::Captured(3)]);
    list.finish(0);
    list.push((0, 0), Stage::Held, 30, COST).unwrap();
    let mut loaded = RequestList::load(list.save(), list.next_id(), |_| COST).unwrap();
    let requests: Vec<(u64, u32)> = std::iter::from_fn(|| {
        loaded
            .release_next(Any, 0)
            .map(|request| (request.id, request.body))
    })
    .collect();
    assert_eq!(requests, [(1, 1), (2, 2), (3, 30)]);
}

#[test]
fn numbers_rise_over_a_takeover_also_when_the_list_is_empty() {
    let mut list = list_of(&[Stage::Released, Stage::Released]);
    list.finish(0);
    let mut loaded = RequestList::load(list.save(), list.next_id(), |_| COST).unwrap();
    assert_eq!(loaded.push((0, 7), Stage::Held, 7, COST).unwrap(), 2);
    list.finish(1);
    let mut empty = RequestList::load(list.save(), list.next_id(), |_| COST).unwrap();
    assert_eq!(empty.push((0, 0), Stage::Held, 7, COST).unwrap(), 2);
}

#[test]
fn a_list_whose_numbers_do_not_rise_is_refused() {
    let saved = || list_of(&[Stage::Held, Stage::Held]).save();
    let mut swapped = saved();
    swapped.swap(0, 1);
    assert!(RequestList::load(swapped, 2, |_| COST).is_err());
    assert!(RequestList::load(saved(), 1, |_| COST).is_err());
    assert!(RequestList::load(saved(), NEXT_ID_MAX + 1, |_| COST).is_err());
    assert!(RequestList::load(saved(), NEXT_ID_MAX, |_| COST).is_ok());
    assert!(RequestList::load(saved(), 2, |_| COST).is_ok());
}

#[test]
fn a_reset_drops_only_what_was_never_captured() {
    let mut list = list_of(&[Stage::Held, Stage::Captured(1), Stage::Released]);
    list.drop_held(None);
    assert!(list.has_started(None) && !list.has_held());
    assert_eq!(list.iter().count(), 2);
}

#[test]
fn a_reset_of_one_queue_drops_nothing_of_another_and_waits_for_what_was_captured_of_it() {
    let mut list = list_of(&[Stage::Held]);
    list.push((1, 0), Stage::Held, 9, COST).unwrap();
    list.capture(1, |_| Ok(Vec::new())).unwrap();
    assert!(
        list.has_started(Some(0)) && list.has_started(Some(1)),
        "they are captured"
    );
    list.uncapture(1);
    assert!(!list.has_started(Some(0)) && !list.has_started(None));
    list.drop_held(Some(0));
    let left: Vec<u16> = list.iter().map(|request| request.queue).collect();
    assert_eq!(left, [1]);
    list.drop_held(None);
    assert_eq!(list.iter().count(), 0);
}

#[test]
fn numbers_rise_over_a_reset_too() {
    let mut list = list_of(&[Stage::Held, Stage::Released]);
    list.clear();
    assert_eq!((list.iter().count(), list.next_id()), (0, 2));
    assert_eq!(list.push((0, 0), Stage::Held, 0, COST).unwrap(), 2);
}
