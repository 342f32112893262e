//! The dirty log is exact enough: a memory built from the captured dirty pages alone equals the machine's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kemari_vmm::dirty::DirtySource;
use kemari_vmm::memory::{self, Memory, PAGE_BYTES};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::support::pair::{copy_all, first_difference};
use crate::support::random::Random;
use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Captures between two comparisons of the whole memory.
const CAPTURES_BETWEEN_COMPARISONS: usize = 100;
/// How long it may take until enough was seen.
const ENOUGH_TIME_MAX: Duration = Duration::from_secs(40);

/// What was seen.
#[derive(Debug)]
struct Seen {
    captures: usize,
    comparisons: usize,
    pages: usize,
    /// Pages that were dirty and had not changed.
    unchanged: usize,
    /// Pages that were left writable, and so counted as dirty, over all captures.
    hot: usize,
}

/// For so long, and, since a busy machine takes longer, until `enough` was seen; in the end it must be.
fn shadow_follows(
    source: DirtySource,
    memory_mib: u64,
    seed: u64,
    time: Duration,
    enough: impl Fn(&Seen) -> bool,
) -> Seen {
    let mut random = Random::new(seed);
    let mut rig = Rig::new("", memory_mib);
    rig.spec.dirty_source = source;
    let machine = rig.running();
    let load = Load::start(2);
    let is_over = Arc::new(AtomicBool::new(false));
    let worker = thread::spawn({
        let is_over = is_over.clone();
        move || work(&is_over)
    });
    machine.pause();
    let shadow = memory::create(memory_mib << 20).expect("a second memory");
    machine.dirty().start().expect("the dirty log starts");
    {
        let frozen = machine.freeze();
        frozen.hold_output();
        frozen.capture_output(0);
        frozen
            .collect_dirty(&mut Vec::new())
            .expect("the dirty log is read");
        copy_all(machine.memory(), &shadow);
    }
    machine.release(0);
    machine.resume();

    let mut seen = Seen {
        captures: 0,
        comparisons: 0,
        pages: 0,
        unchanged: 0,
        hot: 0,
    };
    let mut owed = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time || !enough(&seen) && begin.elapsed() < ENOUGH_TIME_MAX {
        thread::sleep(Duration::from_micros(random.below(1500)));
        seen.captures += 1;
        let epoch = seen.captures as u64;
        machine.pause();
        let (mut states, mut pages) = (Vec::new(), std::mem::take(&mut owed));
        let fails = random.percent(10);
        let compares = !fails && seen.captures.is_multiple_of(CAPTURES_BETWEEN_COMPARISONS);
        if compares {
            // The buffers of a read that is under way are written without a mark until it has ended.
            machine.drain_disks();
        }
        {
            let frozen = machine.freeze();
            frozen.capture_output(epoch);
            frozen.save_state(&mut states).expect("the state is saved");
            frozen.collect_dirty(&mut pages).expect("the dirty log is read");
            if !fails {
                seen.hot += machine.dirty().hot_pages();
                seen.pages += pages.len();
                seen.unchanged += follow(machine.memory(), &shadow, &pages);
                if compares {
                    seen.comparisons += 1;
                    let missed = first_difference(machine.memory(), &shadow);
                    assert_eq!(
                        missed, None,
                        "a changed page was not dirty (seed {seed}, capture {epoch})"
                    );
                }
            }
        }
        if fails {
            owed = pages;
            machine.give_back(epoch);
        } else {
            machine.release(epoch);
        }
        machine.resume();
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(enough(&seen), "{source:?}: {seen:?}");
    machine.open_gate();
    worker.join().expect("the guest answers");
    load.stop();
    Client::connect().ok("CHECK");
    seen
}

/// Writes the dirty pages into the shadow; returns how many of them were not different.
fn follow(from: &Memory, shadow: &Memory, pages: &[u64]) -> usize {
    let (mut ours, mut theirs) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
    let mut unchanged = 0;
    for &page in pages {
        memory::read_page(from, page, &mut ours).expect("a page of the guest");
        memory::read_page(shadow, page, &mut theirs).expect("a page of the guest");
        unchanged += usize::from(ours == theirs);
        memory::write_page(shadow, page, &ours).expect("a page of the guest");
    }
    unchanged
}

/// Lets the guest write pages, read and write its disk, and kick.
fn work(is_over: &AtomicBool) {
    let mut client = Client::connect();
    while !is_over.load(Ordering::Relaxed) {
        for request in ["DIRTY 300", "BLKTEST 60 16", "KICK 5 10", "RESETQ", "CHECK"] {
            client.ok(request);
        }
    }
}

#[test]
fn dirty_pages_are_all_that_changed() {
    let _watchdog = Watchdog::new("dirty pages", 120);
    for source in [DirtySource::Best, DirtySource::Log] {
        let seen = shadow_follows(source, 64, 21, Duration::from_secs(5), |seen| {
            let leaves_enough_writable = source == DirtySource::Log || seen.hot > 3_000;
            leaves_enough_writable && seen.captures > 300 && seen.comparisons > 2 && seen.pages > 3_000
        });
        eprintln!(
            "{source:?}: {} captures, {} comparisons, {} dirty pages, {} of them unchanged, {} left writable",
            seen.captures, seen.comparisons, seen.pages, seen.unchanged, seen.hot
        );
        assert_eq!(seen.hot > 3_000, source == DirtySource::Best);
        // Of what is left writable, and protected again, some has not changed. The log is exact.
        assert!(
            source == DirtySource::Best || seen.unchanged * 2 < seen.pages,
            "most pages in the log had not changed"
        );
    }
}

/// Signals to the thread that captures, as the machine's own threads send them to a vCPU's, lose no page. Nor
/// do they hinder it from building a machine.
#[test]
fn signals_lose_no_dirty_page() {
    let _watchdog = Watchdog::new("signals", 120);
    let _signals = Signals::to_this_thread();
    let seen = shadow_follows(DirtySource::Best, 64, 23, Duration::from_secs(4), |seen| {
        seen.captures > 100 && seen.comparisons > 0
    });
    eprintln!("{} captures, {} comparisons", seen.captures, seen.comparisons);
}

/// Signals that do nothing, all the time, until it is dropped.
struct Signals {
    enough: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Signals {
    fn to_this_thread() -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: the handler does nothing, and no other test uses this signal.
        unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t) };
        // SAFETY: it names the calling thread, which outlives the sender: dropping `Self` waits for that.
        let to = unsafe { libc::pthread_self() };
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let sender = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: as above.
                unsafe { libc::pthread_kill(to, libc::SIGUSR1) };
                thread::sleep(Duration::from_micros(20));
            }
        });
        Self {
            enough,
            sender: Some(sender),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            sender.join().expect("the sender of signals");
        }
    }
}

