//! What the core wants done, one action at a time.

use kemari_sync::ImageState;
use kemari_sync::wire::{Begin, Commit, FrameHeader, FrameKind, HEADER_BYTES, PageBatchWriter, SyncTally};
use kemari_vmm::disk::Operation;
use kemari_vmm::state::StateKind;

use super::disks::Wait;
use super::rig::{BUILD, Rig, SESSION};
use super::*;
use crate::link::LinkError;

const PAGE: u64 = 0x2f00;

/// A sync without pages that is staged.
fn staged(rig: &mut Rig, epoch: u64, stop: bool) -> Commit {
    rig.side.perform(SecondaryAction::Stage {
        session: SESSION,
        epoch,
    });
    SyncTally::default().commit(epoch, stop)
}

/// A sync of this term is opened.
fn begin(rig: &mut Rig, term: u64) {
    let begin = Begin {
        epoch: 1,
        base: None,
        term,
        store: 1,
        primary: 1,
        secondary: 2,
    };
    rig.side.signs.note(&Message::Begin(begin), 0);
}

fn checks(rig: &mut Rig, commit: Commit) -> Option<bool> {
    rig.side.perform(SecondaryAction::Check { commit });
    let told: Vec<_> = rig.side.events.drain(..).collect();
    told.iter().find_map(|event| match event {
        SecondaryEvent::Checked { result, .. } => Some(result.is_ok()),
        _ => None,
    })
}

/// Lets the replica fail.
fn break_disk(rig: &mut Rig) {
    let write = Operation::Write {
        offset: 1 << 40,
        data: vec![1; 512],
    };
    rig.standby().disks.give(0, 1, write);
    rig.await_input(|input| matches!(input, Input::Replica(_, _, Report::Failed(_))));
    rig.side.events.clear();
}

#[test]
fn a_sync_is_good_only_if_the_replicas_work() {
    let mut rig = Rig::new();
    let commit = staged(&mut rig, 1, false);
    assert_eq!(checks(&mut rig, commit), Some(true));
    break_disk(&mut rig);
    let commit = staged(&mut rig, 2, false);
    assert_eq!(checks(&mut rig, commit), Some(false));
}

#[test]
fn the_first_sync_is_good_when_the_images_are_whole() {
    let mut rig = Rig::new();
    rig.copy_for(SESSION);
    begin(&mut rig, 2);
    let commit = staged(&mut rig, 1, false);
    assert_eq!(checks(&mut rig, commit), None, "it waits for the disk");
    let is_whole = |event: &SecondaryEvent| {
        matches!(
            event,
            SecondaryEvent::Checked {
                epoch: 1,
                result: Ok(())
            }
        )
    };
    rig.await_input(|input| matches!(input, Input::Replica(_, _, Report::Reached(_))));
    assert!(rig.tells(is_whole));
    let word = rig.image.offer().word.expect("a record");
    assert_eq!((word.term, word.state), (2, ImageState::Whole));
    rig.side.perform(SecondaryAction::Apply { epoch: 1 });
    assert!(
        rig.side.berth.copying().is_none(),
        "the copy ends with the first sync"
    );
}

#[test]
fn a_sync_that_is_thrown_away_is_waited_for_no_more_and_a_restore_is() {
    let check = Wait::Check { epoch: 1, term: 2 };
    for (wait, left) in [(check, None), (Wait::Restore, Some(Wait::Restore))] {
        let mut rig = Rig::new();
        rig.standby().disks.awaited.begin(wait, 1);
        rig.side.perform(SecondaryAction::Discard { epoch: 1 });
        assert_eq!(rig.standby().disks.awaited.reached(0, wait.barrier()), left);
    }
}

#[test]
fn states_take_the_places_of_their_own() {
    let mut rig = Rig::new();
    let states = rig.standby().states.clone();
    let mut merged = states.clone();
    let disk = states
        .iter()
        .rfind(|blob| blob.kind == StateKind::Virtio)
        .expect("a device");
    let mut changed = disk.clone();
    changed.bytes.push(0);
    trial::merge(&mut merged, [changed.clone()]);
    assert_eq!(merged.len(), states.len());
    let differ: Vec<_> = merged
        .iter()
        .zip(&states)
        .filter(|(new, old)| new != old)
        .collect();
    assert_eq!(differ, [(&changed, disk)]);
}

#[test]
fn a_processor_that_changes_its_identity_is_tried_on_kvm() {
    let mut rig = Rig::new();
    let part = |rig: &mut Rig, kind| {
        let found = rig.standby().states.iter().find(|blob| blob.kind == kind);
        vec![found.expect("it is in every state").clone()]
    };
    let (vcpu, identity) = (
        part(&mut rig, StateKind::Vcpu),
        part(&mut rig, StateKind::VcpuIdentity),
    );
    assert_eq!(rig.standby().check_states(2, &vcpu, 0), Ok(false));
    assert_eq!(rig.standby().check_states(2, &identity, 0), Ok(true));
    let all = std::mem::take(&mut rig.standby().states);
    assert_eq!(rig.standby().check_states(1, &all, 0), Ok(true), "the first one");
}

