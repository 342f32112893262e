//! What may be started, and what may be overwritten.

use super::*;
use crate::record::Incarnation;

fn source() -> Source {
    Source {
        disk: "blk0".into(),
        bytes: 1 << 20,
        lineage: 7 << 96,
        base: 70,
        paired_term: 4,
    }
}

fn word() -> ImageWord {
    ImageWord {
        lineage: 7 << 96,
        term: 4,
        next_term: 0,
        state: ImageState::Whole,
        base: 70,
    }
}

fn offer(word: Option<ImageWord>) -> DiskOffer {
    DiskOffer {
        disk: "blk0".into(),
        bytes: 1 << 20,
        word,
        overwrite: false,
    }
}

/// Whether only marked extents are looked at, or why nothing may be copied. The primary rules in term 5.
fn planned(word: Option<ImageWord>) -> Result<bool, String> {
    plan_copy(&source(), 5, &offer(word), 99).map(|plan| {
        assert_eq!(plan.base, if plan.only_marked { 70 } else { 99 });
        plan.only_marked
    })
}

#[test]
fn an_image_of_the_same_base_is_compared_where_it_is_marked_and_others_as_a_whole() {
    assert_eq!(planned(None), Ok(false));
    assert_eq!(planned(Some(word())), Ok(true));
    assert_eq!(planned(Some(ImageWord { base: 71, ..word() })), Ok(false));
    // Put back from a copy that is older than the last pair.
    assert_eq!(planned(Some(ImageWord { term: 3, ..word() })), Ok(false));
    let told_in_time = ImageWord {
        term: 3,
        next_term: 4,
        ..word()
    };
    assert_eq!(planned(Some(told_in_time)), Ok(true));
}

#[test]
fn a_copy_that_was_cut_goes_on_where_it_was() {
    let target = ImageWord {
        state: ImageState::Target,
        term: 5,
        ..word()
    };
    assert_eq!(planned(Some(target.clone())), Ok(true));
    assert_eq!(planned(Some(ImageWord { base: 3, ..target })), Ok(false));
}

#[test]
fn the_newer_is_never_overwritten_by_the_older() {
    let refusal = planned(Some(ImageWord { term: 6, ..word() })).unwrap_err();
    assert!(
        refusal.contains("newer (term 6) than the one here (term 5)"),
        "{refusal}"
    );
    // The pair of term 6 was never recorded: the primary rules alone in term 5.
    let never_began = ImageWord {
        term: 6,
        next_term: 6,
        ..word()
    };
    assert_eq!(planned(Some(never_began)), Ok(true));
    let refusal = planned(Some(ImageWord {
        term: 7,
        next_term: 7,
        ..word()
    }))
    .unwrap_err();
    assert!(refusal.contains("newer"), "{refusal}");
}

#[test]
fn another_history_is_overwritten_by_the_operators_word_only() {
    let other = ImageWord {
        lineage: 0xabcdef12 << 96,
        term: 1,
        ..word()
    };
    let refusal = planned(Some(other.clone())).unwrap_err();
    assert!(refusal.contains("--overwrite-disks abcdef12"), "{refusal}");
    let allowed = DiskOffer {
        overwrite: true,
        ..offer(Some(other))
    };
    assert!(!plan_copy(&source(), 5, &allowed, 99).unwrap().only_marked);
}

#[test]
fn disks_of_another_size_or_name_are_refused() {
    let longer = DiskOffer {
        bytes: 2 << 20,
        ..offer(None)
    };
    assert!(
        plan_copy(&source(), 5, &longer, 99)
            .unwrap_err()
            .contains("2097152 bytes")
    );
    let other = DiskOffer {
        disk: "blk1".into(),
        ..offer(None)
    };
    assert!(plan_copy(&source(), 5, &other, 99).unwrap_err().contains("blk1"));
}

fn record(term: Term, base: Term, phase: Phase) -> Record {
    Record {
        vm: "vm".into(),
        store: 1,
        term,
        base,
        owner: Incarnation {
            host: "b".into(),
            nonce: 2,
        },
        peer: None,
        phase,
        work: Default::default(),
    }
}

fn starts(word: Option<ImageWord>, record: Option<&Record>) -> bool {
    may_start(&[offer(word)], "b", record, false).is_ok()
}

