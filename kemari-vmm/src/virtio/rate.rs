//! How much a device may do in a time: token buckets, as Firecracker and Cloud Hypervisor have them, for
//! bytes and for operations. What is over the rate stays in the ring, or at the TAP, until there are tokens
//! again: a noisy guest makes itself wait, and neither its neighbours nor its own syncs.
//!
//! A bucket is told what time it is and knows no clock. It belongs to the host and not to the guest: it is in
//! no saved state, a reset of the guest fills none, and who takes over begins with full ones.

mod resumer;

use std::time::{Duration, Instant};

pub use resumer::CALLS;
pub(crate) use resumer::Resumer;

/// Nobody is asked to come again sooner: what comes in a moment is taken together. A bucket that holds less
/// than that brings does not reach its rate ([`BucketSpec::burst_min`]).
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(1);
/// A bucket should hold what comes in so many pauses, since threads wake up late.
const PAUSES_HELD_MIN: u64 = 10;

const NS_PER_S: i128 = 1_000_000_000;

/// What a bucket gets, and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketSpec {
    /// Tokens that come in a second; 1 at least.
    pub per_s: u64,
    /// Tokens that it holds when nothing was taken for long; 1 at least.
    pub burst: u64,
}

impl BucketSpec {
    /// The smallest burst with which a rate is reached.
    pub fn burst_min(per_s: u64) -> u64 {
        let pauses_per_s = (NS_PER_S as u64) / PAUSE_MIN.as_nanos() as u64;
        (per_s.saturating_mul(PAUSES_HELD_MIN) / pauses_per_s).max(1)
    }

    /// One that holds nothing would never open.
    fn full(self) -> i128 {
        i128::from(self.burst.max(1)) * NS_PER_S
    }
}

/// The rates of a device, or of one direction of a card. What has none is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSpec {
    /// Of data, in bytes.
    pub bytes: Option<BucketSpec>,
    /// Of requests or packets.
    pub operations: Option<BucketSpec>,
}

impl RateSpec {
    /// Whether nothing is limited.
    pub(crate) fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// One bucket. It is open while there is a token in it: what then is taken may be more than that, and is
/// owed, so that a request larger than the bucket does not wait for ever, and the rate holds all the same.
#[derive(Debug)]
struct Bucket {
    spec: BucketSpec,
    /// Tokens, times [`NS_PER_S`]; below zero if some are owed.
    level: i128,
    at: Instant,
}

impl Bucket {
    fn new(spec: BucketSpec, now: Instant) -> Self {
        Self {
            spec,
            level: spec.full(),
            at: now,
        }
    }

    /// What has come since the last time. A time before that is none.
    fn fill(&mut self, now: Instant) {
        let passed_ns = now.saturating_duration_since(self.at).as_nanos() as i128;
        let come = i128::from(self.spec.per_s).saturating_mul(passed_ns);
        self.level = self.level.saturating_add(come).min(self.spec.full());
        self.at = self.at.max(now);
    }

    /// For how long it is empty, after [`Bucket::fill`].
    fn empty_for(&self) -> Duration {
        let lacking = NS_PER_S - self.level;
        if lacking <= 0 {
            return Duration::ZERO;
        }
        let ns = lacking.div_euclid(i128::from(self.spec.per_s.max(1))) + 1;
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * NS_PER_S);
    }
}

/// The buckets of a device, or of one direction of a card.
#[derive(Debug)]
pub(crate) struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// Full buckets.
    pub(crate) fn new(spec: RateSpec, now: Instant) -> Self {
        Self {
            bytes: spec.bytes.map(|spec| Bucket::new(spec, now)),
            operations: spec.operations.map(|spec| Bucket::new(spec, now)),
        }
    }

    /// Whether something may be done now.
    ///
    /// # Errors
    /// When to ask again.
    pub(crate) fn is_open(&mut self, now: Instant) -> Result<(), Instant> {
        let buckets = self.bytes.iter_mut().chain(&mut self.operations);
        let empty_for = buckets.map(|bucket| {
            bucket.fill(now);
            bucket.empty_for()
        });
        match empty_for.max().unwrap_or_default() {
            Duration::ZERO => Ok(()),
            pause => Err(now + pause.clamp(PAUSE_MIN, Duration::from_secs(3600))),
        }
    }

    /// Something was done, with so many bytes.
    pub(crate) fn spend(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

/// Does something with so many bytes, if a rate allows it.
///
/// # Errors
/// When to ask again.
pub(crate) fn admit(limiter: Option<&mut Limiter>, bytes: u64) -> Result<(), Instant> {
    let Some(limiter) = limiter else { return Ok(()) };
    limiter.is_open(Instant::now())?;
    limiter.spend(bytes);
    Ok(())
}

#[cfg(test)]
#[path = "rate_test.rs"]
mod tests;
