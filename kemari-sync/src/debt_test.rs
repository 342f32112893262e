//! Where a page is between the look that finds it and the ack, and that none is lost,
//! whatever happens in which order.

use std::collections::BTreeSet;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

const OF: (SessionId, Epoch) = (1, 7);

fn add(pages: impl IntoIterator<Item = u64>) -> impl FnOnce(&mut Vec<u64>) -> Result<(), Infallible> {
    |found| {
        found.extend(pages);
        Ok(())
    }
}

fn found(pages: impl IntoIterator<Item = u64>) -> Debt {
    let mut debt = Debt::default();
    let Ok(()) = debt.find(add(pages));
    debt
}

/// All that the next sync would have, in order.
fn next_sync(debt: &mut Debt) -> Vec<u64> {
    debt.capture(u64::MAX);
    let Ok(pages) = debt.find_captured(add([]));
    pages.to_vec()
}

#[test]
fn a_sync_has_what_was_found_in_order_and_each_once_and_then_what_is_found_while_it_is_captured() {
    let mut debt = found([9, 3, 9]);
    debt.capture(1);
    let Ok(pages) = debt.find_captured(add([3, 5]));
    assert_eq!(pages, [3, 5, 9]);
    let Ok(more) = debt.find_captured(add([9, 4]));
    assert_eq!(more, [9, 4]);
    assert_eq!(debt.captured(), [3, 5, 9, 9, 4]);
    let Ok(()) = debt.find(add([8]));
    debt.acked(1);
    assert_eq!(next_sync(&mut debt), [8]);
}

#[test]
fn a_sync_that_is_given_back_is_owed_to_the_next_one_and_an_acked_one_is_not() {
    let mut debt = found([3]);
    debt.capture(1);
    debt.give_back(2);
    debt.acked(2);
    assert_eq!(debt.captured(), [3], "that was another sync");
    debt.give_back(1);
    debt.capture(2);
    assert_eq!(debt.captured(), [3]);
    debt.acked(2);
    assert_eq!(debt.of_next_sync(), 0);
}

#[test]
fn what_a_look_has_found_that_fails_is_owed() {
    let mut debt = Debt::default();
    let look = |found: &mut Vec<u64>| {
        found.push(3);
        Err(())
    };
    assert!(debt.find(look).is_err());
    assert!(debt.find_captured(look).is_err(), "nothing is captured");
    debt.capture(1);
    assert!(debt.find_captured(look).is_err());
    debt.give_back(1);
    assert_eq!(next_sync(&mut debt), [3]);
}

#[test]
fn few_pages_do_not_go_ahead_and_one_that_is_dirty_again_not_twice() {
    let mut debt = found(0..4);
    debt.offer(5);
    assert!(!debt.is_offered(9));
    debt.offer(4);
    assert!(debt.is_offered(9) && !debt.is_offered(0));
    assert_eq!(debt.go_ahead(OF, 9, 9).len(), 4);
    assert_eq!((debt.went_ahead_in(7), debt.went_ahead_in(8)), (Some(1), None));
    let Ok(()) = debt.find(add(0..6));
    debt.offer(3);
    assert!(!debt.is_offered(9), "two of them are new");
    debt.offer(2);
    let Ok(()) = debt.find(add(4..6));
    debt.offer(2);
    assert_eq!(debt.of_next_sync(), 10, "they wait already");
    let Ok(()) = debt.find(add(4..6));
    debt.offer(3);
    debt.end_session(9);
    assert_eq!(debt.of_next_sync(), 10);
    debt.capture(7);
    assert_eq!(debt.captured(), [0, 1, 2, 3, 4, 5]);
    assert!(debt.captured_ahead().eq(0..4));
    assert_eq!((debt.went_ahead_in(7), debt.went_ahead_in(8)), (Some(1), None));
}

#[test]
fn no_more_go_ahead_than_there_is_room_for_and_the_rest_is_owed() {
    let mut debt = found(0..9);
    debt.offer(1);
    let went = [(); 4].map(|()| debt.go_ahead(OF, 2, 5).len());
    assert_eq!(went, [2, 2, 1, 0]);
    assert!(!debt.is_offered(9), "what waited is left to the sync");
    debt.capture(7);
    let all = debt.captured_ahead().chain(debt.captured().iter().copied());
    assert_eq!(all.collect::<BTreeSet<_>>(), (0..9).collect());
    assert_eq!((debt.pages_ahead(), debt.captured().len()), (5, 4));
    debt.give_back(7);
    assert_eq!(debt.of_next_sync(), 9);
}

