//! What the bench needs of `kemari status --json`: counts, and how long syncs took, between two looks.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::stats::Series;
use crate::demo::pair::Takeover;

/// How one side stands. What an older program does not tell has its default.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// "off", "on", "doubtful" or an object that tells how far the first copy is.
    pub protection: serde_json::Value,
    /// What happened so far.
    #[serde(default)]
    pub counters: Counters,
    /// How long syncs took so far.
    #[serde(default)]
    pub timings: Timings,
    /// The last takeover that this side carried out.
    #[serde(default)]
    pub takeover: Option<Takeover>,
    /// The last drill of this side.
    #[serde(default)]
    pub drill: Option<Drill>,
}

/// How a drill went.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Drill {
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// For how long the secondary stood still to begin it.
    pub standstill_us: u64,
}

/// Counts since the process started.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Committed syncs.
    pub syncs: u64,
    /// Pages in them.
    pub pages: u64,
    /// Bytes on the wire for them.
    pub wire_bytes: u64,
}

/// How long syncs and their parts took since the process started.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// From the guest's notification to the release of its output.
    pub sync_us: Histogram,
    /// The guest's pause.
    pub pause_us: Histogram,
    /// From the pause to the capture's end.
    pub capture_us: Histogram,
    /// Of the capture: reading the states.
    pub state_us: Histogram,
    /// Of the capture: finding the dirty pages.
    pub dirty_us: Histogram,
    /// Of the capture: copying and encoding them.
    pub encode_us: Histogram,
    /// Handing the sync to the socket.
    pub send_us: Histogram,
    /// From there to the ack.
    pub ack_us: Histogram,
}

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Histogram {
    /// How often.
    pub count: u64,
    /// Sum of all lengths, in us.
    pub sum_us: u64,
    /// The buckets that are not empty, shortest first.
    pub buckets: Vec<Bucket>,
}

/// Lengths that were told apart from others, not from each other.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Bucket {
    /// The longest of them, in us.
    pub up_to_us: u64,
    /// How many.
    pub count: u64,
}

/// Buckets for each doubling of the length.
const STEPS_PER_DOUBLING: u64 = 16;

/// What happened between two looks at a primary, or over several such times.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// Counts.
    pub counters: Counters,
    /// Lengths.
    pub timings: Timings,
}

impl Status {
    /// Reads what the program printed.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .with_context(|| format!("`kemari status --json` printed no status: {json}"))
    }

    /// Whether output waits for the peer.
    pub fn is_protected(&self) -> bool {
        self.protection == "on"
    }
}

impl Span {
    /// Adds what happened between two looks.
    pub fn add(&mut self, before: &Status, after: &Status) {
        let (counters, was) = (after.counters, before.counters);
        self.counters.syncs += counters.syncs.saturating_sub(was.syncs);
        self.counters.pages += counters.pages.saturating_sub(was.pages);
        self.counters.wire_bytes += counters.wire_bytes.saturating_sub(was.wire_bytes);
        let (timings, was) = (&after.timings, &before.timings);
        let mine = &mut self.timings;
        mine.sync_us.add(&was.sync_us, &timings.sync_us);
        mine.pause_us.add(&was.pause_us, &timings.pause_us);
        mine.capture_us.add(&was.capture_us, &timings.capture_us);
        mine.state_us.add(&was.state_us, &timings.state_us);
        mine.dirty_us.add(&was.dirty_us, &timings.dirty_us);
        mine.encode_us.add(&was.encode_us, &timings.encode_us);
        mine.send_us.add(&was.send_us, &timings.send_us);
        mine.ack_us.add(&was.ack_us, &timings.ack_us);
    }

    /// How long syncs took, and their parts. An error if the program told of none.
    pub fn breakdown(&self, label: &str) -> Result<Vec<Series>> {
        let t = &self.timings;
        ensure!(
            t.sync_us.count > 0,
            "the primary's status tells of no sync in this time"
        );
        let parts = [
            ("sync", &t.sync_us),
            ("pause", &t.pause_us),
            ("capture", &t.capture_us),
            ("  states", &t.state_us),
            ("  dirty log", &t.dirty_us),
            ("  copy and encode", &t.encode_us),
            ("send", &t.send_us),
            ("wait for the ack", &t.ack_us),
        ];
        let series = parts.map(|(part, histogram)| histogram.series(&format!("{label}{part}")));
        Ok(series.into())
    }
}

