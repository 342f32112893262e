//! The copy of replicated disks, before that of memory.

use kemari_sync::wire::{DiskMark, Goodbye, Message};
use kemari_sync::{
    CopyDisk, DiskOffer, ImageState, ImageWord, Mode, PrimaryAction as Do, PrimaryEvent, Source,
};

use crate::support::Bench;

fn offer(term: u64) -> DiskOffer {
    DiskOffer {
        disk: "blk0".into(),
        bytes: 4096,
        word: Some(ImageWord {
            lineage: 7,
            term,
            next_term: 0,
            state: ImageState::Whole,
            base: 70,
        }),
        overwrite: false,
    }
}

fn ready(disks: Vec<DiskOffer>) -> Message {
    Message::Ready {
        staging_pages_max: 1000,
        disks,
    }
}

/// A primary with one replicated disk whose secondary makes itself ready in session 1.
fn preparing() -> Bench {
    let source = Source {
        disk: "blk0".into(),
        bytes: 4096,
        lineage: 7,
        base: 70,
        paired_term: 1,
    };
    let mut bench = Bench::with_sources(Mode::Lockstep, vec![source]);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.read(&asked);
    bench.prove(1);
    bench
}

fn plans(actions: &[Do]) -> Vec<CopyDisk> {
    match actions {
        [Do::MarkSources { session: 1, plans }] => plans.clone(),
        other => panic!("{other:?}"),
    }
}

fn closes(actions: &[Do], reason_has: &str) -> bool {
    matches!(actions, [Do::CloseSession { reason, .. }] if reason.contains(reason_has))
}

#[test]
fn disks_are_marked_here_then_there_then_copied_then_memory() {
    let mut bench = preparing();
    let plans = plans(&bench.hear(1, ready(vec![offer(1)])));
    assert!(plans[0].only_marked && plans[0].base == 70);
    let marked = PrimaryEvent::SourcesMarked {
        session: 1,
        result: Ok(()),
    };
    let told = bench.feed(marked);
    assert_eq!(
        told,
        [Do::Send {
            session: 1,
            message: Message::CopyDisks(plans.clone())
        }]
    );
    assert_eq!(
        bench.hear(1, Message::DisksReady),
        [Do::CopyDisks { session: 1, plans }]
    );
    let copied = PrimaryEvent::DisksCopied {
        session: 1,
        result: Ok(()),
    };
    assert_eq!(
        bench.feed(copied),
        [Do::CopyRound {
            session: 1,
            first: true
        }]
    );
}

#[test]
fn a_newer_image_is_not_overwritten_and_nothing_is_written_anywhere() {
    let mut bench = preparing();
    let actions = bench.hear(1, ready(vec![offer(2)]));
    assert!(
        closes(&actions, "newer (term 2) than the one here (term 1)"),
        "{actions:?}"
    );
}

#[test]
fn other_disks_than_those_here_are_refused() {
    for disks in [vec![], vec![offer(1), offer(1)]] {
        let actions = preparing().hear(1, ready(disks));
        assert!(closes(&actions, "replicates"), "{actions:?}");
    }
}

#[test]
fn a_copy_that_fails_ends_the_session_and_the_vm_lives() {
    let mut bench = preparing();
    bench.hear(1, ready(vec![offer(1)]));
    let failed = |session| PrimaryEvent::DisksCopied {
        session,
        result: Err("no".into()),
    };
    assert!(bench.feed(failed(9)).is_empty(), "another session's");
    let actions = bench.feed(PrimaryEvent::SourcesMarked {
        session: 1,
        result: Err("a full disk".into()),
    });
    assert!(closes(&actions, "a full disk"), "{actions:?}");
    assert!(bench.feed(failed(1)).is_empty(), "it is over already");
}

#[test]
fn what_is_said_out_of_order_ends_the_session() {
    let mut bench = preparing();
    bench.hear(1, ready(vec![offer(1)]));
    let actions = bench.hear(1, Message::DisksReady);
    assert!(closes(&actions, "before they were asked for"), "{actions:?}");
    let mut bench = preparing();
    let actions = bench.hear(1, Message::Flushed(DiskMark { disk: 0, request: 1 }));
    assert!(closes(&actions, "unexpectedly"), "{actions:?}");
}

#[test]
fn an_unfit_secondary_ends_the_copy_with_its_reason() {
    let mut bench = preparing();
    bench.hear(1, ready(vec![offer(1)]));
    let actions = bench.hear(1, Message::Goodbye(Goodbye::Unfit("its disk is full".into())));
    assert!(closes(&actions, "its disk is full"), "{actions:?}");
}
