//! What goes ahead of a sync, and what is owed to it all the same.

use kemari_vmm::dirty::DirtySource;

use super::super::capture_test;
use super::*;

const OF: (SessionId, Epoch) = (1, 7);

fn pages(count: usize) -> Vec<u64> {
    (0..count as u64).collect()
}

/// Offers so many pages and sends as many as it takes, in several goes. Returns how many went in each.
fn send(machine: &Machine, ahead: &mut Ahead, owed: &mut Vec<u64>, pages_max: usize) -> Vec<usize> {
    ahead.offer(owed);
    let mut went = Vec::new();
    while ahead.is_due() && went.len() < 10 {
        let before = ahead.sent_pages();
        ahead
            .send(machine, OF, pages_max, |_| {}, owed)
            .expect("pages of the guest");
        went.push(ahead.sent_pages() - before);
    }
    went
}

#[test]
fn few_pages_are_left_to_the_sync() {
    let mut owed = pages(PAGES_MIN - 1);
    let mut ahead = Ahead::default();
    ahead.offer(&mut owed);
    assert_eq!((owed.len(), ahead.pages()), (PAGES_MIN - 1, 0));
}

#[test]
fn a_page_that_is_dirty_again_is_owed_and_does_not_go_ahead_twice() {
    let machine = capture_test::machine(64, DirtySource::Best);
    let (mut ahead, mut owed) = (Ahead::default(), pages(PAGES_MIN));
    send(&machine, &mut ahead, &mut owed, usize::MAX);
    assert_eq!(owed, [0; 0]);
    let mut owed = pages(2 * PAGES_MIN);
    ahead.offer(&mut owed);
    assert_eq!(owed, pages(PAGES_MIN));
    assert_eq!(ahead.pages(), 2 * PAGES_MIN);
}

#[test]
fn what_waits_at_a_capture_is_owed_to_it() {
    let (mut ahead, mut owed) = (Ahead::default(), pages(300));
    ahead.offer(&mut owed);
    assert_eq!((owed.len(), ahead.pages()), (0, 300));
    assert!(ahead.take(&mut owed).is_none(), "nothing has gone");
    assert_eq!((owed, ahead.pages()), (pages(300), 0));
}

#[test]
fn no_more_go_ahead_than_there_is_room_for_and_the_rest_is_owed() {
    let machine = capture_test::machine(64, DirtySource::Best);
    let (mut ahead, mut owed) = (Ahead::default(), pages(400));
    let went = send(&machine, &mut ahead, &mut owed, 200);
    assert_eq!(went, [PAGES_AT_ONCE, 200 - PAGES_AT_ONCE, 0]);
    assert_eq!((owed.len(), ahead.pages()), (200, 200));
    let sent = ahead.take(&mut owed).expect("some went");
    let mut all: Vec<u64> = sent.pages().chain(owed).collect();
    all.sort_unstable();
    assert_eq!(all, pages(400), "each once");
}

#[test]
fn what_went_is_of_one_sync_of_one_session_and_owed_when_that_ends() {
    let machine = capture_test::machine(64, DirtySource::Best);
    let (mut ahead, mut owed) = (Ahead::default(), pages(300));
    send(&machine, &mut ahead, &mut owed, 200);
    let sent = ahead.sent.as_ref().expect("some went");
    let (session, epoch) = OF;
    assert!(sent.is_there(session, epoch));
    assert!(!sent.is_there(session + 1, epoch) && !sent.is_there(session, epoch + 1));
    ahead.end_session(&mut owed);
    owed.sort_unstable();
    assert_eq!((owed, ahead.pages()), (pages(300), 0));
}
