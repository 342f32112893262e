//! Output waits for a sync that contains it, and for nothing else.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

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

/// Pages that the guest writes, one after the other and many times over, before it answers: that takes it a second or two.
const WRITTEN_PAGES: &str = "1000000";

/// By then pages have gone ahead, and nothing has left yet.
const THINKS: Duration = Duration::from_millis(700);

#[test]
fn pages_go_ahead_of_their_sync_and_are_nothing_without_it() {
    let plan = Plan {
        protection: "max_interval_ms = 60000\nmax_dirty_pages = 32768",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        scene.order(&["DIRTY", WRITTEN_PAGES])?;
        let counters = scene.await_protected(Host::A)?.counters;
        ensure!(
            counters.pages_ahead > 0 && counters.syncs_failed == 0,
            "nothing went ahead: {counters:?}"
        );
        scene.order(&["CHECK"])?;
        let load = scene.load();
        let thinking = thread::spawn(move || ask(&load, &["DIRTY", WRITTEN_PAGES]));
        thread::sleep(THINKS);
        scene.kill(Host::A)?;
        scene.await_primary(Host::B)?;
        scene.order(&["CHECK"])?;
        thinking.join().expect("it does not panic")?;
        scene.order(&["CHECK"])
    });
}
