//! `cargo xtask`: see `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, boots, demo, disks, fuzz, hostile, mutants, rehearsal, sim, soak, test, weather};

/// Shows, tests and simulates Kemari
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A Linux guest that firmware and GRUB boot from its disk, protected from the first instruction on: its
    /// hosts lose power in the boot loader's countdown, in Linux, and while it boots again; the last line is
    /// JSON
    Boots(boots::Options),
    /// A guest loses its host to a power cut and goes on elsewhere: no acknowledged write is lost,
    /// no connection ends
    Demo(demo::options::Options),
    /// A VM whose hosts' disks are slow, fail or are full: it lives, and the status says what is the matter.
    /// And one whose guest uses two queues, discards and zeroes
    Disks(disks::Options),
    /// What reads bytes from a guest, a peer, a file or the arbiter, under libFuzzer; the last line is JSON
    Fuzz(fuzz::Options),
    /// Every kind of abuse by the driver of a protected guest: it hurts only itself, and no VM beside it
    Hostile(hostile::Options),
    /// Wrong edits of the code, one at a time: each must be noticed by the tests beside it
    Mutants(mutants::Options),
    /// Drills of a Linux guest on emulated hosts: of a state that is whole, and of damaged ones
    Rehearsal(rehearsal::Options),
    /// Runs everything that must hold: form, warnings, unit, property, simulation, KVM and lab tests
    Test(test::Options),
    /// Crashes the mechanism in a simulated world, from seeds that can be replayed
    Sim(sim::Options),
    /// Measures what protection costs, side by side: a table, target/bench/result.json, plots
    Bench(bench::Options),
    /// Cuts one VM's hosts again and again, for as long as asked for: no client may notice
    Soak(soak::Options),
    /// What happens around a pair that is well: logs that are full, names that nobody knows, TAPs that are
    /// gone. It lives, and `status` says what is so
    Weather(weather::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Bench(options) => bench::bench(&options),
        Command::Boots(options) => boots::boots(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Disks(options) => disks::disks(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Hostile(options) => hostile::hostile(&options),
        Command::Mutants(options) => mutants::mutants(&options),
        Command::Rehearsal(options) => rehearsal::rehearsal(&options),
        Command::Sim(options) => sim::sim(&options),
        Command::Soak(options) => soak::soak(&options),
        Command::Test(options) => Ok(test::test(&options)),
        Command::Weather(options) => weather::weather(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
