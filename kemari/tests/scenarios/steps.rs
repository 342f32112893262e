//! Every step of a change of roles that can fail fails, and the VM goes on: on one host, with nothing lost.
//!
//! The steps are those that pass through `kemari/src/side/step.rs`, and list themselves: a change without a
//! fault writes down which it has passed. `KEMARI_ENUMERATE=1/1` has each of them fail by itself, once and
//! twice in a row, before it is done and after; that takes a quarter of an hour, and `2/5` the second fifth
//! of it. Without it several fail in one change.

use std::collections::BTreeSet;
use std::env::var;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kemari::control::{Protection, Role, Status};

use crate::support::{Clients, Host, PATIENCE, Plan, Scene, play, wait_for};

/// How the VM changes its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The primary is killed, and started again as a secondary.
    Takeover,
    /// By order: the old primary becomes the secondary.
    Switchover,
    /// It does not: the secondary is killed, and started again.
    Parting,
}

/// A fault of one change.
#[derive(Clone, Debug)]
struct Case {
    change: Change,
    from: Host,
    /// Where it strikes.
    at: Host,
    /// The steps that fail.
    steps: Vec<String>,
}

/// Which part of all cases is tried, of how many.
type Part = (usize, usize);

fn part() -> Result<Option<Part>> {
    let Ok(text) = var("KEMARI_ENUMERATE") else {
        return Ok(None);
    };
    let numbers = text
        .split_once('/')
        .and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
    let is_one = |part: &Part| (1..=part.1).contains(&part.0);
    let found = numbers.filter(is_one).context("KEMARI_ENUMERATE is not as 2/5");
    found.map(Some)
}

/// The directory in which a host lists its steps.
fn directory(scene: &Scene, host: Host) -> PathBuf {
    scene.path(&format!("{}.steps", host.name()))
}

fn start(scene: &mut Scene, host: Host, word: &str) -> Result<()> {
    let directory = directory(scene, host);
    fs::create_dir_all(&directory)?;
    let fault = format!("StepsIn={}", directory.display());
    scene.start(host, &[word], "scene.toml", &[("KEMARI_FAULTS", &fault)])
}

/// Who has the VM, and is protected by the other, which is ready.
fn await_settled(scene: &mut Scene) -> Result<Host> {
    wait_for("one primary that is protected and ready", PATIENCE, || {
        for host in Host::BOTH {
            ensure!(scene.is_running(host), "the process on {} has ended", host.name());
        }
        let roles = Host::BOTH.map(|host| scene.status(host).map(|status| status.role));
        let primary = match roles {
            [Some(Role::Primary), Some(Role::Secondary)] => Host::A,
            [Some(Role::Secondary), Some(Role::Primary)] => Host::B,
            _ => return Ok(None),
        };
        let is_ready = |status: Status| {
            let readiness = status.readiness.is_some_and(|readiness| readiness.ready);
            status.protection == Protection::On && readiness
        };
        Ok(scene.status(primary).is_some_and(is_ready).then_some(primary))
    })
}

/// Carries a change out; returns who has the VM then. A switchover whose winner cannot act in time may end
/// where it began.
fn carry_out(scene: &mut Scene, clients: &Clients, change: Change, from: Host) -> Result<Host> {
    match change {
        Change::Takeover => {
            scene.kill(from)?;
            clients.go_on()?;
            scene.await_primary(from.other())?;
            start(scene, from, "secondary")?;
        }
        Change::Switchover => drop(scene.ask(from, &["switchover"])?),
        Change::Parting => {
            scene.kill(from.other())?;
            clients.go_on()?;
            start(scene, from.other(), "secondary")?;
        }
    }
    let primary = await_settled(scene)?;
    clients.go_on()?;
    Ok(primary)
}

/// The steps that each host passes in a change.
fn list(scene: &mut Scene, clients: &Clients, change: Change, from: Host) -> Result<[Vec<String>; 2]> {
    for host in Host::BOTH {
        let passed = directory(scene, host).join("passed");
        fs::write(passed, "")?;
    }
    let primary = carry_out(scene, clients, change, from)?;
    let stays = change == Change::Parting;
    ensure!((primary == from) == stays, "the VM is on {} now", primary.name());
    let steps = Host::BOTH.map(|host| -> Result<Vec<String>> {
        let text = fs::read_to_string(directory(scene, host).join("passed"))?;
        let steps: BTreeSet<&str> = text.lines().collect();
        Ok(steps.into_iter().map(str::to_owned).collect())
    });
    let [a, b] = steps;
    Ok([a?, b?])
}