#[test]
fn a_vm_starts_from_the_image_of_the_last_reign_only() {
    let acting = record(4, 4, Phase::Acting);
    assert!(starts(Some(word()), Some(&acting)));
    assert!(starts(
        Some(ImageWord {
            term: 3,
            next_term: 4,
            ..word()
        }),
        Some(&acting)
    ));
    assert!(!starts(Some(ImageWord { term: 3, ..word() }), Some(&acting)));
    assert!(!starts(Some(ImageWord { term: 5, ..word() }), Some(&acting)));
    assert!(!starts(None, Some(&acting)), "an image without a record");
    assert!(!starts(Some(word()), None), "another arbiter");
    assert!(starts(None, None), "a new VM");
    let refusal = may_start(
        &[offer(Some(ImageWord { term: 3, ..word() }))],
        "b",
        Some(&acting),
        false,
    )
    .unwrap_err();
    assert!(refusal.contains("last run by b in term 4"), "{refusal}");
}

/// The next advice, taken while the VM runs there, leads to two of it.
#[test]
fn where_another_host_may_run_the_vm_the_first_advice_is_to_follow_it() {
    for word in [None, Some(ImageWord { term: 3, ..word() })] {
        let says =
            |phase| may_start(&[offer(word.clone())], "a", Some(&record(4, 4, phase)), false).unwrap_err();
        let refusal = says(Phase::Acting);
        assert!(refusal.contains("`kemari secondary`"), "{refusal}");
        let refusal = says(Phase::Stopped);
        assert!(!refusal.contains("`kemari secondary`"), "{refusal}");
    }
}

#[test]
fn in_a_term_that_was_only_won_the_image_before_is_the_last_one() {
    let won = record(5, 4, Phase::Won);
    let starts = |word: ImageWord, host: &str| may_start(&[offer(Some(word))], host, Some(&won), false);
    assert!(starts(word(), "a").is_ok(), "nobody has written in the term");
    assert!(starts(ImageWord { term: 3, ..word() }, "a").is_err());
    assert!(
        starts(ImageWord { term: 5, ..word() }, "b").is_ok(),
        "b has begun it"
    );
    let refusal = starts(word(), "b").unwrap_err();
    assert!(
        refusal.contains("may lack what the host before had flushed"),
        "{refusal}"
    );
    let mut pair = won.clone();
    pair.peer = Some(Incarnation {
        host: "a".into(),
        nonce: 1,
    });
    let asked = offer(Some(ImageWord {
        term: 3,
        next_term: 4,
        ..word()
    }));
    let starts =
        |host: &str, record: &Record| may_start(std::slice::from_ref(&asked), host, Some(record), false);
    assert!(
        starts("a", &pair).is_ok(),
        "its pair was recorded, and it did not know"
    );
    assert!(starts("c", &pair).is_err() && starts("a", &won).is_err());
    let mut alone = won.clone();
    alone.owner.host = "a".into();
    let announced = ImageWord {
        next_term: 5,
        ..word()
    };
    assert!(
        may_start(&[offer(Some(announced))], "a", Some(&alone), false).is_ok(),
        "a primary that has won the right to act alone has written all that there is"
    );
}

#[test]
fn a_primary_that_was_replaced_before_it_acted_alone_has_the_last_image() {
    // It has won term 5 over the pair of term 4, and its record said that it acts; it never did,
    // and b has won.
    let mut won = record(6, 4, Phase::Won);
    won.peer = Some(Incarnation {
        host: "a".into(),
        nonce: 1,
    });
    let starts = |host: &str, term, next_term| {
        let word = ImageWord {
            term,
            next_term,
            ..word()
        };
        may_start(&[offer(Some(word))], host, Some(&won), false).is_ok()
    };
    assert!(starts("a", 5, 0));
    assert!(!starts("c", 5, 0), "that is of another pair");
    assert!(
        !starts("a", 5, 5),
        "the first sync of a pair that was not recorded"
    );
    assert!(!starts("a", 3, 0) && !starts("a", 7, 0));
    assert!(!starts("b", 5, 0), "it may lack what the primary had flushed");
}

#[test]
fn the_image_of_a_pair_that_may_never_have_been_recorded_counts_only_where_the_record_names_its_host() {
    let first_sync = ImageWord {
        next_term: 4,
        ..word()
    };
    let starts = |record: &Record, host: &str| {
        may_start(&[offer(Some(first_sync.clone()))], host, Some(record), false).is_ok()
    };
    let mut pair = record(4, 4, Phase::Acting);
    pair.peer = Some(Incarnation {
        host: "a".into(),
        nonce: 1,
    });
    assert!(starts(&pair, "a"), "it was recorded");
    assert!(!starts(&pair, "c"), "the term is that of another pair");
    assert!(
        !starts(&record(4, 4, Phase::Stopped), "a"),
        "the primary was stopped alone, later"
    );
}

#[test]
fn after_a_clean_stop_either_image_that_has_everything_starts() {
    let stopped = record(5, 5, Phase::Stopped);
    assert!(starts(
        Some(ImageWord {
            state: ImageState::Stopped,
            ..word()
        }),
        Some(&stopped)
    ));
    assert!(
        !starts(Some(word()), Some(&stopped)),
        "its last writes may be missing"
    );
    assert!(!starts(
        Some(ImageWord {
            state: ImageState::Stopped,
            term: 3,
            ..word()
        }),
        Some(&stopped)
    ));
}

