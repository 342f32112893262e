//! A host that fails.

use kemari_sync::wire::{CommitId, Goodbye, Message};
use kemari_sync::{Mode, PrimaryAction, PrimaryEvent, Protection, Timing};

use PrimaryAction as Do;

use super::support::{self, *};

#[test]
fn a_failing_host_hands_over() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.feed(failing()), [Do::CloseDisks]);
    assert_eq!(bench.status(), Protection::Over);
    // Nothing else concerns it any more.
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    assert_eq!(bench.feed(PrimaryEvent::OperatorStop), []);
    let actions = bench.feed(PrimaryEvent::DisksClosed { result: Ok(()) });
    assert!(matches!(said(&actions), Goodbye::Closed(_)), "{actions:?}");
    assert_eq!(bench.primary.next_deadline(), None);
}

#[test]
fn a_failing_host_whose_disks_cannot_be_closed_says_no_more_than_that_it_fails() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(failing());
    let result = Err("its cache cannot be written".to_owned());
    let actions = bench.feed(PrimaryEvent::DisksClosed { result });
    assert!(matches!(said(&actions), Goodbye::HandOver(_)), "{actions:?}");
}

#[test]
fn a_failing_host_that_nobody_hears_waits_for_nothing() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let closed = || PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    };
    bench.feed(closed());
    assert!(matches!(bench.feed(failing())[..], [Do::Halt { .. }]));
    // The secondary goes while the disks are being closed.
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(failing());
    let actions = bench.feed(closed());
    assert!(matches!(actions.last(), Some(Do::Halt { .. })), "{actions:?}");
    assert_eq!(bench.primary.next_deadline(), None);
    // Alone it has nobody to go on.
    let mut bench = Bench::new(Mode::Lockstep);
    assert!(matches!(bench.feed(failing())[..], [Do::Halt { .. }]));
}

fn failing() -> PrimaryEvent {
    PrimaryEvent::HostFailing {
        reason: "KVM".to_owned(),
    }
}

/// The last word of a side that halts with these.
fn said(actions: &[PrimaryAction]) -> &Goodbye {
    let [
        Do::Send {
            message: Message::Goodbye(goodbye),
            ..
        },
        Do::Halt { .. },
        Do::CloseSession { .. },
    ] = actions
    else {
        panic!("it does not end: {actions:?}")
    };
    goodbye
}

/// Of a protected pair as many captures fail in a row as may not: what the last one leads to.
fn captures_fail(bench: &mut Bench) -> Vec<PrimaryAction> {
    let failed = |epoch| PrimaryEvent::CaptureFailed {
        epoch,
        reason: "KVM".to_owned(),
    };
    bench.feed(PrimaryEvent::OutputPending);
    assert_eq!(bench.feed(failed(2)), [Do::GiveBack { epoch: 2 }, capture(3)]);
    assert_eq!(bench.feed(failed(3)), [Do::GiveBack { epoch: 3 }, capture(4)]);
    bench.feed(failed(4))
}

#[test]
fn captures_that_fail_again_and_again_are_the_hosts_failure() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.hear(1, support::said(None, Some(&[])));
    assert!(captures_fail(&mut bench).contains(&Do::CloseDisks));
}

/// A sync of which something was sent already takes its session with it; what the peer has said of itself
/// goes on counting in the next one.
#[test]
fn captures_that_fail_after_their_sync_has_begun_are_the_hosts_failure_too() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, support::said(None, Some(&[])));
    bench.feed(PrimaryEvent::OutputPending);
    let failed = |epoch| PrimaryEvent::CaptureFailed {
        epoch,
        reason: "KVM".to_owned(),
    };
    for (session, epoch) in [(2, 2), (3, 3)] {
        let actions = bench.feed(failed(epoch));
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, Do::CloseSession { .. })),
            "{actions:?}"
        );
        bench.feed(PrimaryEvent::PeerConnected { session });
        bench.welcome(session, 2, Some(CommitId { term: 2, epoch: 1 }));
    }
    let actions = bench.feed(failed(4));
    assert!(actions.contains(&Do::CloseDisks), "{actions:?}");
}

