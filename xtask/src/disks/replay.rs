//! `cargo xtask disks --replay`: all that reaches an image while a disk's server has a lot to do is recorded,
//! and every power cut that could have happened meanwhile is looked at, as with Linux' dm-log-writes: what
//! was durable is there, and of what was written since any part, in any order, down to single sectors.
//!
//! What the guest was told to be durable must be there then; in every other sector is what was asked to be
//! there at some time since. What is read meanwhile is compared with a plain vector.

mod crash;
mod log;
mod model;
mod storm;
mod subject;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kemari_vmm::disk::{Disk, DiskConfig, Operation, Server};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::own_file::{OwnFile, SECTOR_BYTES};
use crate::tools::{cargo, output_of};
use crate::ui::Ui;
use crash::{Cut, moments};
use log::{Entry, Log};
use model::{Model, Times};
use storm::Storm;
use subject::{Place, SUBJECTS, Subject};

/// Sectors of a disk when it is opened, and when it has grown.
const SECTORS: u64 = 4096;
const GROWN_SECTORS: u64 = 6144;
/// Parts of what was not durable that are tried for each change, beside all of it.
const SUBSETS: [Cut; 4] = [Cut::Subset, Cut::Torn, Cut::Subset, Cut::Torn];
/// Moments of each recording that are tried at least.
const MOMENTS_MIN: usize = 10;
/// Most time for one recording.
const SHARE_MAX: Duration = Duration::from_secs(10);
/// How long it takes as a part of the tests.
const BRIEFLY: Duration = Duration::from_secs(6);
/// Findings that are printed.
const FINDINGS_MAX: u64 = 10;

/// What was tried: the last line printed, as JSON.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// States of an image after a cut.
    pub subsets: u64,
    /// Those in which something was lost, or that could not be used.
    pub failed: u64,
    /// Recordings that they were taken from.
    recordings: u64,
    /// States after a cut of the file arbiter's directory and of images' records.
    stores: u64,
    seed: u64,
}

/// Replays for so long, and says what came out.
pub fn replay(time: Duration, seed: Option<u64>, ui: &Ui) -> Result<Outcome> {
    let mut outcome = Outcome {
        seed: seed.unwrap_or_else(rand::random),
        ..Outcome::default()
    };
    let mut random = ChaCha8Rng::seed_from_u64(outcome.seed);
    let (begin, mut turn) = (Instant::now(), 0);
    // Each kind at least once; then as long as there is time, each recording in a share of it.
    let share = (time / SUBJECTS.len() as u32).min(SHARE_MAX);
    while turn < SUBJECTS.len() || begin.elapsed() < time {
        let subject = &SUBJECTS[turn % SUBJECTS.len()];
        let (subsets, failed) = (outcome.subsets, outcome.failed);
        record_and_replay(subject, share, &mut random, &mut outcome).context(subject.name)?;
        let (subsets, failed) = (outcome.subsets - subsets, outcome.failed - failed);
        ui.say(&format!("  · {}: {failed} of {subsets} failed", subject.name));
        turn += 1;
    }
    Ok(outcome)
}

/// The same of what else must outlive a power cut: the file arbiter and the records of images. Their own
/// tests do so, for as long as they are told.
pub fn replay_stores(time: Duration, outcome: &mut Outcome, ui: &Ui) -> Result<()> {
    let seconds = (time / 2).as_secs().to_string();
    let mut test = cargo();
    test.args(["test", "--quiet", "--package", "kemari", "--lib", "--"])
        .args(["whatever_a_power_cut_leaves", "--nocapture", "--test-threads=1"])
        .env("KEMARI_REPLAY_SECONDS", seconds);
    let said = output_of(&mut test)?;
    let cuts: Vec<u64> = said
        .lines()
        .filter_map(|line| line.rsplit_once("power cuts: ")?.1.parse().ok())
        .collect();
    ensure!(
        cuts.len() == 2,
        "arbiter and records were not both tried:\n{said}"
    );
    outcome.stores = cuts.iter().sum();
    ui.say(&format!(
        "  · the file arbiter and records: {} held",
        outcome.stores
    ));
    Ok(())
}

