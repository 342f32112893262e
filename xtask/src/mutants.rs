//! `cargo xtask mutants`: wrong edits, one at a time, each of which a test must notice.
//!
//! The edits stand in `xtask/mutants/*.toml`, a file for each part of the code: what rule a line keeps, how
//! the line would be wrong, and the narrowest tests that must fail then; or why none can, since the code
//! means the same with the edit. They are made in a copy of the tree, never in the checkout.

mod list;
mod tree;
mod trial;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::ui::Ui;
use list::Mutant;
use tree::Tree;
use trial::{Tests, Verdict};

/// As a part of the tests, no edit is begun after so long, builds included.
const BRIEFLY: Duration = Duration::from_secs(60);
/// Then only edits of these packages are made: the copy of the tree may have to be built first,
/// and the others take minutes.
const BRIEF_PACKAGES: [&str; 1] = ["kemari-sync"];

/// Which edits.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Only edits of files whose path contains this (may be repeated)
    #[arg(long = "file", value_name = "FILE")]
    pub files: Vec<String>,
    /// In a random order, and none is begun after so many minutes
    #[arg(long)]
    pub minutes: Option<u64>,
    /// Makes the random order repeatable
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only shows the edits, and the rules that they break
    #[arg(long)]
    pub list: bool,
}

/// What all edits have shown: the last line printed, as JSON.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    mutants: u32,
    caught: u32,
    /// Rules that nobody missed.
    survived: Vec<String>,
    /// Edits that nobody can notice, as is said beside them, and nobody did.
    equal: u32,
    /// Edits that show nothing: they do not compile, or their tests are none, or fail without them, or notice
    /// what is said to be equal.
    unviable: u32,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.survived.is_empty() && self.unviable == 0
    }
}

/// Makes the edits; whether every one was caught.
pub fn mutants(options: &Options) -> Result<bool> {
    let mut mutants = list::read()?;
    mutants.retain(|mutant| {
        options.files.is_empty() || options.files.iter().any(|file| mutant.file.contains(file))
    });
    ensure!(
        !mutants.is_empty(),
        "there is no edit of such a file: see `cargo xtask mutants --list`"
    );
    if options.list {
        for mutant in &mutants {
            println!("{}: {}", mutant.file, mutant.rule);
        }
        return Ok(true);
    }
    if options.minutes.is_some() {
        shuffle(&mut mutants, options.seed);
    }
    let limit = options.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let outcome = try_each(&mutants, limit, &Ui::default())?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(outcome.is_good())
}

/// As a part of the tests: a random sample of what is soon built.
pub fn briefly() -> Result<()> {
    let mut mutants = list::read()?;
    mutants.retain(|mutant| BRIEF_PACKAGES.contains(&mutant.package()));
    ensure!(!mutants.is_empty(), "there is no edit of {BRIEF_PACKAGES:?}");
    shuffle(&mut mutants, None);
    let outcome = try_each(&mutants, Some(BRIEFLY), &Ui::default())?;
    if !outcome.is_good() {
        bail!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

fn shuffle(mutants: &mut [Mutant], seed: Option<u64>) {
    let seed = seed.unwrap_or_else(rand::random);
    println!("  · seed {seed}");
    mutants.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
}

fn try_each(mutants: &[Mutant], limit: Option<Duration>, ui: &Ui) -> Result<Outcome> {
    let begin = Instant::now();
    let tree = ui.step("a copy of the tree", |_| Tree::copied())?;
    let mut tests = Tests::default();
    let mut outcome = Outcome::default();
    for mutant in mutants {
        if limit.is_some_and(|limit| begin.elapsed() > limit) {
            break;
        }
        outcome.mutants += 1;
        let name = mutant.name();
        let verdict = ui.step(&name, |_| {
            if let Err(why) = tests.pass_unedited(&tree, mutant) {
                return Ok(Verdict::Unviable(format!("{why:#}")));
            }
            tree.edited(mutant, || tests.judge(&tree, mutant))
                .with_context(|| name.clone())
        })?;
        let verdict = match (verdict, &mutant.equal) {
            (Verdict::Caught(by), Some(_)) => Verdict::Unviable(format!("it is not equal: {by}")),
            (verdict, _) => verdict,
        };
        match verdict {
            Verdict::Caught(by) => {
                ui.say(&format!("    caught by {by}"));
                outcome.caught += 1;
            }
            Verdict::Survived if mutant.equal.is_some() => outcome.equal += 1,
            Verdict::Survived => outcome.survived.push(name),
            Verdict::Unviable(why) => {
                println!("SHOWS NOTHING: {name}\n{why}");
                outcome.unviable += 1;
            }
        }
    }
    for name in &outcome.survived {
        println!("NOT CAUGHT: {name}");
    }
    Ok(outcome)
}
