//! The preflight, with the other side there.

use anyhow::{Result, ensure};

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};

#[test]
fn the_other_side_is_asked_and_a_key_that_differs_is_named() {
    let plan = Plan {
        tls: true,
        ..Plan::default()
    };
    play(&plan, |scene| -> Result<()> {
        scene.secondary(Host::B)?;
        let checked = wait_for("the other side's answer", PATIENCE, || {
            let checked = scene.ask(Host::A, &["check"])?;
            Ok(checked.text.contains("peer `b` follows at").then_some(checked))
        })?;
        ensure!(!checked.text.contains("differs"), "{}", checked.text);
        let other = Plan {
            mode: "pipelined",
            memory_mib: plan.memory_mib + 1,
            ..plan.clone()
        };
        scene.write_config("other.toml", &other)?;
        let checked = scene.ask_with(Host::A, &["check"], "other.toml")?;
        ensure!(!checked.success, "{}", checked.text);
        for key in ["protection.mode", "machine.memory_mib"] {
            ensure!(checked.text.contains(key), "{key} is not named: {}", checked.text);
        }
        Ok(())
    });
}

#[test]
fn a_check_is_green_on_both_hosts_of_a_pair() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        for host in Host::BOTH {
            is_green(scene, host)?;
        }
        let changed = Plan {
            memory_mib: Plan::default().memory_mib + 1,
            ..Plan::default()
        };
        scene.write_config("changed.toml", &changed)?;
        for host in Host::BOTH {
            let checked = scene.ask_with(host, &["check"], "changed.toml")?;
            let warned = checked.text.contains("was started with another configuration");
            ensure!(warned, "on {}: {}", host.name(), checked.text);
        }
        Ok(())
    });
}

fn is_green(scene: &Scene, host: Host) -> Result<()> {
    let checked = scene.ask(host, &["check"])?;
    ensure!(checked.success, "on {}: {}", host.name(), checked.text);
    let connected = format!("peer `{}` is connected", host.other().name());
    ensure!(
        checked.text.contains(&connected) && !checked.text.contains("another configuration"),
        "on {}: {}",
        host.name(),
        checked.text
    );
    Ok(())
}
