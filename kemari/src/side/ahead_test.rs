//! What goes ahead of a sync, and what is owed to it all the same.

use std::convert::Infallible;

use kemari_vmm::dirty::DirtySource;

use super::super::capture_test;
use super::*;

const OF: (SessionId, Epoch) = (1, 7);

fn find(debt: &mut Debt, pages: usize) {
    let Ok(()) = debt.find::<Infallible>(|found| {
        found.extend(0..pages as u64);
        Ok(())
    });
}

#[test]
fn few_pages_are_left_to_the_sync() {
    let mut debt = Debt::default();
    find(&mut debt, PAGES_MIN - 1);
    offer(&mut debt);
    // Found again they are no more.
    find(&mut debt, PAGES_MIN - 1);
    offer(&mut debt);
    assert!(!is_due(&debt));
    find(&mut debt, PAGES_MIN);
    offer(&mut debt);
    assert!(is_due(&debt));
}

#[test]
fn what_goes_ahead_is_opened_once_a_session_and_no_more_than_there_is_room_for() {
    let machine = capture_test::machine(64, DirtySource::Best);
    let (mut ahead, mut debt) = (Ahead::default(), Debt::default());
    let mut send = |debt: &mut Debt, of| {
        let opening = |out: &mut Vec<u8>| out.extend(b"opening");
        let before = ahead.tally.commit(7, false).pages;
        let bytes = ahead
            .send(&machine, debt, of, 200, opening)
            .expect("pages of the guest");
        let kept = ahead.frames.len();
        let sent = ahead.tally.commit(7, false).pages;
        (bytes.starts_with(b"opening"), sent, before, kept, bytes.len())
    };
    find(&mut debt, 400);
    offer(&mut debt);
    let (is_opened, sent, ..) = send(&mut debt, OF);
    assert_eq!((is_opened, sent), (true, PAGES_AT_ONCE as u64));
    let (is_opened, sent, before, kept, bytes) = send(&mut debt, OF);
    assert_eq!((is_opened, sent, before), (false, 200, PAGES_AT_ONCE as u64));
    assert!(kept > bytes, "all of it is kept");
    let (_, sent, _, _, bytes) = send(&mut debt, OF);
    assert_eq!((sent, bytes), (200, 0), "there is no room for more");
    assert_eq!(debt.of_next_sync(), 400, "it is owed");
    debt.end_session(OF.0);
    offer(&mut debt);
    let (is_opened, sent, ..) = send(&mut debt, (OF.0 + 1, OF.1));
    assert_eq!((is_opened, sent), (true, PAGES_AT_ONCE as u64), "it begins anew");
}
