//! The first copy sends what is not zero, reads what was ever written and no more, and misses nothing that is
//! written meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kemari_sync::wire::{FrameHeader, HEADER_BYTES, PageBatch, PageContent};
use kemari_vmm::dirty::DirtySource;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::capture_test::machine;
use super::*;

/// More than what lies below the hole, in MiB.
const BOTH_SIDES_MIB: u64 = 3072 + 64;

/// A running guest is copied from until it has written so many pages, or for so long.
const WRITTEN_PAGES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);

type Sent = BTreeMap<u64, [u8; PAGE_BYTES]>;

/// Does a step of the round; adds what it sends. Whether the round goes on.
fn step(copy: &mut Copy, machine: &Machine, sent: &mut Sent) -> bool {
    let frame = match copy.next_frame(machine).expect("memory is read") {
        Next::Frame(frame) => frame,
        Next::Nothing => return true,
        Next::Done => return false,
    };
    let (head, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a frame");
    let kind = FrameHeader::parse(head).expect("a frame").kind;
    let batch = PageBatch::parse(kind, body, |gfn| memory::has_page(machine.memory(), gfn));
    sent.extend(
        batch
            .expect("a batch of pages")
            .iter()
            .map(|page| match page.content {
                PageContent::Raw(bytes) => (page.gfn, *bytes),
                PageContent::Zero => (page.gfn, [0; PAGE_BYTES]),
                PageContent::Delta { .. } => panic!("nothing was synced yet"),
            }),
    );
    true
}

fn finish_round(copy: &mut Copy, machine: &Machine, sent: &mut Sent) {
    while step(copy, machine, sent) {}
}

/// All pages of the machine that are not zero.
fn not_zero(machine: &Machine) -> Sent {
    let mut page = [0; PAGE_BYTES];
    let pages = memory::all_pages(machine.memory()).filter_map(|gfn| {
        memory::read_page(machine.memory(), gfn, &mut page).expect("a page of the guest");
        (page != [0; PAGE_BYTES]).then_some((gfn, page))
    });
    pages.collect()
}

fn write(machine: &Machine, gfn: u64, bytes: &[u8]) {
    memory::write_in_page(machine.memory(), gfn, 40, bytes).expect("a page of the guest");
}

/// Looking at much memory may take a slow host long, in which nobody else of the loop would have a turn.
#[test]
fn untouched_memory_is_looked_at_piece_by_piece() {
    for walk in [Touched::new(), Touched::blind()] {
        let machine = machine(1024, DirtySource::Best);
        let (mut copy, mut debt) = (Copy::default(), Debt::default());
        copy.begin_first(&machine, &mut debt, walk).unwrap();
        let (mut steps, mut sent, mut empty, mut done) = (0, Sent::new(), 0, 0);
        loop {
            let before = sent.len();
            let goes_on = step(&mut copy, &machine, &mut sent);
            assert!(
                copy.rest.len() <= 4096,
                "the pages of one piece are known at a time"
            );
            assert!(copy.done_pages - done <= 4096 + LOOKED_PAGES_MAX as u64);
            assert!(copy.done_pages <= copy.total_pages);
            done = copy.done_pages;
            if !goes_on {
                break;
            }
            steps += 1;
            empty += usize::from(sent.len() == before);
        }
        assert_eq!(copy.done_pages, copy.total_pages, "all of it");
        assert_eq!(copy.total_pages, 1 << 18);
        assert!(
            !sent.is_empty() && empty > 16 && steps >= 64,
            "{steps} steps, {empty} without a page"
        );
    }
}

#[test]
fn a_page_that_has_become_zero_is_sent_again_as_what_it_is_now() {
    const PAGE: u64 = 0x2f00;
    let machine = machine(64, DirtySource::Best);
    write(&machine, PAGE, b"something");
    let (mut copy, mut debt, mut sent) = (Copy::default(), Debt::default(), Sent::new());
    copy.begin(&machine, &mut debt, true).expect("a dirty log");
    finish_round(&mut copy, &machine, &mut sent);
    assert_ne!(sent[&PAGE], [0; PAGE_BYTES]);
    write(&machine, PAGE, &[0; 9]);
    assert!(copy.end_round(&machine, &mut debt).expect("a dirty log") >= 1);
    copy.begin(&machine, &mut debt, false).expect("a round");
    finish_round(&mut copy, &machine, &mut sent);
    assert_eq!(sent[&PAGE], [0; PAGE_BYTES]);
}

#[test]
fn what_is_not_zero_is_sent_and_nothing_else_on_both_sides_of_the_hole() {
    let machine = machine(BOTH_SIDES_MIB, DirtySource::Best);
    let mut random = StdRng::seed_from_u64(31);
    let pages: Vec<u64> = memory::all_pages(machine.memory()).collect();
    let ends = [pages.len() - 1, pages.len() - (64 << 8), (3072 << 8) - 1];
    let places: Vec<usize> = (0..30)
        .map(|_| random.random_range(0..pages.len()))
        .chain(ends)
        .collect();
    for (number, place) in places.into_iter().enumerate() {
        // Some have been touched and are zero all the same.
        write(&machine, pages[place], &[u8::from(number % 4 != 0)]);
    }
    let round = |walk| {
        let (mut copy, mut debt, mut sent) = (Copy::default(), Debt::default(), Sent::new());
        copy.begin_first(&machine, &mut debt, walk).unwrap();
        finish_round(&mut copy, &machine, &mut sent);
        assert_eq!(
            (copy.done_pages, copy.total_pages),
            (pages.len() as u64, pages.len() as u64)
        );
        assert_eq!(
            copy.end_round(&machine, &mut debt).unwrap(),
            0,
            "nobody has written"
        );
        sent
    };
    let sent = round(Touched::new());
    assert!(sent.len() > 20);
    assert!(
        sent == round(Touched::blind()),
        "it is the same if the kernel does not tell"
    );
    assert!(sent == not_zero(&machine));
}

/// It is the walk that makes untouched memory nearly free: what nobody has written is not read,
/// which would give it a page.
#[test]
fn memory_that_nobody_has_written_is_not_read() {
    let machine = machine(1024, DirtySource::Best);
    let (mut copy, mut debt, mut sent) = (Copy::default(), Debt::default(), Sent::new());
    copy.begin(&machine, &mut debt, true).unwrap();
    finish_round(&mut copy, &machine, &mut sent);
    let (mut walk, mut found) = (Touched::new(), Vec::new());
    while walk.next_piece(machine.memory(), &mut found) > 0 {}
    assert!(
        found.len() < 100 << 8,
        "{} pages of the guest are there",
        found.len()
    );
}

#[test]
fn a_page_that_is_first_touched_behind_the_walk_is_in_the_next_round() {
    for source in [DirtySource::Best, DirtySource::Log] {
        let machine = machine(256, source);
        let (mut copy, mut debt, mut sent) = (Copy::default(), Debt::default(), Sent::new());
        // Passed over in the first half of the round, and far from what the guest's program uses.
        let late = BTreeSet::from([(60 << 8) + 3, 90 << 8]);
        copy.begin(&machine, &mut debt, true).unwrap();
        while copy.done_pages < copy.total_pages / 2 {
            assert!(step(&mut copy, &machine, &mut sent));
        }
        late.iter().for_each(|gfn| write(&machine, *gfn, b"late"));
        finish_round(&mut copy, &machine, &mut sent);
        assert!(
            late.iter().all(|gfn| !sent.contains_key(gfn)),
            "they were passed over"
        );
        assert_eq!(copy.end_round(&machine, &mut debt).unwrap(), 2);
        let mut again = Sent::new();
        copy.begin(&machine, &mut debt, false).unwrap();
        finish_round(&mut copy, &machine, &mut again);
        assert_eq!(BTreeSet::from_iter(again.keys().copied()), late);
        sent.append(&mut again);
        assert!(sent == not_zero(&machine));
    }
}

/// The guest touches memory all the time; what is dirty at the end makes the copy whole.
#[test]
fn a_guest_that_runs_meanwhile_is_copied_whole() {
    for source in [DirtySource::Best, DirtySource::Log] {
        let machine = machine(256, source);
        let (mut copy, mut debt, mut copied) = (Copy::default(), Debt::default(), Sent::new());
        // It has touched nothing yet.
        copy.begin(&machine, &mut debt, true).unwrap();
        step(&mut copy, &machine, &mut copied);
        machine.resume();
        finish_round(&mut copy, &machine, &mut copied);
        let begin = Instant::now();
        while copied.len() < WRITTEN_PAGES && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            copy.end_round(&machine, &mut debt).unwrap();
            copy.begin(&machine, &mut debt, false).unwrap();
            finish_round(&mut copy, &machine, &mut copied);
        }
        machine.pause();
        copy.end_round(&machine, &mut debt).unwrap();
        copy.begin(&machine, &mut debt, false).unwrap();
        finish_round(&mut copy, &machine, &mut copied);
        assert!(copied.len() >= WRITTEN_PAGES, "only {} pages", copied.len());
        copied.retain(|_, page| *page != [0; PAGE_BYTES]);
        assert!(copied == not_zero(&machine));
    }
}
