//! A Linux guest with Redis in emulated hosts: one VM, protected and unprotected in turn.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Netns, Service};

use super::kv::{Work, per_sync, rate_ratio};
use super::rows::{Found, RowKind, Target, shown};
use super::service::{Caller, Clients, Mix, Slice};
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
const SLICE: Duration = Duration::from_secs(8);
/// For so long before it the clients work as well: what the program finds out about its load by trying takes
/// it many syncs, and there are few a second.
const WARM_UP: Duration = Duration::from_secs(8);
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
    many: Phase,
    many_always: Phase,
    one: Phase,
    pings: Phase,
    pings_sent: u32,
}

impl Arm {
    fn pings_lost(&self) -> u32 {
        self.pings_sent
            .saturating_sub(self.pings.work.latencies_us.len() as u32)
    }
}

/// Work of one kind, and the syncs meanwhile, as the primary tells of them.
#[derive(Default)]
struct Phase {
    work: Work,
    syncs: Span,
    syncs_per_s: Samples,
}

impl Phase {
    /// Clients work.
    fn work(&mut self, pair: &EmulatedPair<'_>, clients: &mut Clients, mix: Mix) -> Result<()> {
        clients.work(WARM_UP, mix)?;
        self.add(pair, || clients.work(SLICE, mix))
    }

    fn add(&mut self, pair: &EmulatedPair<'_>, work: impl FnOnce() -> Result<Slice>) -> Result<()> {
        let (before, was) = (status(pair)?, self.syncs.counters.syncs);
        let work = work()?;
        self.syncs.add(&before, &status(pair)?);
        let count = self.syncs.counters.syncs - was;
        self.syncs_per_s.push(count as f64 / work.elapsed_s);
        self.work.add(work);
        Ok(())
    }

    /// What a sync was for, and where its time went.
    fn per_sync(&self) -> String {
        per_sync(&self.syncs, &self.work)
    }
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
    let (mut protected, mut alone) = (Arm::default(), Arm::default());
    for round in 0..ROUNDS {
        if round > 0 {
            pair.order(Side::A, &["protect"])?;
            await_protected(pair)?;
        }
        slice(pair, &mut caller, &mut clients, &netns, &mut protected)?;
        pair.order(Side::A, &["unprotect"])?;
        slice(pair, &mut caller, &mut clients, &netns, &mut alone)?;
    }
    found(&protected, &alone)
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
) -> Result<()> {
    caller.ask(&["CONFIG", "SET", "appendfsync", "everysec"])?;
    arm.many.work(pair, many, Mix::Half)?;
    arm.one.work(pair, one, Mix::Writes)?;
    caller.ask(&["CONFIG", "SET", "appendfsync", "always"])?;
    arm.many_always.work(pair, many, Mix::Half)?;
    let address = pair.service().ip().to_string();
    let mut ping = netns.command(PING_PROGRAM.0);
    ping.args(["-n", "-c", &PINGS.to_string(), "-i", "0.05", "-W", "5", &address]);
    arm.pings.add(pair, || pinged(&mut ping))?;
    arm.pings_sent += PINGS;
    Ok(())
}

/// Each ping that was answered.
fn pinged(ping: &mut Command) -> Result<Slice> {
    let begin = Instant::now();
    let text = output_of(ping)?;
    let latencies_us: Samples = ping_times_ms(&text).map(|ms| ms * 1000.0).collect();
    ensure!(!latencies_us.is_empty(), "no ping was answered:\n{text}");
    Ok(Slice {
        answers: latencies_us.len() as u64,
        latencies_us,
        elapsed_s: begin.elapsed().as_secs_f64(),
    })
}

fn ping_times_ms(text: &str) -> impl Iterator<Item = f64> {
    let answers = text.lines().filter(|line| !line.contains("DUP!"));
    answers.filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
}

fn found(protected: &Arm, alone: &Arm) -> Result<Measured> {
    let rate = |protected: &Phase, alone: &Phase, how| {
        rate_ratio(&protected.work, &alone.work, how).note(protected.per_sync())
    };
    Ok(vec![
        rate(
            &protected.many,
            &alone.many,
            "pipelined, 10 clients, half reads, appendfsync everysec",
        ),
        rate(
            &protected.many_always,
            &alone.many_always,
            "pipelined, 10 clients, half reads, appendfsync always",
        ),
        rate(
            &protected.one,
            &alone.one,
            "pipelined, 1 client, SET, appendfsync everysec",
        )
        .note("COLO: 0.21"),
        pause(&protected.many)?,
        Found::from(protected.many.syncs_per_s.median())
            .note(format!("while {MANY} clients work; COLO: 7 at most"))
            .with(protected.many.syncs_per_s.series("syncs a second", "1/s")),
        pings(protected, alone),
    ])
}

fn pause(many: &Phase) -> Result<Found> {
    let breakdown = many.syncs.breakdown("")?;
    let ms = |percent| breakdown[1].at(percent).map(|us| us / 1000.0);
    let pause = Found::from(ms(50.0)).note(format!(
        "while {MANY} clients work (99 %: {} ms); COLO: 83",
        ms(99.0).map_or("-".into(), shown),
    ));
    Ok(breakdown.into_iter().fold(pause, Found::with))
}

fn pings(protected: &Arm, alone: &Arm) -> Found {
    let times = |arm: &Arm| arm.pings.work.latencies_us.median();
    let ms = |arm| times(arm).map_or("-".into(), |us| shown(us / 1000.0));
    let mut found = Found::from(ratio(times(protected), times(alone)))
        .note(format!(
            "protected {} ms, unprotected {} ms (COLO: 104 to 228 ms, about 20 times); lost: {} of {}, and \
             {} of {}",
            ms(protected),
            ms(alone),
            protected.pings_lost(),
            protected.pings_sent,
            alone.pings_lost(),
            alone.pings_sent,
        ))
        .note(protected.pings.per_sync());
    for (arm, label) in [(protected, "ping, protected"), (alone, "ping, unprotected")] {
        found = found.with(arm.pings.work.latencies_us.series(label, "us"));
    }
    if protected.pings_lost() > 0 {
        // None may be lost: without that a ratio says nothing.
        found.value = None;
    }
    found
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
        let times: Samples = ping_times_ms(text).collect();
        assert_eq!(
            (times.len(), times.percentiles(&[0.0, 100.0])),
            (2, vec![5.12, 7.0])
        );
    }
}
