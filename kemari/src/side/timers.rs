//! The deadlines of a side, a name each. When one is due is said in one place: what is due happens by that,
//! and the loop sleeps until the earliest. The names are in `primary/time.rs` and `secondary/time.rs`.

/// A side that has deadlines.
pub trait Timed {
    /// Their names.
    type Timer: Copy + 'static;
    /// Each of them, in the order in which they are looked at.
    const TIMERS: &'static [Self::Timer];

    /// When this is due as things stand, in microseconds of the side's clock; `None`: it is not.
    fn due_us(&self, timer: Self::Timer) -> Option<u64>;

    /// This is due. By the time the loop sleeps it is due no more, or later.
    fn fire(&mut self, timer: Self::Timer, now_us: u64);

    /// Whether this is due.
    fn is_due(&self, timer: Self::Timer, now_us: u64) -> bool {
        self.due_us(timer).is_some_and(|due_us| due_us <= now_us)
    }

    /// Does what is due, each once.
    fn fire_due(&mut self, now_us: u64) {
        for timer in Self::TIMERS {
            if self.is_due(*timer, now_us) {
                self.fire(*timer, now_us);
            }
        }
    }

    /// When the earliest is due.
    fn next_us(&self) -> Option<u64> {
        Self::TIMERS.iter().filter_map(|timer| self.due_us(*timer)).min()
    }

    /// For how long the loop may sleep, in whole milliseconds: not a moment less than until the earliest.
    /// `None`: without limit.
    fn sleep_ms(&self, now_us: u64) -> Option<u64> {
        until_ms(self.next_us(), now_us)
    }
}

/// The same, if that is when the earliest is due.
pub fn until_ms(due_us: Option<u64>, now_us: u64) -> Option<u64> {
    due_us.map(|due_us| due_us.saturating_sub(now_us).div_ceil(1000))
}

/// A deadline in milliseconds, in microseconds.
pub fn from_ms(due_ms: Option<u64>) -> Option<u64> {
    due_ms.map(|due_ms| due_ms.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Timer {
        First,
        Second,
        Third,
    }

    /// What is due when, and what has happened.
    #[derive(Default)]
    struct Side {
        due_us: [Option<u64>; 3],
        fired: Vec<Timer>,
    }

    impl Timed for Side {
        type Timer = Timer;
        const TIMERS: &'static [Timer] = &[Timer::First, Timer::Second, Timer::Third];

        fn due_us(&self, timer: Timer) -> Option<u64> {
            self.due_us[timer as usize]
        }

        fn fire(&mut self, timer: Timer, _: u64) {
            self.due_us[timer as usize] = None;
            self.fired.push(timer);
        }
    }

    #[test]
    fn each_that_is_due_fires_once_and_the_others_stay() {
        let mut side = Side {
            due_us: [Some(20), Some(31), Some(30)],
            fired: Vec::new(),
        };
        side.fire_due(19);
        assert!(side.fired.is_empty());
        side.fire_due(30);
        assert_eq!(side.fired, [Timer::First, Timer::Third]);
        assert_eq!(side.next_us(), Some(31));
        side.fire_due(1_000_000);
        side.fire_due(1_000_000);
        assert_eq!(side.fired, [Timer::First, Timer::Third, Timer::Second]);
    }

    #[test]
    fn the_loop_sleeps_until_the_earliest_however_late_it_is_and_wakes_earlier_for_one_that_is() {
        let mut side = Side::default();
        assert_eq!(side.sleep_ms(0), None, "nothing is due");
        side.due_us[1] = from_ms(Some(7_200_000));
        assert_eq!(side.sleep_ms(0), Some(7_200_000));
        side.due_us[2] = Some(5_000);
        assert_eq!(side.sleep_ms(0), Some(5));
        assert_eq!(side.sleep_ms(4_999), Some(1), "it does not wake for nothing");
        assert_eq!(side.sleep_ms(5_000), Some(0));
        assert_eq!(side.sleep_ms(9_000), Some(0), "it is late");
        side.fire_due(9_000);
        assert_eq!(side.sleep_ms(9_000), Some(7_199_991));
    }
}
