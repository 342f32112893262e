//! Distributions of how long things took, for `kemari status --json` and benchmarks.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

use super::Bucket;

/// Buckets for each doubling of the length: a bucket is at most a sixteenth wider than what lies in it.
const STEPS_PER_DOUBLING: u64 = 16;
/// Buckets in all: lengths below 2^32 us, over an hour, are told apart.
const BUCKETS: usize = 16 * 29;

/// How often something took how long, since the process started. Two snapshots, subtracted bucket by bucket,
/// tell of the time between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// How often.
    pub count: u64,
    /// Sum of all lengths, in us.
    pub sum_us: u64,
    /// The longest, in us.
    pub(crate) max_us: u64,
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            count: 0,
            sum_us: 0,
            max_us: 0,
            counts: Box::new([0; BUCKETS]),
        }
    }
}

impl Histogram {
    /// Counts one that took so long.
    pub fn note(&mut self, us: u64) {
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
        self.counts[index(us)] += 1;
    }

    /// The length that this share of them did not exceed, in us, as precisely as the buckets tell;
    /// 0 if there are none.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen: u64 = 0;
        let bucket = self.counts.iter().position(|count| {
            // What another process says of itself may be anything.
            seen = seen.saturating_add(*count);
            seen >= wanted
        });
        bucket.map_or(0, |bucket| up_to_us(bucket).min(self.max_us))
    }

    /// What was noted since `earlier`; nothing, if that is of another process. The longest of them is told as
    /// precisely as the buckets tell.
    pub(crate) fn since(&self, earlier: &Self) -> Option<Self> {
        let mut counts = self.counts.clone();
        for (count, before) in counts.iter_mut().zip(earlier.counts.iter()) {
            *count = count.checked_sub(*before)?;
        }
        let longest = counts.iter().rposition(|count| *count > 0);
        Some(Self {
            count: self.count.checked_sub(earlier.count)?,
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            max_us: longest.map_or(0, |bucket| up_to_us(bucket).min(self.max_us)),
            counts,
        })
    }

    /// The buckets that are not empty, shortest first.
    pub(crate) fn buckets(&self) -> Vec<Bucket> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled
            .map(|(index, &count)| Bucket {
                up_to_us: up_to_us(index),
                count,
            })
            .collect()
    }
}

/// Lengths up to 31 us have a bucket each; above, the five highest bits tell.
fn index(us: u64) -> usize {
    let us = us.min(u32::MAX.into());
    let doublings = (us / STEPS_PER_DOUBLING).checked_ilog2().unwrap_or(0);
    (u64::from(doublings) * STEPS_PER_DOUBLING + (us >> doublings)) as usize
}

/// The longest in a bucket, in us.
fn up_to_us(index: usize) -> u64 {
    let index = index as u64;
    let doublings = (index / STEPS_PER_DOUBLING).saturating_sub(1);
    ((index - doublings * STEPS_PER_DOUBLING + 1) << doublings) - 1
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Histogram", 4)?;
        fields.serialize_field("count", &self.count)?;
        fields.serialize_field("sum_us", &self.sum_us)?;
        fields.serialize_field("max_us", &self.max_us)?;
        fields.serialize_field("buckets", &self.buckets())?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            count: u64,
            sum_us: u64,
            max_us: u64,
            buckets: Vec<Bucket>,
        }
        let fields = Fields::deserialize(deserializer)?;
        let mut histogram = Self {
            count: fields.count,
            sum_us: fields.sum_us,
            max_us: fields.max_us,
            ..Self::default()
        };
        for bucket in fields.buckets {
            histogram.counts[index(bucket.up_to_us)] = bucket.count;
        }
        Ok(histogram)
    }
}

/// How long syncs and their parts took, on the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// From the guest's notification (or, without one, from the pause) to the release of its output.
    pub sync_us: Histogram,
    /// The guest's pause.
    pub pause_us: Histogram,
    /// From the pause to the capture's end: registers, devices, dirty pages, copied and encoded.
    pub capture_us: Histogram,
    /// Of the capture: output and states of devices, vCPUs and interrupt controllers.
    pub(crate) state_us: Histogram,
    /// Of the capture: finding the dirty pages.
    pub(crate) dirty_us: Histogram,
    /// Of the capture: copying and encoding them.
    pub(crate) encode_us: Histogram,
    /// Handing the sync to the socket, as far as it took it at once.
    pub send_us: Histogram,
    /// From there to the ack.
    pub(crate) ack_us: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_lies_in_a_bucket_that_is_hardly_wider() {
        let lengths = (0..5000).chain([65_535, 65_536, 1_000_000, u32::MAX.into()]);
        for us in lengths {
            let bucket = index(us);
            assert!(
                us <= up_to_us(bucket) && (bucket == 0 || up_to_us(bucket - 1) < us),
                "{us}"
            );
            assert!(up_to_us(bucket) - us <= us / 16, "{us}");
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_was_noted_between_two_moments() {
        let mut histogram = Histogram::default();
        (1..=20).for_each(|us| histogram.note(us));
        let earlier = histogram.clone();
        assert_eq!(histogram.since(&earlier), Some(Histogram::default()));
        (5..=7).for_each(|us| histogram.note(us));
        let between = histogram.since(&earlier).expect("one process");
        assert_eq!((between.count, between.sum_us, between.max_us), (3, 18, 7));
        assert_eq!(between.quantile_us(0.5), 6);
        assert_eq!(earlier.since(&histogram), None, "the process began anew");
        histogram.note(1000);
        let between = histogram.since(&earlier).expect("one process");
        assert_eq!(between.max_us, 1000, "none took longer");
    }

    #[test]
    fn quantiles_and_the_way_through_json() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(0.5), 0);
        (1..=1000).for_each(|us| histogram.note(us));
        assert!((500..=532).contains(&histogram.quantile_us(0.5)), "{histogram:?}");
        assert_eq!(histogram.quantile_us(1.0), 1000);
        let json = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&json).unwrap(), histogram);
    }
}
