//! The wall clocks of both hosts: a guest's clock goes on from the host's at a takeover,
//! and would jump by their difference.

/// Most by which the clocks of two hosts may differ, in milliseconds: what a guest's programs bear as they
/// bear a slow moment. Hosts whose clocks are kept by NTP differ by a hundredth of that.
pub const CLOCKS_MS_MAX: u64 = 1_000;
/// Heartbeats that are judged together.
const BEATS: u32 = 10;

/// Compares the clock here with what the primary's heartbeats say of its own.
#[derive(Default)]
pub struct Clocks {
    /// How much later it is here than there, in milliseconds,
    /// by the beat of this group that took the shortest way.
    ahead_ms: Option<i64>,
    beats: u32,
}

impl Clocks {
    /// A heartbeat that was sent when it was `theirs_ms` there has come when it is `ours_ms` here. Once in a
    /// while it says what came of it: the inner value is what is wrong.
    pub fn note(&mut self, ours_ms: u64, theirs_ms: u64) -> Option<Option<String>> {
        let ahead_ms = ours_ms.cast_signed().saturating_sub(theirs_ms.cast_signed());
        // A beat that was late on its way makes this clock look further ahead than it is.
        let least_ms = self.ahead_ms.map_or(ahead_ms, |least_ms| least_ms.min(ahead_ms));
        (self.ahead_ms, self.beats) = (Some(least_ms), self.beats + 1);
        if self.beats < BEATS {
            return None;
        }
        *self = Self::default();
        Some(trouble(least_ms))
    }
}

fn trouble(ahead_ms: i64) -> Option<String> {
    let difference_ms = ahead_ms.unsigned_abs();
    let which = if ahead_ms > 0 { "ahead of" } else { "behind" };
    (difference_ms > CLOCKS_MS_MAX).then(|| {
        format!(
            "the secondary's wall clock is {} s {which} the primary's, and the guest's would follow it at a \
             takeover: synchronise both hosts' clocks, as chrony or ntpd do",
            difference_ms.div_ceil(1000)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ten beats say that come so much later than they were sent, in milliseconds.
    fn after(differences_ms: [i64; 10]) -> Option<String> {
        let mut clocks = Clocks::default();
        let ours_ms = 1_800_000_000_000_i64;
        let mut said = differences_ms
            .into_iter()
            .filter_map(|ms| clocks.note(ours_ms.cast_unsigned(), (ours_ms - ms).cast_unsigned()));
        let last = said.next().expect("ten beats are enough");
        assert_eq!(said.next(), None);
        last
    }

    #[test]
    fn clocks_that_differ_are_told_and_late_beats_are_not() {
        assert_eq!(after([0; 10]), None);
        assert_eq!(after([1000; 10]), None);
        assert_eq!(after([-1000; 10]), None);
        assert_eq!(
            after([9000, 5000, 4000, 3000, 2000, 900, 7000, 8000, 9000, 9000]),
            None
        );
        assert!(after([1001; 10]).unwrap().contains("2 s ahead of"));
        assert!(after([-300_000; 10]).unwrap().contains("300 s behind"));
        let late_and_behind = after([0, -5000, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(late_and_behind.unwrap().contains("5 s behind"));
    }

    #[test]
    fn a_peer_may_say_anything() {
        let mut clocks = Clocks::default();
        for theirs_ms in [0, u64::MAX, 1 << 63, (1 << 63) - 1, 1] {
            clocks.note(1_800_000_000_000, theirs_ms);
        }
    }
}
