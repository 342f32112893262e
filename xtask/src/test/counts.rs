//! Counting tests by place.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::Options;
use crate::tools;

/// Where a test ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Place {
    /// On this machine.
    Here,
    /// With, or inside, emulated hosts.
    Lab,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Here => "here",
            Place::Lab => "lab",
        })
    }
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub passed: u64,
    pub failed: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl Count {
    /// One test.
    pub(crate) fn one(passed: bool) -> Self {
        Self {
            passed: u64::from(passed),
            failed: u64::from(!passed),
        }
    }

    /// The sum of the summaries that Rust's test harness printed. `None`: there was none.
    pub(crate) fn of_harness(output: &str) -> Option<Self> {
        let mut sum = None;
        for line in output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("test result: "))
        {
            let number = |of: &str| {
                line.split([';', '.'])
                    .find_map(|part| part.trim().strip_suffix(of)?.trim().parse().ok())
            };
            *sum.get_or_insert(Self::default()) += Self {
                passed: number("passed")?,
                failed: number("failed")?,
            };
        }
        sum
    }
}

/// All counts so far, and how long what took.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<Place, Count>,
    times: Vec<(String, Duration)>,
}

impl Tally {
    /// Carries out a stage that is one test.
    pub(crate) fn stage(&mut self, place: Place, name: &str, work: impl FnOnce() -> Result<()>) {
        self.programs(place, name, || work().map(|()| Count::one(true)));
    }

    /// Carries out a stage of several tests; an error is one failed test.
    pub(crate) fn programs(&mut self, place: Place, name: &str, work: impl FnOnce() -> Result<Count>) {
        let begin = Instant::now();
        eprintln!("[{place}] {name}");
        let count = work().unwrap_or_else(|e| {
            println!("FAILED: {name}: {e:#}");
            Count::one(false)
        });
        let time = begin.elapsed();
        eprintln!(
            "[{place}] {name}: {} passed, {} failed, {:.1} s",
            count.passed,
            count.failed,
            time.as_secs_f64()
        );
        *self.counts.entry(place).or_default() += count;
        self.times.push((format!("[{place}] {name}"), time));
    }

    /// Sum over all places.
    pub(crate) fn total(&self) -> Count {
        let mut total = Count::default();
        self.counts.values().for_each(|count| total += *count);
        total
    }

    /// Compares with the declared numbers of tests: too few are a failed test.
    pub(crate) fn check_declared(&mut self, options: &Options) {
        for place in [Place::Here, Place::Lab]
            .into_iter()
            .filter(|place| options.wants(*place))
        {
            let count = self.counts.entry(place).or_default();
            match declared(place) {
                Ok(declared) if count.passed + count.failed >= declared => {}
                Ok(declared) => {
                    println!(
                        "FAILED: {} tests ran in place `{place}`, but {declared} are declared in {DECLARED}",
                        count.passed + count.failed
                    );
                    *count += Count::one(false);
                }
                Err(e) => {
                    println!("FAILED: {e:#}");
                    *count += Count::one(false);
                }
            }
        }
    }

    /// Prints times and counts.
    pub(crate) fn print(&self, total: Duration) {
        println!();
        for (name, time) in &self.times {
            println!("{:>8.1} s  {name}", time.as_secs_f64());
        }
        println!("{:>8.1} s  in all", total.as_secs_f64());
        for (place, count) in &self.counts {
            println!("{place}: {} passed, {} failed", count.passed, count.failed);
        }
    }
}

/// The file with the declared numbers.
const DECLARED: &str = "xtask/declared-tests.toml";

fn declared(place: Place) -> Result<u64> {
    let text = std::fs::read_to_string(tools::root().join(DECLARED))
        .with_context(|| format!("{DECLARED} cannot be read"))?;
    let table: BTreeMap<String, u64> =
        toml::from_str(&text).with_context(|| format!("{DECLARED} is not as expected"))?;
    table
        .get(&place.to_string())
        .copied()
        .with_context(|| format!("{DECLARED} does not name place `{place}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_the_harness_are_summed() {
        let output = "running 3 tests\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; \
                      finished in 0.1s\nx\ntest result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 0 \
                      filtered out; finished in 2.10s\n";
        assert_eq!(
            Count::of_harness(output),
            Some(Count {
                passed: 42,
                failed: 1
            })
        );
        assert_eq!(Count::of_harness("Segmentation fault"), None);
    }

    #[test]
    fn an_error_is_a_failed_test() {
        let mut tally = Tally::default();
        tally.stage(Place::Here, "good", || Ok(()));
        tally.stage(Place::Lab, "bad", || anyhow::bail!("on purpose, for this test"));
        assert_eq!(tally.total(), Count { passed: 1, failed: 1 });
    }

    #[test]
    fn fewer_tests_than_declared_are_a_failure() {
        let mut tally = Tally::default();
        tally.check_declared(&Options {
            place: Some(Place::Here),
            packages: Vec::new(),
        });
        assert_eq!(tally.total(), Count { passed: 0, failed: 1 });
    }
}