/// A guest that dirties more pages than its ring has entries goes on, and none of them is missed.
#[test]
fn a_full_ring_is_emptied_and_nothing_is_lost() {
    const WRITTEN: usize = 100_000;
    let _watchdog = Watchdog::new("a full dirty ring", 120);
    let rig = Rig::new("", 768);
    let machine = rig.running();
    machine.pause();
    let shadow = memory::create(768 << 20).expect("a second memory");
    {
        let _frozen = machine.freeze();
        machine.dirty().start().expect("the dirty log starts");
        copy_all(machine.memory(), &shadow);
    }
    machine.resume();
    Client::connect().ok(&format!("DIRTY {WRITTEN}"));
    machine.pause();
    let mut pages = Vec::new();
    let frozen = machine.freeze();
    frozen.collect_dirty(&mut pages).expect("the dirty log is read");
    assert!(pages.len() >= WRITTEN, "{} dirty pages", pages.len());
    assert!(pages.is_sorted_by(|a, b| a < b), "each page once, in order");
    follow(machine.memory(), &shadow, &pages);
    assert_eq!(first_difference(machine.memory(), &shadow), None);
}

/// Memory beyond the hole below 4 GiB is a region, a slot and a log of its own.
#[test]
fn dirty_pages_are_found_on_both_sides_of_the_hole() {
    let _watchdog = Watchdog::new("dirty pages above 4 GiB", 120);
    let rig = Rig::without_network("", 4 << 10);
    let machine = rig.machine();
    machine.boot().expect("the bare guest boots");
    machine.dirty().start().expect("the dirty log starts");
    machine.resume();
    let high = 4u64 << 30;
    let mut expected = Vec::new();
    for round in 0..20u64 {
        machine.pause();
        // Written by the VMM: the first, the last and some page above 4 GiB, and the last one below the hole.
        let last = machine.memory().last_addr().0;
        let places = [high, last & !0xfff, high + round * 0x12_3000, (3 << 30) - 1];
        for address in places {
            let value = [round as u8 + 1];
            machine
                .memory()
                .write_slice(&value, GuestAddress(address))
                .expect("memory of the guest");
        }
        let mut pages = Vec::new();
        machine
            .freeze()
            .collect_dirty(&mut pages)
            .expect("the dirty log is read");
        expected.extend(places.map(|address| address / PAGE_BYTES as u64));
        for page in &expected {
            assert!(
                pages.contains(page),
                "page {page:#x} is not in the log of round {round}"
            );
        }
        assert!(pages.iter().all(|page| memory::has_page(machine.memory(), *page)));
        expected.clear();
        machine.resume();
        thread::sleep(Duration::from_millis(2));
    }
    machine.pause();
    assert!(rig.console.text().contains("ready"), "{}", rig.console.text());
}

/// The same as the first test, with two regions.
#[test]
fn dirty_pages_are_all_that_changed_in_a_large_guest() {
    let _watchdog = Watchdog::new("dirty pages of a large guest", 120);
    shadow_follows(
        DirtySource::Best,
        4 << 10,
        22,
        Duration::from_millis(1500),
        |seen| seen.captures > 50,
    );
}