#[test]
fn what_went_ahead_of_another_sync_or_in_another_session_is_owed() {
    let ahead = || {
        let mut debt = found([1, 2]);
        debt.offer(1);
        debt.go_ahead(OF, 1, 9);
        debt
    };
    let mut debt = ahead();
    debt.end_session(2);
    assert_eq!(debt.went_ahead_in(7), Some(1));
    debt.end_session(1);
    assert_eq!((debt.went_ahead_in(7), next_sync(&mut debt)), (None, vec![1, 2]));
    assert_eq!(next_sync(&mut ahead()), [1, 2], "of another sync");
    let mut debt = ahead();
    assert_eq!(debt.go_ahead((2, 7), 9, 9).len(), 1);
    assert_eq!(debt.went_ahead_in(7), Some(2));
    debt.end_session(2);
    assert_eq!(next_sync(&mut debt), [1, 2]);
}

#[test]
fn a_round_of_the_copy_takes_what_was_found_and_a_new_secondary_is_owed_nothing() {
    let mut debt = found([2, 1]);
    assert_eq!(debt.take_round(), [2, 1]);
    let Ok(()) = debt.find(add(0..9));
    debt.offer(1);
    debt.go_ahead(OF, 3, 9);
    debt.capture(7);
    debt.forget();
    assert_eq!((debt.of_next_sync(), debt.captured().len()), (0, 0));
}

#[derive(Clone, Debug)]
enum Do {
    Find(BTreeSet<u64>),
    Offer(usize),
    GoAhead(usize, usize),
    EndSession,
    Capture(BTreeSet<u64>),
    Ack,
    GiveBack,
}

fn any_step() -> impl Strategy<Value = Do> {
    let pages = || prop::collection::btree_set(0..20u64, 0..6);
    prop_oneof![
        pages().prop_map(Do::Find),
        (0..4usize).prop_map(Do::Offer),
        (0..5usize, 0..12usize).prop_map(|(count, most)| Do::GoAhead(count, most)),
        Just(Do::EndSession),
        pages().prop_map(Do::Capture),
        Just(Do::Ack),
        Just(Do::GiveBack),
    ]
}

proptest! {
    /// Beside the sets of what was found and not acked: all that is owed is in the next sync,
    /// and nothing else.
    #[test]
    fn no_page_is_lost(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut debt = Debt::default();
        let (mut owed, mut captured) = (BTreeSet::new(), None);
        let (mut session, mut epoch, mut gone) = (1, 1, BTreeSet::new());
        for step in steps {
            match step {
                Do::Find(pages) => {
                    owed.extend(pages.clone());
                    let Ok(()) = debt.find(add(pages));
                }
                Do::Offer(least) => debt.offer(least),
                Do::GoAhead(count, most) if captured.is_none() => {
                    for page in debt.go_ahead((session, epoch), count, most) {
                        prop_assert!(gone.insert((session, epoch, page)), "once a sync");
                    }
                }
                Do::EndSession => {
                    debt.end_session(session);
                    session += 1;
                }
                Do::Capture(pages) if captured.is_none() => {
                    debt.capture(epoch);
                    owed.extend(pages.clone());
                    let Ok(_) = debt.find_captured(add(pages));
                    let sent = debt.captured().iter().copied();
                    let sent: BTreeSet<_> = sent.chain(debt.captured_ahead()).collect();
                    prop_assert_eq!(&sent, &owed);
                    captured = Some(std::mem::take(&mut owed));
                }
                Do::Ack => {
                    debt.acked(epoch);
                    epoch += u64::from(captured.take().is_some());
                }
                Do::GiveBack => {
                    debt.give_back(epoch);
                    if let Some(captured) = captured.take() {
                        owed.extend(captured);
                        epoch += 1;
                    }
                }
                Do::GoAhead(..) | Do::Capture(_) => {}
            }
        }
    }
}

#[test]
fn pages_that_are_found_again_are_not_more_of_them() {
    let mut debt = Debt::default();
    for _ in 0..2 {
        let Ok(()) = debt.find(add(0..3));
        debt.offer(4);
    }
    assert!(!debt.is_offered(usize::MAX));
    debt.offer(3);
    assert!(debt.is_offered(usize::MAX));
}