/// Faults must strike, and the VM must go on: on this host. Returns the steps as well that there was no use
/// for, for they have not failed yet.
fn try_out(scene: &mut Scene, clients: &Clients, case: &Case) -> Result<(Host, Vec<String>)> {
    let path = directory(scene, case.at).join("fail");
    let lines: String = case.steps.iter().map(|step| format!("{step}\n")).collect();
    fs::write(&path, lines)?;
    let primary = carry_out(scene, clients, case.change, case.from)?;
    let left = fs::read_to_string(&path)?;
    let struck = case.steps.len() - left.lines().count();
    // Who gave up in a switchover, or got the VM back, has no further use for the rest of its steps.
    let came_back = case.change == Change::Switchover && primary == case.from;
    // What was done although the answer was lost is found by reading, and not asked again.
    let is_lost_answer = |step: &str| step.starts_with("ask the arbiter") && step.ends_with('!');
    let mut left: Vec<String> = left.lines().map(str::to_owned).collect();
    left.retain(|step| !is_lost_answer(step));
    ensure!(
        struck > 0 && (came_back || left.is_empty()),
        "steps that were listed were not passed: {left:?}"
    );
    fs::write(&path, "")?;
    // Of two equal ones the first has struck.
    left.retain(|step| case.steps.iter().filter(|other| *other == step).count() == 1);
    Ok((primary, left))
}

/// What is to be tried of the steps listed for a change.
fn cases(change: Change, from: Host, listed: &[Vec<String>; 2], part: Option<Part>) -> Vec<Case> {
    let mut cases = Vec::new();
    for at in Host::BOTH {
        // Nothing of a change is done by whoever was killed.
        let steps = match change {
            Change::Takeover if at == from => &[][..],
            Change::Parting if at != from => &[][..],
            _ => &listed[at.number()],
        };
        let case = |steps| Case {
            change,
            from,
            at,
            steps,
        };
        match part {
            Some(_) => {
                for step in steps {
                    cases.push(case(vec![step.clone()]));
                    cases.push(case(vec![step.clone(); 2]));
                }
            }
            None => {
                let before = steps.iter().filter(|step| !step.ends_with('!'));
                let sample: Vec<String> = before.cloned().collect();
                cases.extend(sample.chunks(4).map(|steps| case(steps.to_vec())));
            }
        }
    }
    cases
}

fn each_step_fails(plan: &Plan, least: usize) {
    play(plan, |scene| {
        start(scene, Host::B, "secondary")?;
        start(scene, Host::A, "run")?;
        scene.await_service(Host::A)?;
        await_settled(scene)?;
        let clients = scene.clients()?;
        let part = part()?;
        let mut left = Vec::new();
        for (change, from) in [
            (Change::Switchover, Host::A),
            (Change::Switchover, Host::B),
            (Change::Takeover, Host::A),
            (Change::Takeover, Host::B),
            (Change::Parting, Host::A),
        ] {
            let listed = list(scene, &clients, change, from)?;
            println!("{change:?} from {}: {listed:#?}", from.name());
            left.extend(cases(change, from, &listed, part));
        }
        let names: BTreeSet<String> = left.iter().flat_map(|case| case.steps.clone()).collect();
        ensure!(names.len() >= least, "only these steps are there: {names:?}");
        if let Some((part, of)) = part {
            let mut number = 0;
            left.retain(|_| {
                number += 1;
                number % of == part % of
            });
        }
        let (mut primary, mut count) = (Host::A, 0);
        while !left.is_empty() {
            // The direction changes with each case.
            let place = left.iter().position(|case| case.from == primary);
            let Some(place) = place else {
                primary = carry_out(scene, &clients, Change::Switchover, primary)?;
                continue;
            };
            let case = left.remove(place);
            let begin = Instant::now();
            let (has_it, unused) = try_out(scene, &clients, &case).with_context(|| format!("{case:?}"))?;
            println!("{:.1} s: {case:?}", begin.elapsed().as_secs_f64());
            (primary, count) = (has_it, count + 1);
            if !unused.is_empty() {
                left.push(Case {
                    steps: unused,
                    ..case
                });
            }
        }
        println!("{count} cases, {} steps of changes failed", names.len());
        clients.work(Duration::from_millis(300))?;
        clients.finish()
    });
}

#[test]
fn each_step_of_a_change_fails_and_the_vm_goes_on_with_a_replicated_disk() {
    each_step_fails(&Plan::replicated("memory"), 12);
}

#[test]
fn each_step_of_a_change_fails_and_the_vm_goes_on_with_a_shared_disk() {
    each_step_fails(&Plan::default(), 12);
}
