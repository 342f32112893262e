//! A Linux guest with Redis in emulated hosts: one VM, protected and unprotected in turn.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Netns, Service};

use super::kv::{Work, per_sync, rate_ratio};
use super::rows::{Found, RowKind, Target, shown};
use super::service::{Caller, Clients, Mix};
use super::stats::{Samples, ratio};
use super::status::{Span, Status};
use super::{Bench, Measured};
use crate::demo::emulated::{EmulatedPair, EmulatedPlace};
use crate::demo::options::{Cut, Options, Pace};
use crate::demo::pair::{Image, Pair, Role, Side};
use crate::packages;
use crate::tools::{output_of, wait_for};

const fn at_least(name: &'static str, limit: f64) -> RowKind {
    RowKind {
        name,
        unit: "ratio",
        target: Target::AtLeast(limit),
    }
}

const REDIS_10: RowKind = at_least("redis_ratio_10", 0.5);
const REDIS_10_ALWAYS: RowKind = RowKind {
    target: Target::Shown,
    ..at_least("redis_ratio_10_always", 0.0)
};
const REDIS_1: RowKind = at_least("lab_redis_ratio_1", 0.5);
const PAUSE: RowKind = RowKind {
    name: "lab_pause_ms",
    unit: "ms",
    target: Target::AtMost(5.0),
};
const SYNCS: RowKind = RowKind {
    name: "lab_syncs_per_s",
    unit: "1/s",
    target: Target::AtLeast(200.0),
};
const PING: RowKind = RowKind {
    name: "lab_ping_ratio",
    unit: "ratio",
    target: Target::AtMost(2.0),
};
/// Times that the VM is measured protected and unprotected.
const ROUNDS: usize = 3;
/// Length of a slice of clients' work: emulated hosts are slow.
const SLICE: Duration = Duration::from_secs(4);
/// Pings of a slice.
const PINGS: u32 = 70;
/// Clients of the rows with many.
const MANY: usize = 10;
/// `ping`.
const PING_PROGRAM: packages::Need = ("ping", "iputils-ping");

/// The rows, in order.
pub fn kinds() -> Vec<RowKind> {
    vec![REDIS_10, REDIS_10_ALWAYS, REDIS_1, PAUSE, SYNCS, PING]
}

/// What was measured with or without protection.
#[derive(Default)]
struct Arm {
    many: Work,
    many_always: Work,
    one: Work,
    pings_ms: Samples,
    pings_lost: u32,
}

/// What the primary tells of its syncs under load.
#[derive(Default)]
struct Syncs {
    span: Span,
    rates: Samples,
}

/// Measures the rows.
pub fn measure(_: &Bench) -> Result<Measured> {
    lab::ensure_packages()?;
    packages::ensure_installed(&[PING_PROGRAM])?;
    let program = lab::build::static_binary("kemari", "kemari", &[], true)?;
    let image = Image::linux(&lab::guest_image(Service::Redis)?, "");
    let options = Options {
        cut: Cut::None,
        ..Options::LAB
    };
    let place = EmulatedPlace::new(program, image, &options, false)?;
    let mut pair = place.pair(rand::random(), None)?;
    let result = with_vm(&mut pair);
    if result.is_err() {
        pair.save_logs();
    }
    result
}

fn with_vm(pair: &mut EmulatedPair<'_>) -> Result<Measured> {
    let (netns, service) = (pair.clients(), pair.service());
    pair.start(Side::A, Role::Primary)?;
    wait_for("an answer of the guest's service", Pace::LAB.boot_max, || {
        pair.check_alive()?;
        Ok(Caller::new(&netns, service)
            .and_then(|mut caller| caller.ask(&["PING"]))
            .ok())
    })?;
    pair.start(Side::B, Role::Secondary)?;
    await_protected(pair)?;
    pair.order(Side::A, &["mode", "pipelined"])?;

    let mut caller = Caller::new(&netns, service)?;
    let mut clients = (
        Clients::new(&netns, service, MANY)?,
        Clients::new(&netns, service, 1)?,
    );
    let (mut protected, mut alone, mut syncs) = (Arm::default(), Arm::default(), Syncs::default());
    for round in 0..ROUNDS {
        if round > 0 {
            pair.order(Side::A, &["protect"])?;
            await_protected(pair)?;
        }
        slice(
            pair,
            &mut caller,
            &mut clients,
            &netns,
            &mut protected,
            Some(&mut syncs),
        )?;
        pair.order(Side::A, &["unprotect"])?;
        slice(pair, &mut caller, &mut clients, &netns, &mut alone, None)?;
    }
    found(&protected, &alone, &syncs)
}

fn await_protected(pair: &mut EmulatedPair<'_>) -> Result<()> {
    wait_for("protection", Pace::LAB.protect_max, || {
        std::thread::sleep(Pace::LAB.look_interval);
        pair.check_alive()?;
        let status = pair.status(Side::A)?;
        Ok(status.filter(|status| status.is_protected()).map(drop))
    })
}

