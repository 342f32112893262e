//! `cargo xtask test`: everything that must hold, in one go.
//!
//! Stages run one after the other, each with its time. A stage that cannot be carried out is a failed test,
//! and the others go on. Tests are counted by the place where they ran: `here`, or in the `lab`. The counts
//! must not fall below those declared in declared-tests.toml: a test that is silently not run is a failure
//! too.
//!
//! Test programs are built by cargo and run by this module, so that the same program can run here or inside
//! an emulated host, and is counted in the same way.

mod arrows;
mod counts;
mod demos;
mod emulated;
mod lockfile;
mod programs;
mod tidy;

use std::time::{Duration, Instant};

use clap::Args;

use crate::disks;
use crate::fuse;
use crate::mutants;
use crate::packages;
use crate::tools::{self, cargo, run_quietly};
use crate::weather;
use counts::{Count, Place, Tally};
use programs::Program;

/// Everything must be done by then, with two processors.
const TIME_MAX: Duration = Duration::from_secs(35 * 60);

/// Which tests to run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only the tests of one place; the counts of the other are not checked
    #[arg(long, value_enum)]
    pub place: Option<Place>,
    /// Only the test programs of this package (may be repeated); no count is checked,
    /// and nothing but tests is done
    #[arg(long = "package", short)]
    pub packages: Vec<String>,
}

impl Options {
    fn wants(&self, place: Place) -> bool {
        self.place.is_none_or(|wanted| wanted == place)
    }

    fn wants_all_packages(&self) -> bool {
        self.packages.is_empty()
    }
}

/// Runs the tests; whether all passed. The last line printed is `N passed, N failed`.
pub fn test(options: &Options) -> bool {
    let begin = Instant::now();
    let mut tally = Tally::default();
    tally.stage(Place::Here, "packages", || {
        packages::ensure_installed(&[
            packages::IP,
            packages::ETCD,
            packages::REDIS,
            packages::OPENSSL,
            packages::GIT,
            packages::QEMU_IMG,
            packages::SEABIOS,
            packages::FAKETIME,
        ])?;
        match options.wants_all_packages() && options.wants(Place::Here) {
            true => fuse::open().map(drop),
            false => Ok(()),
        }
    });
    if options.wants_all_packages() && options.wants(Place::Here) {
        static_checks(&mut tally);
    }
    tally.stage(Place::Here, "bare guest: build", || {
        tools::build_bare_guest().map(drop)
    });
    if options.wants_all_packages() && options.wants(Place::Here) {
        tally.programs(Place::Here, "bare guest: unit tests", programs::bare_guest_tests);
    }
    workspace_tests(&mut tally, options);
    if options.wants_all_packages() && options.wants(Place::Here) {
        tally.programs(Place::Here, "documentation tests", programs::doc_tests);
        tally.stage(
            Place::Here,
            "disks: every power cut of a recording",
            disks::replay::briefly,
        );
        tally.stage(Place::Here, "mutants: a sample", mutants::briefly);
    }
    if options.wants_all_packages() {
        demos::run(&mut tally, emulated::kvm_place(), |place| options.wants(place));
        // Behind the demos, whose last one builds the program with the faults that this wants, too.
        if options.wants(Place::Here) && emulated::kvm_place() == Place::Here {
            tally.stage(
                Place::Here,
                "weather: the quick cases",
                weather::in_a_process_of_its_own,
            );
        }
        tally.check_declared(options);
    }
    tally.print(begin.elapsed());
    if begin.elapsed() > TIME_MAX {
        println!(
            "this took longer than the {} minutes that it may take",
            TIME_MAX.as_secs() / 60
        );
    }
    let Count { passed, failed } = tally.total();
    println!("{passed} passed, {failed} failed");
    failed == 0
}

/// What needs no run: form, warnings, versions.
fn static_checks(tally: &mut Tally) {
    let in_bare_guest = |args: &[&str]| {
        let mut command = cargo();
        command
            .current_dir(tools::root().join("guests/bare"))
            .env_remove("CARGO_TARGET_DIR");
        run_quietly(command.args(args))
    };
    tally.stage(Place::Here, "format", || {
        run_quietly(cargo().args(["fmt", "--all", "--check"]))?;
        run_quietly(
            cargo()
                .current_dir(tools::root().join("fuzz"))
                .args(["fmt", "--check"]),
        )?;
        in_bare_guest(&["fmt", "--check"])
    });
    tally.stage(Place::Here, "one version of each rust-vmm crate", lockfile::check);
    tally.stage(Place::Here, "who may know whom", arrows::check);
    tally.stage(Place::Here, "widths, lengths, names, manifests", tidy::check);
    tally.stage(Place::Here, "warnings (clippy)", || {
        let all = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ];
        run_quietly(cargo().args(all))
    });
    tally.stage(Place::Here, "warnings (clippy, bare guest)", || {
        in_bare_guest(&["clippy", "--quiet", "--release", "--", "-D", "warnings"])
    });
}

fn workspace_tests(tally: &mut Tally, options: &Options) {
    let kvm = emulated::kvm_place();
    let mut found: Vec<Program> = Vec::new();
    tally.stage(Place::Here, "tests: build", || {
        found = programs::build(&options.packages)?;
        Ok(())
    });
    if kvm == Place::Lab {
        for program in found.extract_if(.., |program| program.needs_local_kvm()) {
            println!("NOT RUN: {program} needs /dev/kvm of this machine, which cannot be opened");
        }
    }
    let (local, remote): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|program| program.place(kvm) == Place::Here);
    if options.wants(Place::Here) {
        for program in local {
            tally.programs(Place::Here, &program.to_string(), || program.run());
        }
    }
    if options.wants(Place::Lab) {
        let (in_hosts, drivers): (Vec<_>, Vec<_>) = remote.into_iter().partition(Program::needs_kvm);
        for program in drivers {
            tally.programs(Place::Lab, &program.to_string(), || program.run());
        }
        if !in_hosts.is_empty() {
            emulated::run_inside(tally, &in_hosts);
        }
    }
}
