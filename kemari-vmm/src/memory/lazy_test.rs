use std::time::Duration;

use vm_memory::GuestAddress;

use super::*;
use crate::memory::{MEMORY_BYTES_MIN, create, page_count, write_page};

const NO_LIMIT: u64 = u64::MAX;

fn both(bytes: u64) -> (Memory, Memory) {
    (create(bytes).expect("memory"), create(bytes).expect("memory"))
}

fn page_of(memory: &Memory, gfn: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    read_page(memory, gfn, &mut page).expect("a page of the guest");
    page
}

fn fill(memory: &Memory, gfn: u64, byte: u8) {
    write_page(memory, gfn, &[byte; PAGE_BYTES]).expect("a page of the guest");
}

#[test]
fn the_copy_is_of_one_moment_whatever_changes() {
    // With a hole, and a region behind it.
    let (original, copy) = both((3 << 30) + (64 << 20));
    let gfns = [0, 5, 700, (4 << 30) / PAGE_BYTES as u64 + 3];
    for (index, gfn) in gfns.into_iter().enumerate() {
        fill(&original, gfn, index as u8 + 1);
    }
    let lazy = LazyCopy::begin(&original, &copy, NO_LIMIT).expect("page faults can be answered");
    for (index, gfn) in gfns.into_iter().enumerate() {
        if index % 2 == 0 {
            assert_eq!(
                page_of(&copy, gfn),
                [index as u8 + 1; PAGE_BYTES],
                "touched before"
            );
        }
        lazy.keep(gfn);
        fill(&original, gfn, 0xee);
        assert_eq!(page_of(&copy, gfn), [index as u8 + 1; PAGE_BYTES], "page {gfn}");
    }
    // What the copy's user writes is the copy's.
    fill(&copy, gfns[1], 0x77);
    lazy.keep(gfns[1]);
    assert_eq!(page_of(&copy, gfns[1]), [0x77; PAGE_BYTES]);
    assert_eq!(page_of(&original, gfns[1]), [0xee; PAGE_BYTES]);
    assert_eq!(lazy.copied_bytes(), 4 * PAGE_BYTES as u64);
    assert!(!lazy.is_over());
}

#[test]
fn zeros_that_are_only_kept_take_no_memory_and_pages_that_do_not_exist_none() {
    let (original, copy) = both(MEMORY_BYTES_MIN);
    let lazy = LazyCopy::begin(&original, &copy, 0).expect("page faults can be answered");
    // A few: keeping may take a part of the time only.
    for gfn in (0..page_count(&original)).step_by(10) {
        lazy.keep(gfn);
        assert_eq!(page_of(&copy, gfn), [0; PAGE_BYTES]);
    }
    lazy.keep(page_count(&original));
    lazy.keep(u64::MAX);
    assert_eq!(lazy.copied_bytes(), 0);
    assert!(!lazy.is_over());
    fill(&copy, 9, 1);
    fill(&original, 10, 1);
    assert_eq!(page_of(&copy, 10), [0; PAGE_BYTES]);
}

#[test]
fn more_than_there_was_to_be_is_told() {
    let (original, copy) = both(MEMORY_BYTES_MIN);
    (0..3).for_each(|gfn| fill(&original, gfn, 1));
    let lazy = LazyCopy::begin(&original, &copy, 2 * PAGE_BYTES as u64).expect("page faults can be answered");
    (0..2).for_each(|gfn| lazy.keep(gfn));
    assert!(!lazy.is_over());
    assert_eq!(page_of(&copy, 2), [1; PAGE_BYTES]);
    assert!(lazy.is_over() && !lazy.has_failed());
}

/// They were not counted: a guest could write all its memory.
#[test]
fn zeros_count_once_they_are_touched_for_they_may_be_written() {
    let (original, copy) = both(MEMORY_BYTES_MIN);
    let lazy = LazyCopy::begin(&original, &copy, 2 * PAGE_BYTES as u64).expect("page faults can be answered");
    (0..2).for_each(|gfn| fill(&copy, gfn, 1));
    assert!(!lazy.is_over());
    fill(&copy, 2, 1);
    assert!(lazy.is_over() && !lazy.has_failed());
}

