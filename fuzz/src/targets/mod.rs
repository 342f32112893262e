//! The targets: each takes any bytes, and neither panics, hangs nor takes much memory. They are run by
//! libFuzzer (`cargo xtask fuzz`), and over their seeds and `fuzz/corpus/` by a plain test
//! (`kemari/tests/corpus.rs`).

mod answers;
mod arbiter;
mod config;
mod control;
mod devices;
mod frames;
mod kernel;
mod links;
mod qcow2;
mod records;
mod states;
mod steward;
mod support;

/// One target.
pub(crate) struct Target {
    /// Names it, and its directory in `fuzz/corpus/`.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by the real encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub(crate) static TARGETS: [Target; 12] = [
    Target {
        name: "devices",
        run: devices::run,
        seeds: devices::seeds,
    },
    Target {
        name: "states",
        run: states::run,
        seeds: states::seeds,
    },
    Target {
        name: "frames",
        run: frames::run,
        seeds: frames::seeds,
    },
    Target {
        name: "answers",
        run: answers::run,
        seeds: answers::seeds,
    },
    Target {
        name: "control",
        run: control::run,
        seeds: control::seeds,
    },
    Target {
        name: "qcow2",
        run: qcow2::run,
        seeds: qcow2::seeds,
    },
    Target {
        name: "records",
        run: records::run,
        seeds: records::seeds,
    },
    Target {
        name: "arbiter",
        run: arbiter::run,
        seeds: arbiter::seeds,
    },
    Target {
        name: "config",
        run: config::run,
        seeds: config::seeds,
    },
    Target {
        name: "links",
        run: links::run,
        seeds: links::seeds,
    },
    Target {
        name: "kernel",
        run: kernel::run,
        seeds: kernel::seeds,
    },
    Target {
        name: "steward",
        run: steward::run,
        seeds: steward::seeds,
    },
];

/// The target of this name.
pub(crate) fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The names of all targets.
pub(crate) fn names() -> String {
    TARGETS
        .iter()
        .map(|target| target.name)
        .collect::<Vec<_>>()
        .join(", ")
}