#[test]
fn an_image_is_stopped_with_its_vm_and_not_with_its_primary() {
    for (is_stop, state) in [(true, ImageState::Stopped), (false, ImageState::Whole)] {
        let mut rig = Rig::new();
        let commit = staged(&mut rig, 1, is_stop);
        assert_eq!(checks(&mut rig, commit), Some(true));
        rig.side.perform(SecondaryAction::Apply { epoch: 1 });
        // The next one is checked, and not committed.
        let commit = staged(&mut rig, 2, !is_stop);
        assert_eq!(checks(&mut rig, commit), Some(true));
        rig.side.perform(SecondaryAction::Exit {
            reason: "a test".into(),
        });
        assert!(matches!(rig.side.end, Some(End::Stopped(_))));
        assert_eq!(rig.image.offer().word.expect("a record").state, state);
    }
}

#[test]
fn a_restore_waits_for_what_was_committed() {
    let mut rig = Rig::new();
    let is_restored = |event: &SecondaryEvent| matches!(event, SecondaryEvent::Restored { .. });
    let restore = SecondaryAction::Restore { epoch: 1 };
    rig.side.perform(restore);
    assert!(!rig.tells(is_restored));
    rig.await_input(|input| matches!(input, Input::Replica(_, _, Report::Reached(_))));
    assert!(rig.tells(is_restored));
}

#[test]
fn the_image_knows_the_term_before_the_machine_has_it_also_if_a_later_step_fails() {
    let mut rig = Rig::new();
    let config = rig.side.config.clone();
    for _ in 0..2 {
        // There is no such card.
        let error = rig
            .standby()
            .restore(&config, "b", 4)
            .expect_err("it has no cable");
        assert!(format!("{error:#}").contains("net0"), "{error:#}");
        assert!(rig.standby().restoration.is_loaded());
        assert_eq!(rig.image.offer().word.expect("a record").term, 4);
    }
}

#[test]
fn a_state_that_is_void_holds_up_nobody_and_is_tried_no_more() {
    let mut rig = Rig::new();
    rig.side.perform(SecondaryAction::Forget {
        reason: "a test".into(),
    });
    assert!(matches!(rig.side.berth, Berth::Leaving(_)));
    let report = Report::Failed("a test".into());
    rig.side.on_replica(BUILD, 0, report);
    assert!(rig.side.events.is_empty(), "nobody waits for its replicas");
    let reasons = rig.side.board.findings().reasons();
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("the committed state")),
        "{reasons:?}"
    );
}

#[test]
fn pages_of_a_copy_are_taken_in_the_session_that_it_is_for() {
    let mut rig = Rig::new();
    let mut frame = Vec::new();
    let mut batch = PageBatchWriter::new(true, &mut frame);
    batch.push(PAGE, &[5; memory::PAGE_BYTES]);
    batch.finish();
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
    let header = FrameHeader::parse(header).expect("a frame");
    assert_eq!(header.kind, FrameKind::CopyPages);
    let take = |rig: &mut Rig| rig.side.take_copy(SESSION, &header, body);
    assert!(matches!(take(&mut rig), Err(LinkError::Refused(_))));
    rig.copy_for(SESSION + 1);
    assert!(matches!(take(&mut rig), Err(LinkError::Refused(_))));
    rig.copy_for(SESSION);
    assert!(take(&mut rig).is_ok());
    let sum = rig.standby().page_checksum(PAGE);
    assert_eq!(sum, kemari_sync::wire::base_checksum(&[5; memory::PAGE_BYTES]));
}

#[test]
fn frames_of_a_sync_are_staged_in_the_session_that_it_came_in() {
    let mut rig = Rig::new();
    assert!(rig.side.inflow.staged_in(SESSION).is_none());
    staged(&mut rig, 4, false);
    assert!(rig.side.inflow.staged_in(SESSION + 1).is_none());
    assert_eq!(rig.side.inflow.staged_in(SESSION), Some(4));
    rig.side.perform(SecondaryAction::Discard { epoch: 4 });
    assert!(rig.side.inflow.staged_in(SESSION).is_none());
}

#[test]
fn why_a_session_has_ended_is_told_until_the_next_one_begins() {
    let mut rig = Rig::new();
    rig.side.perform(SecondaryAction::CloseSession {
        session: SESSION,
        reason: "a test".into(),
    });
    let waiting = |rig: &mut Rig| {
        let waiting = Some("it waits".to_owned());
        let stage = kemari_sync::Protection::Unprotected;
        rig.side.told.waiting(waiting, stage, false, None)
    };
    assert!(waiting(&mut rig).is_some_and(|waiting| waiting.contains("a test")));
    rig.side
        .perform(SecondaryAction::Prepare { session: SESSION + 1 });
    assert_eq!(waiting(&mut rig).as_deref(), Some("it waits"));
}
