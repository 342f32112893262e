//! What `kemari top` knows: the sides that it has found, and how fast they were from one look to the next.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use crate::cli::sides::Side;
use crate::control::{Counters, Status, Timings, Verdict};

/// Rates of a side that are kept, for its line.
pub(super) const RATES_MAX: usize = 240;

/// A side, as it stands, and how it was.
#[derive(Debug)]
pub(super) struct Row {
    /// The VM's name.
    pub vm: String,
    /// Its socket, which tells one side from another.
    socket: PathBuf,
    /// How it stands, or why it does not say.
    pub status: Result<Status, String>,
    /// How fast it was since the look before, if it was there then.
    pub pace: Option<Pace>,
    /// Syncs a second, the latest last: from one look to the next, as long as it answers.
    pub rates: VecDeque<u64>,
    last: Option<Moment>,
}

impl Row {
    /// Whether a takeover would succeed now, as far as it is said.
    pub(super) fn verdict(&self) -> Verdict {
        self.status.as_ref().map_or(Verdict::Doubtful, Status::verdict)
    }
}

/// What a side had counted at a look.
#[derive(Debug)]
struct Moment {
    at: Instant,
    counters: Counters,
    timings: Timings,
}

/// How fast a side was from one look to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Committed syncs.
    pub syncs_per_s: f64,
    /// Bytes on the wire for them.
    pub wire_bytes_per_s: f64,
    /// How long those that a primary made took, from the guest's notification to the release of its output.
    pub sync_us: Option<Quantiles>,
    /// How long the guest stood still in them.
    pub pause_us: Option<Quantiles>,
}

/// The length that a half and 99 % of them did not exceed, in us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantiles {
    pub half_us: u64,
    pub most_us: u64,
}

impl Moment {
    /// None: the counts are of another process, or no time has passed.
    fn pace_since(&self, earlier: &Self) -> Option<Pace> {
        let seconds = self.at.checked_duration_since(earlier.at)?.as_secs_f64();
        let syncs = self.counters.syncs.checked_sub(earlier.counters.syncs)?;
        let bytes = self
            .counters
            .wire_bytes
            .checked_sub(earlier.counters.wire_bytes)?;
        let quantiles = |of: fn(&Timings) -> &crate::control::Histogram| {
            let between = of(&self.timings).since(of(&earlier.timings))?;
            (between.count > 0).then(|| Quantiles {
                half_us: between.quantile_us(0.5),
                most_us: between.quantile_us(0.99),
            })
        };
        (seconds > 0.0).then(|| Pace {
            syncs_per_s: syncs as f64 / seconds,
            wire_bytes_per_s: bytes as f64 / seconds,
            sync_us: quantiles(|timings| &timings.sync_us),
            pause_us: quantiles(|timings| &timings.pause_us),
        })
    }
}

/// All sides of this host, by VM and host.
#[derive(Debug, Default)]
pub(super) struct Watch {
    rows: Vec<Row>,
    /// The row that is told of in detail.
    chosen: usize,
    /// Why the last look found nothing out.
    pub trouble: Option<String>,
    /// Whether there was a look.
    pub has_looked: bool,
}

impl Watch {
    /// The sides.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Which of them is told of in detail, if there are any.
    pub(super) fn chosen(&self) -> Option<usize> {
        (!self.rows.is_empty()).then_some(self.chosen)
    }

    /// Takes in what was found out at that time. The side that was chosen stays chosen as long as it is
    /// there.
    pub(super) fn look(&mut self, at: Instant, found: anyhow::Result<Vec<Side>>) {
        self.has_looked = true;
        let sides = match found {
            Ok(sides) => sides,
            Err(error) => {
                self.trouble = Some(format!("{error:#}"));
                return;
            }
        };
        self.trouble = None;
        let chosen = self.chosen().map(|index| self.rows[index].socket.clone());
        let mut before = std::mem::take(&mut self.rows);
        self.rows = sides
            .into_iter()
            .map(|side| {
                let known = before.iter().position(|row| row.socket == side.socket);
                next_row(at, side, known.map(|index| before.swap_remove(index)))
            })
            .collect();
        let again = self
            .rows
            .iter()
            .position(|row| Some(&row.socket) == chosen.as_ref());
        self.chosen = again.unwrap_or(self.chosen.min(self.rows.len().saturating_sub(1)));
    }

    /// Chooses a row so many lines further down, or the last or the first.
    pub(super) fn choose(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }
}

fn next_row(at: Instant, side: Side, before: Option<Row>) -> Row {
    let vm = side.vm();
    let (mut rates, last) = before.map_or_else(Default::default, |row| (row.rates, row.last));
    let mut row = Row {
        vm,
        socket: side.socket,
        status: side
            .answer
            .map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        pace: None,
        rates: VecDeque::new(),
        last: None,
    };
    if let Ok(status) = &row.status {
        let now = Moment {
            at,
            counters: status.counters,
            timings: status.timings.clone(),
        };
        row.pace = last.and_then(|last| now.pace_since(&last));
        row.last = Some(now);
    }
    match row.pace {
        Some(pace) => rates.push_back(pace.syncs_per_s.round() as u64),
        None => rates.clear(),
    }
    if rates.len() > RATES_MAX {
        rates.pop_front();
    }
    row.rates = rates;
    row
}
