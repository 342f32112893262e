//! `kemari stop`.

use anyhow::ensure;

use crate::support::{Host, Plan, play};

#[test]
fn a_stop_ends_both_sides_and_is_not_resurrected() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let mut seen = scene.clients()?.stop()?;
        let refused = scene.ask(Host::B, &["stop"])?;
        ensure!(
            !refused.success && refused.text.contains("primary"),
            "B took the order: {refused:?}"
        );
        let asked = scene.ask(Host::A, &["stop"])?;
        ensure!(asked.success, "the order to stop was refused: {}", asked.text);
        scene.await_clean_end(Host::A)?;
        scene.await_clean_end(Host::B)?;
        ensure!(
            !scene.log(Host::B).contains("the VM goes on here"),
            "B ran a VM that was stopped"
        );
        // It was recorded as stopped: whoever sees its disk may start it.
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        seen.judge()
    });
}
