//! When a secondary is looked for, and which connection counts.

use super::super::rig::{Rig, connected};
use super::*;
use crate::link::LinkError;

/// In how many milliseconds the next attempt is made at the soonest.
fn pause_ms(rig: &Rig) -> u64 {
    let connector = &rig.side.peer.connector;
    connector.next_ms.saturating_sub(rig.side.clock.now_ms())
}

#[test]
fn a_broken_pair_is_joined_again_at_once_and_all_else_can_wait() {
    let mut rig = Rig::new();
    let _peer = rig.force_connect();
    rig.side.lose_session(LinkError::Closed);
    assert!(pause_ms(&rig) > RETRY_MS && rig.side.peer.connector.looks_at_way);
    let mut rig = Rig::new();
    let _peer = rig.force_connect();
    rig.capture(1);
    rig.side.lose_session(LinkError::Closed);
    assert!(pause_ms(&rig) == 0 && !rig.side.peer.connector.looks_at_way);
}

#[test]
fn a_connection_counts_only_where_one_is_wanted() {
    let is_connected = |event: &PrimaryEvent| matches!(event, PrimaryEvent::PeerConnected { .. });
    let mut rig = Rig::new();
    let (late, _ends) = connected();
    rig.side.on_connected(Ok(late));
    assert!(
        !rig.tells(is_connected) && rig.side.peer.session().is_none(),
        "it is not protected"
    );
    rig.side.events.push_back(PrimaryEvent::OperatorProtect);
    rig.side.settle();
    let (first, _first_ends) = connected();
    rig.side.on_connected(Ok(first));
    assert!(rig.tells(is_connected));
    let session = rig.side.peer.id();
    let (second, _second_ends) = connected();
    rig.side.on_connected(Ok(second));
    assert!(!rig.tells(is_connected), "there is one already");
    assert_eq!(rig.side.peer.id(), session);
}

#[test]
fn an_attempt_that_failed_is_told_and_another_follows_after_a_pause() {
    let mut rig = Rig::new();
    rig.side.peer.connector.trying = true;
    rig.side.on_connected(Err("nobody is there".into()));
    rig.side.peer.connector.wanted = true;
    assert_eq!(rig.side.peer.connector.trouble(), Some("nobody is there"));
    assert!(rig.side.peer.connector.due_ms().is_some() && pause_ms(&rig) > 0);
}
