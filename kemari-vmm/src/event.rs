//! Event channels and their taps.
//!
//! A channel is the one place where the notifications between guest and one back end pass: OUT from the guest
//! (kick, console write, power-off), IN from the back end (interrupt). A tap is a function attached to a
//! channel, at any time, for one direction or both. The synchronisation is one user of the taps, a
//! measurement another.
//!
//! The contract: once [`EventChannel::attach`] has returned, every later event calls the tap exactly once;
//! once [`EventChannel::detach`] has returned, no call is under way and none will come. A tap runs on the
//! thread that notifies, possibly the vCPU's: it must be short, and must not attach or detach taps itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// Which way a notification goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the back end to the guest: an interrupt.
    In,
    /// From the guest to the back end: a kick, a console byte, a power-off.
    Out,
}

/// Which directions a tap wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Only IN.
    In,
    /// Only OUT.
    Out,
    /// Both.
    Both,
}

impl Interest {
    fn covers(self, direction: Direction) -> bool {
        matches!(
            (self, direction),
            (Self::Both, _) | (Self::In, Direction::In) | (Self::Out, Direction::Out)
        )
    }
}

/// One notification, as a tap sees it.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The channel's name, as `net0.tx`.
    pub channel: &'a str,
    /// Which way it goes.
    pub direction: Direction,
    /// Whether the channel's back end now holds output that no capture contains.
    /// A synchronising tap acts on this.
    pub output_held: bool,
    /// False where the back end found work in its ring without being notified; such an event counts as no
    /// notification, but its output waits all the same.
    pub notified: bool,
}

/// A function attached to an event channel.
pub trait Tap: Send + Sync {
    /// Called on the notifying thread for each event of the tap's interest.
    fn event(&self, event: &Event<'_>);
}

struct Attached {
    id: TapId,
    interest: Interest,
    tap: Arc<dyn Tap>,
}

/// Names an attached tap, for detaching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapId(u64);

static NEXT_TAP_ID: AtomicU64 = AtomicU64::new(1);

/// Most taps on one channel.
pub const TAPS_MAX: usize = 32;

/// Too many taps on one channel.
#[derive(Debug, thiserror::Error)]
#[error("the event channel {channel} already has {TAPS_MAX} taps; detach one first")]
pub struct TapsFull {
    channel: String,
}

/// The one place where the notifications between guest and one back end pass.
pub struct EventChannel {
    name: String,
    taps: RwLock<Vec<Attached>>,
    attached: AtomicUsize,
}

impl EventChannel {
    /// A channel without taps.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            taps: RwLock::default(),
            attached: AtomicUsize::new(0),
        })
    }

    /// The channel's name, as `net0.tx`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches a tap; every event after the return calls it.
    pub fn attach(&self, interest: Interest, tap: Arc<dyn Tap>) -> Result<TapId, TapsFull> {
        let mut taps = self.taps.write().unwrap_or_else(PoisonError::into_inner);
        if taps.len() >= TAPS_MAX {
            return Err(TapsFull {
                channel: self.name.clone(),
            });
        }
        let id = TapId(NEXT_TAP_ID.fetch_add(1, Ordering::Relaxed));
        taps.push(Attached { id, interest, tap });
        self.attached.store(taps.len(), Ordering::SeqCst);
        Ok(id)
    }

    /// Detaches a tap; after the return it is not running and is never called again.
    /// Returns whether it was attached.
    pub fn detach(&self, id: TapId) -> bool {
        let mut taps = self.taps.write().unwrap_or_else(PoisonError::into_inner);
        let before = taps.len();
        taps.retain(|attached| attached.id != id);
        self.attached.store(taps.len(), Ordering::SeqCst);
        taps.len() < before
    }

    /// Passes a notification to the taps that want it.
    pub fn notify(&self, direction: Direction, output_held: bool) {
        self.pass(direction, output_held, true);
    }

    /// Passes on that the back end found output without being notified.
    pub fn found_output(&self) {
        self.pass(Direction::Out, true, false);
    }

    fn pass(&self, direction: Direction, output_held: bool, notified: bool) {
        if self.attached.load(Ordering::SeqCst) == 0 {
            return;
        }
        let event = Event {
            channel: &self.name,
            direction,
            output_held,
            notified,
        };
        for attached in self.taps.read().unwrap_or_else(PoisonError::into_inner).iter() {
            if attached.interest.covers(direction) {
                attached.tap.event(&event);
            }
        }
    }
}