fn status(pair: &EmulatedPair<'_>) -> Result<Status> {
    Status::parse(&pair.order(Side::A, &["status", "--json"])?)
}

fn slice(
    pair: &EmulatedPair<'_>,
    caller: &mut Caller,
    (many, one): &mut (Clients, Clients),
    netns: &Netns,
    arm: &mut Arm,
    syncs: Option<&mut Syncs>,
) -> Result<()> {
    caller.ask(&["CONFIG", "SET", "appendfsync", "everysec"])?;
    let before = status(pair)?;
    let work = many.work(SLICE, Mix::Half)?;
    if let Some(syncs) = syncs {
        let (after, was) = (status(pair)?, syncs.span.counters.syncs);
        syncs.span.add(&before, &after);
        let count = syncs.span.counters.syncs - was;
        syncs.rates.push(count as f64 / work.elapsed_s);
    }
    arm.many.add(work);
    arm.one.add(one.work(SLICE, Mix::Writes)?);
    caller.ask(&["CONFIG", "SET", "appendfsync", "always"])?;
    arm.many_always.add(many.work(SLICE, Mix::Half)?);
    let address = pair.service().ip().to_string();
    let mut ping = netns.command(PING_PROGRAM.0);
    ping.args(["-n", "-c", &PINGS.to_string(), "-i", "0.05", "-W", "5", &address]);
    let (mut times_ms, lost) = pinged(&mut ping)?;
    arm.pings_ms.append(&mut times_ms);
    arm.pings_lost += lost;
    Ok(())
}

/// How long each answer took, in ms, and how many there were not.
fn pinged(ping: &mut Command) -> Result<(Samples, u32)> {
    let text = output_of(ping)?;
    let times_ms = ping_times_ms(&text);
    ensure!(!times_ms.is_empty(), "no ping was answered:\n{text}");
    let lost = PINGS.saturating_sub(times_ms.len() as u32);
    Ok((times_ms, lost))
}

fn ping_times_ms(text: &str) -> Samples {
    let answers = text.lines().filter(|line| !line.contains("DUP!"));
    let times = answers.filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok());
    times.collect()
}

fn found(protected: &Arm, alone: &Arm, syncs: &Syncs) -> Result<Measured> {
    let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
    let breakdown = syncs.span.breakdown("")?;
    let pause_us = breakdown[1].median().context("no pause was measured")?;
    let pause = Found::from(Some(pause_us / 1000.0)).note(format!(
        "while {MANY} clients work (99 %: {} ms); COLO: 83",
        or_none(breakdown[1].at(99.0).map(|us| us / 1000.0)),
    ));
    let pause = breakdown.into_iter().fold(pause, Found::with);
    let rate = Found::from(syncs.rates.median())
        .note(format!("while {MANY} clients work; COLO: 7 at most"))
        .with(syncs.rates.series("syncs a second", "1/s"));
    let mut ping = Found::from(ratio(protected.pings_ms.median(), alone.pings_ms.median()))
        .note(format!(
            "protected {} ms, unprotected {} ms (COLO: 104 to 228 ms, about 20 times); lost: {} of {}, and {} of {}",
            or_none(protected.pings_ms.median()),
            or_none(alone.pings_ms.median()),
            protected.pings_lost,
            PINGS * ROUNDS as u32,
            alone.pings_lost,
            PINGS * ROUNDS as u32,
        ))
        .with(protected.pings_ms.series("ping, protected", "ms"))
        .with(alone.pings_ms.series("ping, unprotected", "ms"));
    if protected.pings_lost > 0 {
        // None may be lost: without that a ratio says nothing.
        ping.value = None;
    }
    Ok(vec![
        rate_ratio(
            &protected.many,
            &alone.many,
            "pipelined, 10 clients, half reads, appendfsync everysec",
        )
        .note(per_sync(&syncs.span, &protected.many)),
        rate_ratio(
            &protected.many_always,
            &alone.many_always,
            "pipelined, 10 clients, half reads, appendfsync always",
        ),
        rate_ratio(
            &protected.one,
            &alone.one,
            "pipelined, 1 client, SET, appendfsync everysec",
        )
        .note("COLO: 0.21"),
        pause,
        rate,
        ping,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_pings_are_read_once_each() {
        let text = "PING 10.77.0.2 (10.77.0.2) 56(84) bytes of data.\n\
                    64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=5.12 ms\n\
                    64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=9.00 ms (DUP!)\n\
                    64 bytes from 10.77.0.2: icmp_seq=3 ttl=64 time=7 ms\n\
                    3 packets transmitted, 2 received, +1 duplicates, 33% packet loss, time 2003ms\n";
        let times = ping_times_ms(text);
        assert_eq!(
            (times.len(), times.percentiles(&[0.0, 100.0])),
            (2, vec![5.12, 7.0])
        );
    }
}