/// Who touched it waited for ever.
#[test]
fn a_page_that_cannot_be_given_lets_everybody_go_on() {
    let memory =
        |pages: usize| Memory::from_ranges(&[(GuestAddress(0), pages * PAGE_BYTES)]).expect("memory");
    let (original, copy) = (memory(32), memory(64));
    fill(&original, 0, 1);
    // The original has no such page as the last ones.
    let lazy = LazyCopy::start(&original, &copy, NO_LIMIT).expect("page faults can be answered");
    assert_eq!(page_of(&copy, 0), [1; PAGE_BYTES]);
    let (done, ended) = std::sync::mpsc::channel();
    for gfn in [40, 41] {
        let (copy, done) = (copy.clone(), done.clone());
        thread::spawn(move || done.send(Box::new(page_of(&copy, gfn))));
    }
    for _ in 0..2 {
        let page = ended.recv_timeout(Duration::from_secs(20));
        assert_eq!(*page.expect("nobody waits"), [0; PAGE_BYTES]);
    }
    assert!(lazy.has_failed() && lazy.is_over());
    lazy.keep(1);
}

/// A secondary's loop has something else to do.
#[test]
fn keeping_takes_a_part_of_the_time_only() {
    let ms = Duration::from_millis;
    assert!(!is_too_much(ms(50), ms(0)) && is_too_much(ms(51), ms(0)));
    assert!(!is_too_much(ms(150), ms(1000)) && is_too_much(ms(151), ms(1000)));
    let (original, copy) = both(MEMORY_BYTES_MIN);
    (0..3).for_each(|gfn| fill(&original, gfn, 1));
    let lazy = LazyCopy::begin(&original, &copy, NO_LIMIT).expect("page faults can be answered");
    lazy.keep(0);
    let hour_ns = ms(3_600_000).as_nanos() as u64;
    lazy.pages.keeping_ns.store(hour_ns, Ordering::Relaxed);
    assert!(!lazy.is_over());
    lazy.keep(1);
    assert!(lazy.is_over());
    let why = lazy.failure().expect("it has failed");
    assert!(why.contains("slow it down"), "{why}");
    // From here on nothing is kept, and nobody waits.
    let copied_bytes = lazy.copied_bytes();
    lazy.keep(2);
    assert_eq!(lazy.copied_bytes(), copied_bytes);
    assert_eq!(page_of(&copy, 2), [0; PAGE_BYTES]);
}

#[test]
fn threads_that_touch_and_change_the_same_pages_see_one_moment() {
    let (original, copy) = both(MEMORY_BYTES_MIN);
    let pages = 4096;
    (0..pages).for_each(|gfn| fill(&original, gfn, 1));
    let lazy = LazyCopy::begin(&original, &copy, NO_LIMIT).expect("page faults can be answered");
    thread::scope(|scope| {
        scope.spawn(|| {
            for gfn in 0..pages {
                lazy.keep(gfn);
                fill(&original, gfn, 2);
            }
        });
        for order in [0, 1] {
            let copy = &copy;
            scope.spawn(move || {
                for gfn in 0..pages {
                    let gfn = if order == 0 { gfn } else { pages - 1 - gfn };
                    assert_eq!(page_of(copy, gfn), [1; PAGE_BYTES]);
                }
            });
        }
    });
    lazy.end();
    lazy.keep(0);
    drop(lazy);
    assert_eq!(page_of(&copy, 0), [0; PAGE_BYTES], "its memory was given back");
    assert_eq!(page_of(&original, 0), [2; PAGE_BYTES]);
}

#[test]
fn memories_of_different_sizes_are_refused() {
    let (original, _) = both(MEMORY_BYTES_MIN);
    let (copy, _) = both(MEMORY_BYTES_MIN + (1 << 20));
    assert!(LazyCopy::begin(&original, &copy, 0).is_err());
}
