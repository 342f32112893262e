//! Output waits for a sync that contains it, and for nothing else.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::support::{Plan, play};

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