impl Histogram {
    /// Adds what came between two snapshots of one.
    fn add(&mut self, before: &Histogram, after: &Histogram) {
        self.count += after.count.saturating_sub(before.count);
        self.sum_us += after.sum_us.saturating_sub(before.sum_us);
        for bucket in &after.buckets {
            let was = before.buckets.iter().find(|was| was.up_to_us == bucket.up_to_us);
            let count = bucket.count - was.map_or(0, |was| was.count.min(bucket.count));
            match self
                .buckets
                .binary_search_by_key(&bucket.up_to_us, |mine| mine.up_to_us)
            {
                Ok(index) => self.buckets[index].count += count,
                Err(index) => self.buckets.insert(index, Bucket { count, ..*bucket }),
            }
        }
        self.buckets.retain(|bucket| bucket.count > 0);
    }

    /// The distribution. Inside a bucket lengths are taken as evenly spread.
    pub fn series(&self, label: &str) -> Series {
        let total: u64 = self.buckets.iter().map(|bucket| bucket.count).sum();
        let mut percentiles = Vec::new();
        let mut seen = 0;
        for bucket in &self.buckets {
            let percent = |count: u64| 100.0 * count as f64 / total as f64;
            // Short lengths have a bucket each: then both are the length itself.
            let doublings = (bucket.up_to_us / STEPS_PER_DOUBLING)
                .checked_ilog2()
                .unwrap_or(0);
            let (low, high) = (bucket.up_to_us + 1 - (1 << doublings), bucket.up_to_us);
            let (low, high) = (low as f64, high as f64);
            percentiles.extend([(percent(seen), low), (percent(seen + bucket.count), high)]);
            seen += bucket.count;
        }
        Series {
            label: label.to_owned(),
            unit: "us",
            count: total,
            percentiles,
        }
    }

    /// The mean, in us.
    pub fn mean_us(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_us as f64 / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(syncs: u64, buckets: &str) -> Status {
        let json = format!(
            r#"{{"protection":"on","counters":{{"syncs":{syncs},"pages":1,"wire_bytes":1,"new":3}},
                "timings":{{"sync_us":{{"count":{syncs},"sum_us":{},"max_us":9,"buckets":{buckets}}}}}}}"#,
            syncs * 100
        );
        Status::parse(&json).unwrap()
    }

    #[test]
    fn what_came_between_two_looks_is_added_up() {
        let first = status(10, r#"[{"up_to_us":103,"count":10}]"#);
        let second = status(30, r#"[{"up_to_us":103,"count":20},{"up_to_us":207,"count":10}]"#);
        let third = status(
            40,
            r#"[{"up_to_us":99,"count":5},{"up_to_us":103,"count":20},{"up_to_us":207,"count":15}]"#,
        );
        let mut span = Span::default();
        span.add(&first, &second);
        span.add(&second, &third);
        assert_eq!(span.counters.syncs, 30);
        let sync = &span.timings.sync_us;
        let counts: Vec<_> = sync
            .buckets
            .iter()
            .map(|bucket| (bucket.up_to_us, bucket.count))
            .collect();
        assert_eq!(counts, [(99, 5), (103, 10), (207, 15)]);
        assert_eq!((sync.count, sync.mean_us()), (30, Some(100.0)));
        let series = sync.series("sync");
        assert_eq!(series.count, 30);
        assert!((97.0..=104.0).contains(&series.at(40.0).unwrap()), "{series:?}");
        assert!((195.0..=207.0).contains(&series.at(80.0).unwrap()), "{series:?}");
        assert!(
            series.percentiles.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1),
            "{series:?}"
        );
        assert_eq!(span.breakdown("").unwrap().len(), 8);
    }

    #[test]
    fn an_older_program_tells_less() {
        let old = Status::parse(r#"{"protection":"on","counters":{"syncs":1}}"#).unwrap();
        assert!(old.is_protected() && old.takeover.is_none());
        let mut span = Span::default();
        span.add(&old, &old);
        assert!(span.breakdown("").unwrap_err().to_string().contains("no sync"));
        assert!(span.timings.sync_us.series("x").percentiles.is_empty());
    }
}