/// As a part of the tests: some seconds, and an error if anything was lost.
pub fn briefly() -> Result<()> {
    let outcome = replay(BRIEFLY, None, &Ui::default())?;
    let Outcome {
        subsets,
        failed,
        seed,
        ..
    } = outcome;
    ensure!(
        failed == 0,
        "{failed} of {subsets} cuts lost something; --seed {seed}"
    );
    Ok(())
}

fn record_and_replay(
    subject: &Subject,
    time: Duration,
    random: &mut ChaCha8Rng,
    outcome: &mut Outcome,
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (model, entries) = record(subject, directory.path(), random)?;
    let recording = Recording {
        name: subject.name,
        times: model.times(&entries),
        model,
        entries,
        is_device: subject.device_block_bytes.is_some(),
    };
    let crashed = directory.path().join("crashed");
    let begin = Instant::now();
    let enough = |_: &Outcome| begin.elapsed() > time;
    recording.replay(random, outcome, enough, |content| {
        fs::write(&crashed, content)?;
        let disk = Disk::open(&DiskConfig::new(&crashed))?;
        let (offset, bytes) = (0, disk.bytes() as usize);
        Ok(disk.carry_out(&Operation::Read { offset, bytes })?)
    })
}

/// Lets a disk of zeros have a lot to do.
fn record(subject: &Subject, directory: &Path, random: &mut ChaCha8Rng) -> Result<(Model, Vec<Entry>)> {
    let zeros = vec![0; (SECTORS * SECTOR_BYTES) as usize];
    let log = Arc::new(Log::new(zeros, subject.makes_holes));
    let file = OwnFile::mount(directory.join("image"), log.clone())?;
    let place = Place::of(subject, &file)?;
    let disk = Disk::open(&subject.config(place.path()))?;
    let grow = |server: &Server, sectors| place.grow(server, sectors);
    let storm = Storm {
        log: &log,
        grow: &grow,
        grown_sectors: GROWN_SECTORS,
        write_through: subject.write_through,
    };
    let model = storm.rage(disk, Model::new(SECTORS, subject.write_through), random)?;
    Ok((model, log.take()))
}

/// What has happened to one image.
struct Recording {
    name: &'static str,
    model: Model,
    times: Times,
    entries: Vec<Entry>,
    is_device: bool,
}

impl Recording {
    /// Tries the cuts behind every change, in any order, until it is `enough`. `reopen`:
    /// what a disk has whose file is so.
    fn replay(
        &self,
        random: &mut ChaCha8Rng,
        outcome: &mut Outcome,
        enough: impl Fn(&Outcome) -> bool,
        reopen: impl Fn(Vec<u8>) -> Result<Vec<u8>>,
    ) -> Result<()> {
        outcome.recordings += 1;
        let mut moments = moments(&self.entries);
        ensure!(!moments.is_empty(), "nothing has reached the file");
        let zeros = vec![0; (SECTORS * SECTOR_BYTES) as usize];
        for tried in 0.. {
            if moments.is_empty() || (tried >= MOMENTS_MIN && enough(outcome)) {
                break;
            }
            let moment = moments.swap_remove(random.random_range(0..moments.len()));
            let durable = moment.durable(zeros.clone(), &self.entries);
            // What a device's own cache holds is not in the file yet; it outlives the process all the same.
            let killed = (!self.is_device).then_some(Cut::Killed);
            for cut in killed.into_iter().chain([Cut::Prefix]).chain(SUBSETS) {
                let expected = self.model.at(&self.times, moment.place, cut == Cut::Killed);
                let content = moment.cut(durable.clone(), &self.entries, cut, random);
                let judged = reopen(content).and_then(|found| expected.judge(&found));
                outcome.subsets += 1;
                if let Err(error) = judged {
                    outcome.failed += 1;
                    if outcome.failed <= FINDINGS_MAX {
                        println!("  ! {}, {cut:?} at entry {}: {error:#}", self.name, moment.place);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "replay_test.rs"]
mod tests;
