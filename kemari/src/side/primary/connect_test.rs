//! When a secondary is looked for, and which connection counts.

use super::super::rig::{Rig, connected};
use super::*;

/// In how many milliseconds the next attempt is made at the soonest.
fn pause_ms(rig: &Rig) -> u64 {
    let connector = &rig.side.connector;
    connector.next_ms.saturating_sub(rig.side.clock.now_ms())
}

#[test]
fn a_broken_pair_is_joined_again_at_once_and_all_else_can_wait() {
    let mut rig = Rig::new();
    rig.side.note_session_end(1);
    assert!(pause_ms(&rig) > RETRY_MS && rig.side.connector.looks_at_way);
    let mut rig = Rig::new();
    rig.capture(1);
    rig.side.note_session_end(1);
    assert!(pause_ms(&rig) == 0 && !rig.side.connector.looks_at_way);
}

#[test]
fn a_connection_counts_only_where_one_is_wanted() {
    let is_connected = |event: &PrimaryEvent| matches!(event, PrimaryEvent::PeerConnected { .. });
    let mut rig = Rig::new();
    let (late, _ends) = connected();
    rig.side.on_connected(Ok(late));
    assert!(
        !rig.tells(is_connected) && rig.side.session.is_none(),
        "it is not protected"
    );
    rig.side.events.push_back(PrimaryEvent::OperatorProtect);
    rig.side.settle();
    let (first, _first_ends) = connected();
    rig.side.on_connected(Ok(first));
    assert!(rig.tells(is_connected));
    let session = rig.side.session.as_ref().expect("a session").id;
    let (second, _second_ends) = connected();
    rig.side.on_connected(Ok(second));
    assert!(!rig.tells(is_connected), "there is one already");
    assert_eq!(rig.side.session.as_ref().expect("a session").id, session);
}

#[test]
fn an_attempt_that_failed_is_told_and_another_follows_after_a_pause() {
    let mut rig = Rig::new();
    rig.side.connector.trying = true;
    rig.side.on_connected(Err("nobody is there".into()));
    rig.side.connector.wanted = true;
    assert_eq!(rig.side.connector.trouble(), Some("nobody is there"));
    assert!(rig.side.connector.due_ms().is_some() && pause_ms(&rig) > 0);
}
