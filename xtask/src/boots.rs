//! `cargo xtask boots`: a Linux guest that firmware (SeaBIOS) and a boot loader (GRUB) boot from its disk, on
//! emulated hosts, protected before the boot loader has counted down. Its hosts lose their power while GRUB
//! counts, while Linux serves, and while GRUB loads the kernel again after a reboot of the guest.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::{Netns, Service};
use serde::Serialize;

use crate::demo;
use crate::demo::emulated::{EmulatedPair, EmulatedPlace};
use crate::demo::options::{Cut, Disk, Options as DemoOptions, Pace};
use crate::demo::pair::{Image, Pair, Role, Side, linux_address};
use crate::demo::run;
use crate::packages;
use crate::tools::{tail, wait_for};
use crate::ui::Ui;

/// The pace.
const PACE: Pace = Pace::LAB;
/// How long GRUB counts down, in seconds: long enough for a pair to come together meanwhile.
const COUNTDOWN_S: u32 = 20;
/// With fewer seconds left it is not cut any more.
const LEFT_S_MIN: u32 = 4;
/// What GRUB says at each second, before the number; when it has counted to the end; and how it clears the
/// screen when it has chosen.
const COUNTS: &str = "automatically in ";
const BOOTING: &str = "Booting `Debian'";
const CLEARED: &str = "\x1b[2J";
/// Until GRUB has counted down, and until Linux serves: on a busy machine GRUB's seconds last longer.
const BOOT_MAX: Duration = Duration::from_secs(300);
/// By so much the guest's time goes on at the takeover in Linux, as if it had lived for so long. Behind that,
/// and with most frequencies of a TSC, the clock of SeaBIOS's microvm kind would stand still for minutes, if
/// the TSC went on over a reboot.
const AGE: Duration = Duration::from_secs(550);
/// A connection to the guest's shell may take so long.
const SHELL_MAX: Duration = Duration::from_secs(10);
/// What the guest's disk is asked to keep.
const MARK: &str = "kept";
/// Lines of the console that are shown when something has failed.
const CONSOLE_LINES: usize = 20;

/// How it is done.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Names the VM
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What was seen: the last line printed, as JSON. Times are in seconds but for those of takeovers.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    failed: u32,
    /// From the program's start to GRUB's countdown, and to protection.
    to_countdown_s: f64,
    to_protection_s: f64,
    countdown_takeover_ms: f64,
    /// From that takeover, somewhere in the countdown, to the service.
    to_service_s: f64,
    linux_takeover_ms: f64,
    /// From the order to reboot to the countdown, and the seconds that GRUB had left when a key was typed.
    reboot_to_countdown_s: f64,
    cut_short_at: u32,
    loading_takeover_ms: f64,
    /// From that takeover to the service.
    again_to_service_s: f64,
}

/// Carries it out; whether all went as it should.
pub fn boots(options: &Options) -> Result<bool> {
    let _lock = demo::lock()?;
    let ui = Ui::default();
    let seed = options.seed.unwrap_or_else(rand::random);
    let program = demo::program_for_emulated_hosts(&[], &ui)?;
    let image = ui.step("the guest: a disk with GRUB and a shell", |_| {
        packages::ensure_installed(&[packages::SEABIOS])?;
        let disk = lab::boot_disk(Service::Shell, COUNTDOWN_S, &linux_address())?;
        Ok(Image::linux_disk(&disk))
    })?;
    let demo_options = DemoOptions {
        cut: Cut::Power,
        // A host that comes back need not copy it first.
        disk: Disk::Shared,
        ..DemoOptions::LAB
    };
    let place = ui.step("two emulated hosts boot", |_| {
        EmulatedPlace::new(program, image, &demo_options, false)
    })?;
    let mut pair = ui.step("two hosts", |_| place.pair(seed, None))?;
    pair.sit_down()?;
    let mut outcome = Outcome::default();
    let ended = undergo(&mut pair, &mut outcome, &ui);
    if let Err(error) = &ended {
        outcome.failed += 1;
        println!("  ! {error:#}");
        for side in Side::BOTH {
            let console = tail(&pair.console(side), CONSOLE_LINES);
            println!("  the guest's console on host {}:\n{console}", side.name());
        }
        pair.save_logs();
        demo::keep_logs(seed);
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ended.is_ok())
}

