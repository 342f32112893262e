//! A host that fails.

use kemari_sync::wire::{Goodbye, Message};
use kemari_sync::{Mode, PrimaryAction, PrimaryEvent};

use PrimaryAction as Do;

use super::support::*;

#[test]
fn a_failing_host_hands_over() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let actions = bench.feed(PrimaryEvent::HostFailing {
        reason: "KVM".to_owned(),
    });
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::HandOver(_)),
                ..
            },
            Do::Halt { .. },
            Do::CloseSession { .. }
        ]
    ));
}

#[test]
fn captures_that_fail_again_and_again_are_the_hosts_failure() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    let failed = |epoch| PrimaryEvent::CaptureFailed {
        epoch,
        reason: "KVM".to_owned(),
    };
    assert_eq!(bench.feed(failed(2)), [Do::GiveBack { epoch: 2 }, capture(3)]);
    assert_eq!(bench.feed(failed(3)), [Do::GiveBack { epoch: 3 }, capture(4)]);
    assert!(
        bench
            .feed(failed(4))
            .iter()
            .any(|action| matches!(action, Do::Halt { .. }))
    );
}
