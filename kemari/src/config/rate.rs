//! How much a disk or a card may do in a time.

use std::ops::RangeInclusive;

use kemari_vmm::virtio::rate::BucketSpec;
use serde::{Deserialize, Serialize};

/// Rates that may be configured, in KiB or operations a second.
/// A guest that may do less is better without the device.
const RATE: RangeInclusive<u64> = 1..=1 << 40;
/// A burst is by default what comes in so many parts of a second.
const BURST_PART_DEFAULT: u64 = 10;

/// `rate` of `[[disk]]` and `[[net]]`: of a card, for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Most KiB of data a second; none: as much as there is.
    #[serde(default)]
    pub(crate) kib_per_s: Option<u64>,
    /// KiB that may be moved at once after a time of rest.
    #[serde(default)]
    pub(crate) burst_kib: Option<u64>,
    /// Most requests, or packets, a second.
    #[serde(default)]
    pub operations_per_s: Option<u64>,
    /// Requests, or packets, that may be made at once after a time of rest.
    #[serde(default)]
    pub burst_operations: Option<u64>,
}

impl Rate {
    /// What may be moved, in bytes.
    pub fn bytes(&self) -> Option<BucketSpec> {
        let kib = paced(self.kib_per_s, self.burst_kib)?;
        Some(BucketSpec {
            per_s: kib.per_s << 10,
            burst: kib.burst << 10,
        })
    }

    /// What may be asked for.
    pub(crate) fn operations(&self) -> Option<BucketSpec> {
        paced(self.operations_per_s, self.burst_operations)
    }

    /// What is wrong, by key, as the rest of a sentence that begins with it.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let bytes = ("kib_per_s", self.kib_per_s, "burst_kib", self.burst_kib);
        let operations = (
            "operations_per_s",
            self.operations_per_s,
            "burst_operations",
            self.burst_operations,
        );
        let mut faults = Vec::new();
        for (rate_key, rate, burst_key, burst) in [bytes, operations] {
            let (least, most) = RATE.into_inner();
            match (rate, burst) {
                (Some(rate), _) if !(least..=most).contains(&rate) => {
                    faults.push((rate_key, format!("is {rate}, but must be {least} to {most}")));
                }
                (None, Some(_)) => {
                    faults.push((
                        burst_key,
                        format!("says nothing without `{rate_key}`: name both, or none"),
                    ));
                }
                (Some(rate), Some(burst)) if burst < BucketSpec::burst_min(rate) || burst > most => {
                    let least = BucketSpec::burst_min(rate);
                    faults.push((
                        burst_key,
                        format!(
                            "is {burst}, but must be {least} to {most}: with less than 10 ms of a rate of \
                             {rate} it is not reached"
                        ),
                    ));
                }
                _ => {}
            }
        }
        faults
    }
}

fn paced(per_s: Option<u64>, burst: Option<u64>) -> Option<BucketSpec> {
    let per_s = per_s?;
    let burst = burst.unwrap_or((per_s / BURST_PART_DEFAULT).max(1));
    Some(BucketSpec { per_s, burst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_a_tenth_of_a_second_unless_it_is_named() {
        let rate = Rate {
            kib_per_s: Some(1000),
            operations_per_s: Some(5),
            burst_operations: Some(3),
            ..Rate::default()
        };
        let (per_s, burst) = (1000 << 10, 100 << 10);
        assert_eq!(rate.bytes(), Some(BucketSpec { per_s, burst }));
        assert_eq!(rate.operations(), Some(BucketSpec { per_s: 5, burst: 3 }));
        assert_eq!(rate.faults(), []);
        assert_eq!(
            (Rate::default().bytes(), Rate::default().operations()),
            (None, None)
        );
    }

    #[test]
    fn what_would_never_be_reached_or_mean_nothing_is_refused() {
        let faults = |rate: Rate| rate.faults().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        let none = Rate::default();
        let (kib_per_s, operations_per_s) = (Some(0), Some(u64::MAX));
        let both = Rate {
            kib_per_s,
            operations_per_s,
            ..none
        };
        assert_eq!(faults(both), ["kib_per_s", "operations_per_s"]);
        let (burst_kib, burst_operations) = (Some(1), Some(1));
        let alone = Rate {
            burst_kib,
            burst_operations,
            ..none
        };
        assert_eq!(faults(alone), ["burst_kib", "burst_operations"]);
        let of = |burst| {
            faults(Rate {
                operations_per_s: Some(1000),
                burst_operations: Some(burst),
                ..none
            })
        };
        assert_eq!(of(9), ["burst_operations"]);
        assert_eq!(of(10), [""; 0]);
        assert_eq!(of(0), ["burst_operations"]);
    }
}
