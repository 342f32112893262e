//! A noisy guest with rates: it gets no more than they say, before a takeover and after it,
//! and is protected meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kemari::control::Verdict;
use xtask::proof::client::{ask, connect};
use xtask::proof::load::Load;
use xtask::proof::resp::Reply;

use crate::support::{Host, Plan, play};

/// What the disk carries out in a second, and at once.
const DISK: (u64, u64) = (200, 20);
const DISK_KEYS: &str = "rate = { operations_per_s = 200, burst_operations = 20 }";
/// What the card receives in a second, and at once.
const CARD: (u64, u64) = (100, 10);
const CARD_KEYS: &str = "rate = { operations_per_s = 100, burst_operations = 10 }";
/// For so long the guest is noisy, in seconds.
const NOISE_S: u64 = 3;
/// Longest time for an answer of the noisy guest.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The guest writes as much as it can; returns how many requests were finished, and in which time.
fn write_much(load: &Load) -> Result<(u64, Duration)> {
    let Reply::Bulk(Some(text)) = ask(load, &["DISKLOOP", "randwrite", &NOISE_S.to_string()], ANSWER_MAX)?
    else {
        bail!("DISKLOOP has no answer");
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let field = |name: &str| -> Result<u64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line
            .with_context(|| format!("the report lacks {name}: {text}"))?
            .trim()
            .parse()?)
    };
    Ok((field("requests")?, Duration::from_micros(field("elapsed_us")?)))
}

fn ensure_within((per_s, burst): (u64, u64), done: u64, time: Duration) -> Result<()> {
    let most = burst + (per_s as f64 * time.as_secs_f64()) as u64 + 1;
    ensure!(done <= most, "{done} in {time:?}, but at most {most} are let");
    ensure!(done >= most / 4, "{done} in {time:?}, of {most} that are let");
    Ok(())
}

#[test]
fn a_guest_writes_no_more_than_its_disks_rate_and_stays_protected() {
    let plan = Plan {
        disk_keys: DISK_KEYS,
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.protect()?;
        let (load, clients) = (scene.load(), scene.clients()?);
        let noise = thread::spawn(move || write_much(&load));
        clients.work(Duration::from_millis(1500))?;
        scene.await_status("readiness under load", Host::A, |status| {
            status.verdict() == Verdict::Ready
        })?;
        let (done, time) = noise.join().map_err(|_| anyhow!("the load panicked"))??;
        ensure_within(DISK, done, time)?;
        scene.take_over_from(Host::A, &clients)?;
        let (done, time) = write_much(&scene.load())?;
        ensure_within(DISK, done, time)?;
        clients.finish()
    });
}

#[test]
fn a_guest_gets_no_more_packets_than_its_cards_rate() {
    let plan = Plan {
        net_keys: CARD_KEYS,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let load = scene.load();
        // Each question is a packet at least. Those before this one have used some of what may go at once.
        let begun = Instant::now();
        let mut answers = 0;
        while begun.elapsed() < Duration::from_secs(NOISE_S) {
            for _ in 0..10 {
                drop(connect(&load)?);
                answers += 1;
            }
        }
        // To connect takes two packets at least.
        ensure_within((CARD.0 / 2, CARD.1), answers, begun.elapsed())?;
        scene.await_protected(Host::A)?;
        Ok(())
    });
}
