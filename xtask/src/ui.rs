//! Steps, shown as they go: a moving line on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How often the moving line moves.
const TICK: Duration = Duration::from_millis(100);

/// Where steps are shown: on the standard error.
#[derive(Debug, Default)]
pub struct Ui {
    prefix: String,
}

/// The step that is being shown.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    what: String,
}

impl Ui {
    /// Puts words before each step from now on.
    pub fn set_prefix(&mut self, prefix: String) {
        self.prefix = prefix;
    }

    /// Carries out a step and shows what it is, and how long it took.
    pub fn step<T>(&self, what: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let what = format!("{}{what}", self.prefix);
        let bar = ProgressBar::new_spinner();
        let style =
            ProgressStyle::with_template("  {spinner} {msg}").unwrap_or(ProgressStyle::default_spinner());
        bar.set_style(style);
        bar.set_message(what.clone());
        bar.enable_steady_tick(TICK);
        let step = Step { bar, what };
        let result = work(&step);
        step.bar.finish_and_clear();
        let mark = if result.is_ok() { "✓" } else { "✗" };
        eprintln!("  {mark} {} ({:.1} s)", step.what, begin.elapsed().as_secs_f64());
        result
    }

    /// Says something between two steps.
    pub fn say(&self, what: &str) {
        eprintln!("{}{what}", self.prefix);
    }
}

impl Step {
    /// One that nobody sees.
    pub fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            what: String::new(),
        }
    }

    /// Says how far the step has come. Only a terminal shows it.
    pub fn note(&self, how_far: &str) {
        self.bar.set_message(format!("{}: {how_far}", self.what));
    }
}
