//! Output waits for a sync that contains it, and for nothing else.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use kemari::control::Status;
use rustix::process::Signal;

use crate::support::{Host, Plan, ask, play};

/// Far less than the longest time between two syncs here: output that nobody looked at would wait for that.
const WAIT_MAX: Duration = Duration::from_secs(15);

#[test]
fn pipelined_output_does_not_wait_for_the_clock() {
    let plan = Plan {
        mode: "pipelined",
        protection: "max_interval_ms = 60000",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        for _ in 0..3 {
            let begin = Instant::now();
            scene.order(&["KICKLOOP", "10", "2"])?;
            ensure!(
                begin.elapsed() < WAIT_MAX,
                "two seconds of kicks took {:?}: a kick waited for the clock",
                begin.elapsed()
            );
            clients.work(Duration::from_secs(1))?;
        }
        clients.finish()
    });
}

/// The thread of the guest's only vCPU hands a sync to the socket, too: the guest cannot run meanwhile.
#[test]
fn a_pause_lasts_until_the_vcpu_can_run() {
    let plan = Plan {
        mode: "pipelined",
        protection: "gather = \"off\"\ndelta = \"off\"",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let before = scene.await_protected(Host::A)?.timings;
        scene.order(&["KICKLOOP", "300", "2"])?;
        let has_seen = |status: &Status| status.timings.pause_us.count >= before.pause_us.count + 100;
        let after = scene.await_status("its syncs", Host::A, has_seen)?.timings;
        let pause_us = after.pause_us.sum_us - before.pause_us.sum_us;
        let capture_us = after.capture_us.sum_us - before.capture_us.sum_us;
        let send_us = after.send_us.sum_us - before.send_us.sum_us;
        // Some syncs may be another thread's.
        ensure!(
            pause_us >= capture_us + send_us / 2,
            "paused for {pause_us} us in all, with {capture_us} us of captures and {send_us} us of sending"
        );
        Ok(())
    });
}

/// Pages that the guest writes before it answers. They are more than it changes in any other way until then.
const WRITTEN_PAGES: u64 = 3000;

/// So long it takes the guest: all but the last have gone ahead then.
const THINKS_MS: u64 = 1500;

#[test]
fn pages_go_ahead_of_their_sync_and_are_nothing_without_it() {
    let plan = Plan {
        protection: "max_interval_ms = 60000",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let think = ["DIRTY", &WRITTEN_PAGES.to_string(), &THINKS_MS.to_string()];
        let before = scene.await_protected(Host::A)?.counters;
        scene.order(&think)?;
        // What a status shows is a moment old.
        let was_sent = |status: &Status| status.counters.pages >= before.pages + WRITTEN_PAGES;
        let after = scene.await_status("the pages sent", Host::A, was_sent)?.counters;
        ensure!(
            after.pages_ahead >= WRITTEN_PAGES / 2 && after.syncs_failed == 0,
            "they did not go ahead: {after:?}"
        );
        ensure!(
            after.pages - before.pages < WRITTEN_PAGES * 3 / 2,
            "they were sent once more: {before:?}, then {after:?}"
        );
        scene.order(&["CHECK"])?;
        let (load, begun) = (scene.load(), Instant::now());
        thread::scope(|scope| {
            let thinking = scope.spawn(|| ask(&load, &think));
            // Half of the time is over, and the sync has begun.
            thread::sleep(Duration::from_millis(THINKS_MS / 2).saturating_sub(begun.elapsed()));
            scene.kill(Host::A)?;
            scene.await_primary(Host::B)?;
            scene.order(&["CHECK"])?;
            thinking.join().expect("it does not panic")?;
            scene.order(&["CHECK"])
        })
    });
}

/// A sync is slow, and meanwhile the guest dirties more than the secondary could stage: it is paused at the
/// limit, and the pair stays together.
#[test]
fn a_guest_that_dirties_memory_during_a_slow_sync_waits_and_stays_protected() {
    let plan = Plan {
        mode: "pipelined",
        protection: "staging_mib_max = 16\nmax_dirty_pages = 1500",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let before = scene.await_protected(Host::A)?;
        let load = scene.load();
        thread::scope(|scope| {
            // The secondary stages 3,584 pages, and stands still while the guest writes twice as many.
            let writing = scope.spawn(|| ask(&load, &["DIRTY", "9000", "700"]));
            thread::sleep(Duration::from_millis(150));
            scene.signal(Host::B, Signal::STOP)?;
            thread::sleep(Duration::from_millis(600));
            scene.signal(Host::B, Signal::CONT)?;
            writing.join().expect("it does not panic")
        })?;
        scene.order(&["CHECK"])?;
        scene.ensure_together(&before)
    });
}
