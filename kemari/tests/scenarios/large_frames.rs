//! Hosts with a larger MTU than the switch between them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use kemari::control::Status;

use crate::support::{Host, Plan, play};

const JUMBO: u32 = 9000;
const SWITCH: u32 = 1500;
/// A syncing guest answers within this, and one that is held back for a secondary that is not heard does not:
/// it waits for the time-out of progress.
const ANSWER_MAX: Duration = Duration::from_millis(1400);
const PROGRESS_TIMEOUT_MS: u32 = 1500;

#[test]
fn a_switch_that_drops_large_frames_costs_the_guest_nothing_and_is_named() {
    let plan = Plan {
        progress_timeout_ms: PROGRESS_TIMEOUT_MS,
        ..Plan::default()
    };
    play(&plan, |scene| -> Result<()> {
        scene.net.set_replication_mtu(JUMBO)?;
        scene.secondary(Host::B)?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let load = scene.load();
        let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
        while begin.elapsed() < Duration::from_secs(5) {
            let asked = Instant::now();
            xtask::proof::client::ping(&load).context("the guest does not answer")?;
            slowest = slowest.max(asked.elapsed());
        }
        ensure!(slowest < ANSWER_MAX, "the guest stood still for {slowest:?}");
        scene.await_log(Host::A, "something on the way drops large packets")?;
        let narrow = format!(
            "packets above {SWITCH} bytes do not arrive at `b`, though this host sends up to {JUMBO} bytes"
        );
        scene.await_log(Host::A, &narrow)?;
        let checked = scene.ask(Host::A, &["check"])?;
        ensure!(
            checked.text.contains(&narrow),
            "check does not say so: {}",
            checked.text
        );
        let says_why = |status: &Status| {
            let because = status.waiting_because.as_deref().unwrap_or_default();
            because.contains("large packets") && because.contains(&narrow)
        };
        let status = scene.await_status("the reason", Host::A, says_why)?;
        ensure!(status.term == 1, "terms are used up: {status}");
        // The hosts get the switch's MTU: now there is nothing in the way.
        scene.net.set_replication_mtu(SWITCH)?;
        let status = scene.await_protected(Host::A)?;
        ensure!(status.term == 2, "{status}");
        Ok(())
    });
}
