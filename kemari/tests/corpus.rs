//! What is fuzzed (`cargo xtask fuzz`), once over what is known: the seeds, what was found since, and a few
//! changes of each. No fuzzer is needed.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

/// An input may take so long, on a host that has other things to do.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);
/// How long each target is given changed inputs.
const CHANGED_TIME: Duration = Duration::from_secs(2);

/// Whether a target stands all inputs that it ever stood.
fn replay(name: &'static str) {
    let target = targets::find(name).unwrap_or_else(|| panic!("{name} is none of {}", targets::names()));
    let inputs: Vec<Vec<u8>> = (target.seeds)().into_iter().chain(corpus(name)).collect();
    assert!(!inputs.is_empty(), "{name} has seeds");
    let (begun, watch) = channel::<Vec<u8>>();
    // An input that hangs ends the process, and is left behind.
    let watchdog = std::thread::spawn(move || {
        let mut last = Vec::new();
        loop {
            match watch.recv_timeout(INPUT_TIME_MAX) {
                Ok(input) => last = input,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{name} does not end with the input {last:?}");
                    std::process::abort();
                }
            }
        }
    });
    let run = |input: &[u8]| {
        begun.send(input.to_vec()).expect("the watchdog lives");
        let _given = Given(input);
        (target.run)(input);
    };
    inputs.iter().for_each(|input| run(input));
    let (begin, mut changed) = (Instant::now(), 0);
    'time: for round in 1u64.. {
        for input in &inputs {
            if begin.elapsed() >= CHANGED_TIME {
                break 'time;
            }
            run(&change(input, round));
            changed += 1;
        }
    }
    drop(begun);
    watchdog.join().expect("it never panics");
    eprintln!("{name}: {} inputs, {changed} changed ones", inputs.len());
}

/// An input at work: a panic names it.
struct Given<'a>(&'a [u8]);

impl Drop for Given<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("that was with the input {:?}", self.0);
        }
    }
}

/// What was found in the past, in the order of its names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let Ok(entries) = fs::read_dir(&directory) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("a directory's entry").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .collect()
}

/// The input with a few bytes that are others: the same ones each time.
fn change(input: &[u8], round: u64) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ input.len() as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut changed = input.to_vec();
    for _ in 0..1 + round % 4 {
        if changed.is_empty() {
            break;
        }
        let at = next() as usize % changed.len();
        match next() % 4 {
            0 => changed[at] ^= 1 << (next() % 8),
            1 => changed[at] = [0, 1, 0x7f, 0x80, 0xff][next() as usize % 5],
            2 => changed.truncate(at),
            _ => changed[at] = next() as u8,
        }
    }
    changed
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let here = [$(stringify!($name)),*];
            let all: Vec<_> = targets::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(here[..], all[..]);
        }
    };
}

mod replayed {
    use super::*;

    targets!(
        devices, states, frames, answers, control, qcow2, records, arbiter, config, links, kernel, steward
    );
}
