//! `cargo xtask bench`: what protection costs, measured side by side.
//!
//! What is compared is measured in turn, in slices of a second or so: a machine that is busy with something
//! else for a while harms both sides of a ratio alike. Both sides of a pair have one core each (see
//! [`place`]).

pub mod against;
pub mod disk;
pub mod drill;
pub mod kv;
pub mod lab;
pub mod limit;
pub mod machine;
pub mod place;
pub mod plot;
pub mod publish;
pub mod rows;
pub mod service;
pub mod stats;
pub mod status;
pub mod sync;
pub mod takeover;
pub mod upkeep;
pub mod vm;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::demo;
use crate::packages;
use crate::tools;
use crate::ui::Ui;
use place::Place;
use rows::{Found, Row, RowKind};

/// What is to be measured.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// In some minutes: fewer and shorter slices, and nothing in emulated hosts
    #[arg(long)]
    pub quick: bool,
    /// Compare this commit with another one instead, e.g. `HEAD~5`
    #[arg(long, value_name = "REV", conflicts_with = "publish")]
    pub against: Option<String>,
    /// Only rows whose names begin so; may be repeated
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Write the result into docs/benchmarks.md and docs/benchmarks/
    #[arg(long)]
    pub publish: bool,
}

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Slices of each thing.
    pub rounds: u32,
    /// Length of a slice.
    pub slice: Duration,
    /// An idle guest is watched for so long.
    pub idle: Duration,
    /// Takeovers of each kind.
    pub takeovers: u32,
}

impl Pace {
    const QUICK: Pace = Pace {
        rounds: 3,
        slice: Duration::from_millis(700),
        idle: Duration::from_secs(10),
        takeovers: 3,
    };
    const FULL: Pace = Pace {
        rounds: 15,
        slice: Duration::from_secs(1),
        idle: Duration::from_secs(60),
        takeovers: 10,
    };
}

/// What a group of rows is measured with.
pub struct Bench {
    /// Where.
    pub place: Place,
    /// The program.
    pub program: PathBuf,
    /// How long.
    pub pace: Pace,
}

/// What was found for each row of a group, in its order.
pub type Measured = Vec<Found>;

/// Rows that are measured together.
struct Group {
    what: &'static str,
    /// Whether it takes too long for `--quick`.
    long: bool,
    kinds: fn() -> Vec<RowKind>,
    measure: fn(&Bench) -> Result<Measured>,
}

const GROUPS: [Group; 9] = [
    Group {
        what: "syncs",
        long: false,
        kinds: sync::kinds,
        measure: sync::measure,
    },
    Group {
        what: "the key-value service",
        long: false,
        kinds: kv::kinds,
        measure: kv::measure,
    },
    Group {
        what: "bytes on the wire",
        long: false,
        kinds: kv::wire_kinds,
        measure: kv::measure_wire,
    },
    Group {
        what: "the disk",
        long: false,
        kinds: disk::kinds,
        measure: disk::measure,
    },
    Group {
        what: "a large guest",
        long: false,
        kinds: upkeep::growth_kinds,
        measure: upkeep::measure_growth,
    },
    Group {
        what: "takeovers",
        long: false,
        kinds: takeover::kinds,
        measure: takeover::measure,
    },
    Group {
        what: "an idle guest",
        long: false,
        kinds: upkeep::idle_kinds,
        measure: upkeep::measure_idle,
    },
    Group {
        what: "drills",
        long: false,
        kinds: drill::kinds,
        measure: drill::measure,
    },
    Group {
        what: "Linux with Redis in emulated hosts",
        long: true,
        kinds: lab::kinds,
        measure: lab::measure,
    },
];

/// Measures. Whether every row could be measured that was to be, however it came out;
/// an error means that nothing could.
pub fn bench(options: &Options) -> Result<bool> {
    let _lock = demo::lock()?;
    let ui = Ui::default();
    ui.step("packages", |_| packages::ensure_installed(&[packages::IP]))?;
    let pace = if options.quick { Pace::QUICK } else { Pace::FULL };
    if let Some(revision) = &options.against {
        return against::compare(revision, pace, &ui);
    }
    let program = ui.step("building kemari, in release", |_| {
        tools::build_release(&tools::root(), &tools::target_dir())
    })?;
    let guest = ui.step("building the bare guest", |_| tools::build_bare_guest())?;
    let bench = Bench {
        place: Place::new(guest)?,
        program,
        pace,
    };
    let begin = Instant::now();
    let (mut rows, mut all_ok) = (Vec::new(), true);
    for group in &GROUPS {
        let leave_out = group.long && options.quick;
        let measured = run(group, &bench, options, &ui, leave_out);
        all_ok &= leave_out || measured.iter().all(|row| row.outcome.is_ok());
        rows.extend(measured);
    }
    let machine = machine::describe(options.quick, begin.elapsed());
    let directory = tools::target_dir().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let json = serde_json::to_string_pretty(&rows::to_json(&rows, &machine))? + "\n";
    fs::write(directory.join("result.json"), json).context("result.json cannot be written")?;
    publish::plots(&directory, &rows)?;
    if options.publish {
        publish::into_docs(&rows, &machine)?;
    }
    println!("\n{}\n{}", machine::sentence(&machine), rows::table(&rows));
    println!("  results and plots in {}", directory.display());
    Ok(all_ok)
}

/// Measures a group, unless it is left out. What fails in it fails all of its rows, with the reason.
fn run(group: &Group, bench: &Bench, options: &Options, ui: &Ui, leave_out: bool) -> Vec<Row> {
    let kinds = (group.kinds)();
    let wanted = |kind: &RowKind| {
        options.only.is_empty()
            || options
                .only
                .iter()
                .any(|name| kind.name.starts_with(name.as_str()))
    };
    if !kinds.iter().any(wanted) {
        return Vec::new();
    }
    if leave_out {
        let reason = "not measured with --quick: emulated hosts take minutes".to_owned();
        let rows = kinds.into_iter().filter(wanted);
        return rows
            .map(|kind| Row {
                kind,
                outcome: Err(reason.clone()),
            })
            .collect();
    }
    let measured = ui.step(group.what, |_| {
        let found = (group.measure)(bench)?;
        assert_eq!(found.len(), kinds.len(), "each row of a group has one result");
        Ok(found)
    });
    let outcomes: Vec<Result<Found, String>> = match measured {
        Ok(found) => found.into_iter().map(Ok).collect(),
        Err(error) => kinds.iter().map(|_| Err(format!("{error:#}"))).collect(),
    };
    let rows = kinds
        .into_iter()
        .zip(outcomes)
        .map(|(kind, outcome)| Row { kind, outcome });
    rows.filter(|row| wanted(&row.kind)).collect()
}