/// Buckets of an [`IntervalHistogram`]: powers of two of microseconds, the last one open.
pub(crate) const HISTOGRAM_BUCKETS: usize = 24;

/// How often events came and how far apart, in one direction.
/// Bucket *i* counts the intervals of less than 2^*i* us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalHistogram {
    /// Notifications seen.
    pub count: u64,
    /// Intervals between successive notifications, by size.
    pub buckets: [u64; HISTOGRAM_BUCKETS],
}

/// Lengths of time, counted by size.
#[derive(Default)]
struct Lengths([AtomicU64; HISTOGRAM_BUCKETS]);

impl Lengths {
    fn note(&self, ns: u64) {
        let bucket = (u64::BITS - (ns / 1000).leading_zeros()) as usize;
        self.0[bucket.min(HISTOGRAM_BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn snapshot(&self) -> [u64; HISTOGRAM_BUCKETS] {
        std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct DirectionCounter {
    count: AtomicU64,
    last_ns: AtomicU64,
    intervals: Lengths,
}

impl DirectionCounter {
    fn note(&self, now_ns: u64) {
        let last_ns = self.last_ns.swap(now_ns, Ordering::Relaxed);
        if self.count.fetch_add(1, Ordering::Relaxed) > 0 {
            self.intervals.note(now_ns.saturating_sub(last_ns));
        }
    }

    fn snapshot(&self) -> IntervalHistogram {
        IntervalHistogram {
            count: self.count.load(Ordering::Relaxed),
            buckets: self.intervals.snapshot(),
        }
    }
}

/// A tap that measures: counts, a histogram of the intervals between events, and one of the times from a kick
/// to its interrupt.
pub struct MeasuringTap {
    start: Instant,
    inward: DirectionCounter,
    outward: DirectionCounter,
    /// When the first kick came since the last interrupt, in ns since the start; 0: none did.
    kicked_ns: AtomicU64,
    answers: Lengths,
}

impl MeasuringTap {
    /// A measurement that begins now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            inward: DirectionCounter::default(),
            outward: DirectionCounter::default(),
            kicked_ns: AtomicU64::new(0),
            answers: Lengths::default(),
        })
    }

    /// What was seen so far in one direction.
    pub fn histogram(&self, direction: Direction) -> IntervalHistogram {
        match direction {
            Direction::In => self.inward.snapshot(),
            Direction::Out => self.outward.snapshot(),
        }
    }

    /// Times from a kick to the next interrupt, by size, as the intervals: of several kicks before it, from
    /// the first one. There are some only if the tap is attached for both directions.
    pub fn answers(&self) -> [u64; HISTOGRAM_BUCKETS] {
        self.answers.snapshot()
    }
}

impl Tap for MeasuringTap {
    fn event(&self, event: &Event<'_>) {
        if !event.notified {
            return;
        }
        let now_ns = self.start.elapsed().as_nanos() as u64;
        match event.direction {
            Direction::In => {
                self.inward.note(now_ns);
                match self.kicked_ns.swap(0, Ordering::Relaxed) {
                    0 => {}
                    kicked_ns => self.answers.note(now_ns.saturating_sub(kicked_ns)),
                }
            }
            Direction::Out => {
                self.outward.note(now_ns);
                // If there is one already, it has waited for longer.
                let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
                let _ = self
                    .kicked_ns
                    .compare_exchange(0, now_ns.max(1), success, failure);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[derive(Default)]
    struct Counter(AtomicU64);

    impl Tap for Counter {
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_tap_sees_only_the_directions_it_wants() {
        let channel = EventChannel::new("net0.tx");
        let taps = [Interest::In, Interest::Out, Interest::Both].map(|interest| {
            let counter = Arc::new(Counter::default());
            channel.attach(interest, counter.clone()).unwrap();
            counter
        });
        for _ in 0..3 {
            channel.notify(Direction::Out, false);
        }
        channel.notify(Direction::In, false);
        assert_eq!(taps.map(|tap| tap.0.load(Ordering::SeqCst)), [1, 3, 4]);
    }

    #[test]
    fn taps_come_and_go_while_events_pass_and_none_is_missed_or_doubled() {
        let channel = EventChannel::new("blk0");
        let steady = Arc::new(Counter::default());
        channel.attach(Interest::Both, steady.clone()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let notifier = {
            let (channel, stop, sent) = (channel.clone(), stop.clone(), sent.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    sent.fetch_add(1, Ordering::SeqCst);
                    channel.notify(Direction::Out, false);
                }
            })
        };
        for _ in 0..2000 {
            let passing = Arc::new(Counter::default());
            let id = channel.attach(Interest::Out, passing.clone()).unwrap();
            let begin = sent.load(Ordering::SeqCst);
            while sent.load(Ordering::SeqCst) < begin + 3 {
                thread::yield_now();
            }
            // At least the two events that both began and ended since the attach.
            assert!(passing.0.load(Ordering::SeqCst) >= 2);
            assert!(channel.detach(id));
            let after = passing.0.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(passing.0.load(Ordering::SeqCst), after, "called after the detach");
        }
        stop.store(true, Ordering::SeqCst);
        notifier.join().unwrap();
        assert_eq!(steady.0.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
    }

    #[test]
    fn a_channel_takes_a_limited_number_of_taps() {
        let channel = EventChannel::new("blk0");
        for _ in 0..TAPS_MAX {
            channel
                .attach(Interest::Both, Arc::new(Counter::default()))
                .unwrap();
        }
        assert!(
            channel
                .attach(Interest::Both, Arc::new(Counter::default()))
                .is_err()
        );
    }

    #[test]
    fn a_measurement_counts_notifications_and_their_intervals() {
        let channel = EventChannel::new("net0.rx");
        let tap = MeasuringTap::new();
        channel.attach(Interest::Both, tap.clone()).unwrap();
        for _ in 0..5 {
            channel.notify(Direction::In, false);
        }
        channel.found_output();
        let seen = tap.histogram(Direction::In);
        assert_eq!(seen.count, 5);
        assert_eq!(seen.buckets.iter().sum::<u64>(), 4);
        assert_eq!(tap.histogram(Direction::Out).count, 0);
    }

    #[test]
    fn the_time_from_the_first_kick_to_the_interrupt_is_measured() {
        let channel = EventChannel::new("blk0");
        let tap = MeasuringTap::new();
        channel.attach(Interest::Both, tap.clone()).unwrap();
        let answers = || -> Vec<(usize, u64)> {
            let buckets = tap.answers().into_iter().enumerate();
            buckets.filter(|(_, count)| *count > 0).collect()
        };
        channel.notify(Direction::In, false);
        channel.found_output();
        channel.notify(Direction::In, false);
        assert_eq!(answers(), [], "nobody has kicked");
        channel.notify(Direction::Out, false);
        thread::sleep(std::time::Duration::from_millis(5));
        channel.notify(Direction::Out, false);
        channel.notify(Direction::In, false);
        // 4,096 us and more, from the first kick on.
        let first = answers();
        assert!(matches!(first[..], [(13.., 1)]), "{first:?}");
        channel.notify(Direction::In, false);
        assert_eq!(answers(), first, "one kick, one answer");
    }
}