/// As when a vCPU cannot be stopped, since a disk of this host hangs.
#[test]
fn a_capture_that_does_not_end_is_the_hosts_failure_and_not_the_secondarys() {
    let timing = Timing::default();
    let ends_in = |readiness: &[&str]| {
        let mut bench = Bench::protected(Mode::Lockstep);
        assert_eq!(bench.feed(PrimaryEvent::OutputPending), [capture(2)]);
        let mut actions = Vec::new();
        for _ in 0..=timing.progress_ms / timing.heartbeat_ms {
            bench.hear(1, support::said(None, Some(readiness)));
            actions.extend(bench.wait(timing.heartbeat_ms));
        }
        actions
    };
    let actions = ends_in(&[]);
    assert!(actions.contains(&Do::CloseDisks), "{actions:?}");
    let actions = ends_in(&["the TAP is gone"]);
    assert!(!actions.contains(&Do::CloseDisks), "{actions:?}");
    assert!(
        actions.iter().any(|action| matches!(action, Do::Ask { .. })),
        "{actions:?}"
    );
}

/// It runs well, and nobody else has it.
#[test]
fn a_guest_that_cannot_be_followed_goes_on_alone() {
    let unfollowed = || PrimaryEvent::ProtectionFailing {
        reason: "the dirty log cannot be read".to_owned(),
    };
    let mut bench = Bench::new(Mode::Lockstep);
    assert_eq!(bench.feed(unfollowed()), []);
    // More often than a pair's host may fail.
    for _ in 0..5 {
        while !bench.primary.wants_peer() {
            bench.wait(1_000);
        }
        let actions = bench.copy();
        let epoch = actions.iter().find_map(|action| match action {
            Do::Capture { epoch, .. } => Some(*epoch),
            _ => None,
        });
        bench.hear(1, support::said(None, Some(&[])));
        let actions = bench.feed(PrimaryEvent::CaptureFailed {
            epoch: epoch.expect("the first sync"),
            reason: "KVM".to_owned(),
        });
        assert!(actions.contains(&Do::OpenGate), "{actions:?}");
        assert!(
            !actions.iter().any(|action| matches!(action, Do::Ask { .. })),
            "{actions:?}"
        );
        assert_ne!(bench.status(), Protection::Over);
    }
    let mut bench = Bench::new(Mode::Lockstep);
    bench.copy_up_to_confirmation();
    let actions = bench.feed(unfollowed());
    assert!(matches!(actions[..], [Do::CloseSession { .. }]), "{actions:?}");
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let actions = bench.feed(unfollowed());
    assert!(actions.contains(&Do::OpenGate), "{actions:?}");
    // Of a pair the other host goes on, if it can.
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, support::said(None, Some(&[])));
    assert_eq!(bench.feed(unfollowed()), [Do::CloseDisks]);
}

/// The guest runs well here, and would be lost there.
#[test]
fn a_guest_that_cannot_be_followed_is_not_given_to_a_secondary_that_cannot_go_on() {
    let unfollowed = || PrimaryEvent::ProtectionFailing {
        reason: "the dirty log cannot be read".to_owned(),
    };
    let stays = |bench: &mut Bench, actions: Vec<PrimaryAction>| {
        assert!(!actions.contains(&Do::CloseDisks), "{actions:?}");
        let asked = match actions.iter().any(|action| matches!(action, Do::Ask { .. })) {
            true => actions,
            false => bench.wait(Timing::default().reconnect_ms),
        };
        // It wins a term, and then acts in it.
        let asked = bench.read(&asked);
        let asked = bench.swap(&asked);
        assert!(bench.swap(&asked).contains(&Do::OpenGate));
    };
    // One that is not ready.
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, support::said(None, Some(&["the TAP is gone"])));
    let actions = bench.feed(unfollowed());
    stays(&mut bench, actions);
    // One that is gone.
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, support::said(None, Some(&[])));
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    let actions = bench.feed(unfollowed());
    stays(&mut bench, actions);
    // Captures that fail again and again are no more than that.
    let mut bench = Bench::protected(Mode::Pipelined);
    let actions = captures_fail(&mut bench);
    assert!(
        actions.contains(&Do::Resume),
        "it waits for no arbiter: {actions:?}"
    );
    stays(&mut bench, actions);
}