fn undergo(pair: &mut EmulatedPair<'_>, outcome: &mut Outcome, ui: &Ui) -> Result<()> {
    let begin = Instant::now();
    pair.start(Side::A, Role::Primary)?;
    pair.start(Side::B, Role::Secondary)?;
    ui.step("GRUB counts down on host a", |_| {
        await_countdown(pair, Side::A, 0).map(drop)
    })?;
    outcome.to_countdown_s = begin.elapsed().as_secs_f64();
    ui.step("host b protects it", |step| {
        run::protect(pair, Side::A, PACE, step)
    })?;
    outcome.to_protection_s = begin.elapsed().as_secs_f64();
    let left = left(&pair.console(Side::A)).context("GRUB has not counted yet")?;
    ensure!(
        left >= LEFT_S_MIN,
        "GRUB had only {left} s left when it was protected"
    );
    outcome.countdown_takeover_ms = take_over(pair, Side::A, "while GRUB counts", ui)?;
    let begin = Instant::now();
    ui.step("GRUB counts to the end on host b", |_| {
        wait_for("the end of the countdown", BOOT_MAX, || {
            pair.check_alive()?;
            Ok(pair.console(Side::B).contains(BOOTING).then_some(()))
        })
    })?;
    ui.step("Linux boots", |_| await_shell(pair))?;
    outcome.to_service_s = begin.elapsed().as_secs_f64();
    say(pair, &format!("echo {MARK} >/root/mark; sync"))?;

    reunite(pair, Side::B, ui)?;
    pair.put_clock_ahead(Side::A, AGE)?;
    outcome.linux_takeover_ms = take_over(pair, Side::B, "while Linux serves", ui)?;
    ui.step("Linux goes on", |_| await_shell(pair))?;

    reunite(pair, Side::A, ui)?;
    let begin = Instant::now();
    let before = pair.console(Side::A).len();
    say(pair, "reboot -f")?;
    let left = ui.step("the guest boots again: GRUB counts down", |_| {
        await_countdown(pair, Side::A, before)
    })?;
    outcome.reboot_to_countdown_s = begin.elapsed().as_secs_f64();
    ensure!(left >= LEFT_S_MIN, "GRUB had only {left} s left when it was seen");
    outcome.cut_short_at = ui.step("a key cuts that short", |_| cut_short(pair, before))?;
    outcome.loading_takeover_ms = take_over(pair, Side::A, "while GRUB loads the kernel", ui)?;
    let begin = Instant::now();
    ui.step("Linux boots on host b", |_| await_shell(pair))?;
    outcome.again_to_service_s = begin.elapsed().as_secs_f64();
    let kept = say(pair, "cat /root/mark")?;
    ensure!(
        kept.trim() == MARK,
        "the guest's disk has not kept what it should: {kept}"
    );
    ui.step("the VM is stopped", |_| pair.stop(Side::B).map(drop))
}

/// Waits until GRUB counts, of all that a side's console has said after so many bytes; what it says.
fn await_countdown(pair: &mut EmulatedPair<'_>, side: Side, after: usize) -> Result<u32> {
    wait_for("GRUB's countdown", BOOT_MAX, || {
        pair.check_alive()?;
        Ok(left(said_after(&pair.console(side), after)))
    })
}

fn said_after(console: &str, after: usize) -> &str {
    console.get(after..).unwrap_or_default()
}

/// The last number of GRUB's countdown in what was said.
fn left(said: &str) -> Option<u32> {
    let numbers = said.rmatch_indices(COUNTS).filter_map(|(at, _)| {
        let digits = said[at + COUNTS.len()..].split('s').next()?;
        digits.parse().ok()
    });
    numbers.take(1).next()
}

/// Types Enter, and waits until GRUB has taken it; how many seconds it had left.
fn cut_short(pair: &mut EmulatedPair<'_>, after: usize) -> Result<u32> {
    pair.type_in(Side::A, "\r")?;
    let said = wait_for("a choice of GRUB's", BOOT_MAX, || {
        pair.check_alive()?;
        let console = pair.console(Side::A);
        let said = said_after(&console, after);
        let last = said.rfind(COUNTS).unwrap_or_default();
        Ok(said[last..].contains(CLEARED).then(|| said.to_owned()))
    })?;
    let left = left(&said).context("GRUB has not counted")?;
    ensure!(left > 0, "GRUB has heard no key, and counted to the end");
    Ok(left)
}

/// Cuts the power of the host that has the VM, and waits until the other one has it;
/// how long that took, in ms.
fn take_over(pair: &mut EmulatedPair<'_>, victim: Side, when: &str, ui: &Ui) -> Result<f64> {
    let survivor = victim.other();
    let what = format!(
        "host {} loses power {when}, host {} goes on",
        victim.name(),
        survivor.name()
    );
    ui.step(&what, |_| {
        pair.cut(victim, Cut::Power)?;
        wait_for("a takeover", PACE.recover_max, || {
            pair.check_alive()?;
            Ok(pair
                .status(survivor)?
                .filter(|status| status.is_primary())
                .map(drop))
        })
    })?;
    pair.takeover_ms(survivor)
}

/// The host that has lost its power comes back, and protects the VM, which `primary` has.
fn reunite(pair: &mut EmulatedPair<'_>, primary: Side, ui: &Ui) -> Result<()> {
    let other = primary.other();
    ui.step(
        &format!("host {} comes back and protects it", other.name()),
        |step| {
            pair.mend(other)?;
            run::protect(pair, primary, PACE, step)
        },
    )
}

fn await_shell(pair: &mut EmulatedPair<'_>) -> Result<()> {
    wait_for("an answer of the guest's shell", BOOT_MAX, || {
        pair.check_alive()?;
        Ok(say(pair, "echo well")
            .ok()
            .filter(|said| said.trim() == "well")
            .map(drop))
    })
}

/// Has the guest's shell carry out a line; what that printed.
fn say(pair: &EmulatedPair<'_>, line: &str) -> Result<String> {
    let clients: Netns = pair.clients();
    let service = pair.service();
    let mut stream = clients.run(|| TcpStream::connect_timeout(&service, SHELL_MAX))??;
    stream.set_read_timeout(Some(SHELL_MAX))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    match stream.read_to_string(&mut said) {
        // It has rebooted instead of an answer.
        Err(_) if line.starts_with("reboot") => Ok(said),
        read => read
            .map(|_| said)
            .with_context(|| format!("no answer to `{line}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::left;

    #[test]
    fn the_last_second_that_grub_has_counted_is_found() {
        assert_eq!(
            left("The highlighted entry will be executed automatically in 30s.    "),
            Some(30)
        );
        let redrawn = "automatically in 30s.  \x1b[05;78Hautomatically in 29s. \x1b[05;78H automatically in ";
        assert_eq!(left(redrawn), Some(29));
        assert_eq!(left("GRUB loading."), None);
    }
}
