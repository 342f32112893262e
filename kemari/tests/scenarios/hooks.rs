//! `[[hook]]`: who wants to know is told what happens, and nobody waits for it.

use std::fs::{self, OpenOptions};
use std::io::Write;

use anyhow::{Result, ensure};

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};

/// Two hooks in the configuration of both hosts: one writes down what it is told, the other hangs.
fn add_hooks(scene: &Scene) -> Result<()> {
    let on = r#"["protected", "unprotected", "takeover", "stopped"]"#;
    let told = scene.path("told");
    let hooks = format!(
        "\n[[hook]]\non = {on}\ncommand = [\"sh\", \"-c\", \"cat >> {}\"]\n\
         [[hook]]\non = {on}\ncommand = [\"sleep\", \"60\"]\ntimeout_ms = 2000\n",
        told.display()
    );
    let mut config = OpenOptions::new().append(true).open(scene.config("scene.toml"))?;
    Ok(config.write_all(hooks.as_bytes())?)
}

/// What was told, as `on` and `host`.
fn told(scene: &Scene) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(scene.path("told")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|told| {
            let word = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
            (word("on"), word("host"), told["why"].to_string())
        })
        .collect()
}

fn await_told(scene: &Scene, on: &str, host: Host, why: &str) -> Result<()> {
    let what = format!("the alarm `{on}` of {}", host.name());
    wait_for(&what, PATIENCE, || {
        let all = told(scene);
        let found = all
            .iter()
            .any(|told| told.0 == on && told.1 == host.name() && told.2.contains(why));
        Ok(found.then_some(()))
    })
}

#[test]
fn who_wants_to_know_is_told_what_happens_and_nobody_waits_for_it() {
    play(&Plan::default(), |scene| {
        add_hooks(scene)?;
        scene.protect()?;
        await_told(scene, "protected", Host::A, "")?;
        let clients = scene.clients()?;
        scene.take_over_from(Host::A, &clients)?;
        await_told(scene, "takeover", Host::B, "")?;
        await_told(scene, "unprotected", Host::B, "")?;
        // Its steward has outlived it.
        await_told(scene, "stopped", Host::A, "without a word")?;
        clients.finish()?;
        let asked = scene.ask(Host::B, &["stop"])?;
        ensure!(asked.success, "the order to stop was refused: {}", asked.text);
        scene.await_clean_end(Host::B)?;
        await_told(scene, "stopped", Host::B, "the VM is stopped")?;
        let log = scene.log(Host::B);
        ensure!(
            log.contains("the hook `sleep 60` did not end within"),
            "B says nothing of it: {log}"
        );
        Ok(())
    });
}