#[test]
fn no_vm_starts_from_an_image_that_lacks_what_it_was_stopped_with() {
    let stopped = record(5, 5, Phase::Stopped);
    for lacks in [false, true] {
        let image = ImageWord {
            next_term: announced_term(&stopped, || lacks),
            ..word()
        };
        assert_eq!(starts(Some(image), Some(&stopped)), !lacks);
    }
    let acting = record(5, 4, Phase::Acting);
    let term = announced_term(&acting, || {
        unreachable!("only what is stopped lacks something for good")
    });
    assert_eq!(term, 5);
}

#[test]
fn a_half_copied_image_never_starts_whatever_the_operator_says() {
    let target = ImageWord {
        state: ImageState::Target,
        ..word()
    };
    let acting = record(4, 4, Phase::Acting);
    for adopt in [false, true] {
        assert!(may_start(&[offer(Some(target.clone()))], "b", Some(&acting), adopt).is_err());
    }
    assert!(may_start(&[offer(None)], "b", Some(&acting), true).is_ok());
}

#[test]
fn a_term_that_was_about_to_begin_has_begun_only_if_it_is_this_hosts() {
    let asked_for = ImageWord {
        term: 3,
        next_term: 4,
        ..word()
    };
    let record = record(4, 4, Phase::Acting);
    let starts =
        |host: &str| may_start(&[offer(Some(asked_for.clone()))], host, Some(&record), false).is_ok();
    assert!(starts("b"), "its record did not get so far");
    assert!(!starts("a"), "b has won the term that a asked for");
}

#[test]
fn an_image_that_was_to_be_the_first_and_never_ran_counts_as_new() {
    let about_to_be = ImageWord {
        lineage: 9,
        term: 0,
        next_term: 1,
        ..word()
    };
    let first = record(1, 1, Phase::Acting);
    let starts = |host: &str, record: Option<&Record>| {
        may_start(&[offer(Some(about_to_be.clone()))], host, record, false).is_ok()
    };
    assert!(
        starts("b", Some(&first)),
        "it has won, and was cut before it wrote"
    );
    assert!(!starts("a", Some(&first)), "another was the first");
    assert!(starts("a", None));
    assert_eq!(planned(Some(about_to_be.clone())), Ok(false));
}

#[test]
fn the_records_of_a_side_that_declares_itself_alone_do_not_go_back_to_its_pair() {
    let mut ruled = Ruled::default();
    assert!(ruled.lacks(4));
    ruled.note(4);
    assert!(!ruled.lacks(4));
    // The arbiter is being told; a last ack of the pair comes.
    ruled.note(5);
    assert!(!ruled.lacks(4), "the last image would be of an older reign");
    assert!(!ruled.lacks(5) && ruled.lacks(6));
    ruled.forget();
    assert!(ruled.lacks(6));
}

#[test]
fn the_history_of_an_image_through_a_copy_a_pair_and_a_stop() {
    let plan = CopyDisk {
        disk: "blk0".to_owned(),
        lineage: 7,
        term: 3,
        base: 9,
        only_marked: false,
    };
    let terms = |history: &ImageHistory| (history.word.term, history.word.next_term, history.paired_term);
    let mut target = ImageHistory::target(&plan);
    assert_eq!(
        (target.word.lineage, target.word.base, target.word.state),
        (7, 9, ImageState::Target)
    );
    assert_eq!(terms(&target), (3, 0, 0));
    target.become_whole(4);
    assert_eq!(
        (terms(&target), target.word.state),
        ((4, 4, 4), ImageState::Whole),
        "recorded or not"
    );
    target.note_recorded();
    assert_eq!(terms(&target), (4, 0, 4));
    target.stop();
    assert_eq!(
        (terms(&target), target.word.state),
        ((4, 0, 4), ImageState::Stopped)
    );

    let mut source = ImageHistory::first(7, 8, 0);
    source.announce(2);
    assert_eq!(terms(&source), (0, 2, 0));
    source.rule(2, true);
    assert_eq!(terms(&source), (2, 0, 2));
    source.rule(3, false);
    assert_eq!(terms(&source), (3, 0, 2), "the pair was before");
    source.become_source(&CopyDisk {
        base: 8,
        ..plan.clone()
    });
    assert_eq!(
        terms(&source),
        (3, 0, 2),
        "it has that base with the other image still"
    );
    source.become_source(&plan);
    assert_eq!((source.word.base, terms(&source)), (9, (3, 0, 0)));
}
