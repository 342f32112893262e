//! Where output is let go: it is held until a capture contains it, and waits for the ack of that capture.
//!
//! Each request of a virtio device and each wish at a port has its [`Stage`];
//! a console's bytes are [`HeldBytes`]. That is the rule; `Machine::release` has each device follow it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Most bytes of console output that wait for a release; further ones push the oldest out.
pub(crate) const CONSOLE_BYTES_MAX: usize = 64 << 10;

/// How far an output has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// No capture contains it: it asks for a sync.
    Held,
    /// In the capture of this epoch, waiting for its ack.
    Captured(u64),
    /// May be carried out.
    Released,
}

/// Which outputs a release lets go.
#[derive(Clone, Copy, Debug)]
pub enum Releasable {
    /// Those that the acked capture of this epoch, or an older one, contains.
    UpTo(u64),
    /// All: with the right to act alone, nothing waits.
    Any,
}

impl Stage {
    /// Of an output that comes now.
    pub(crate) fn of_new(held: bool) -> Self {
        if held { Self::Held } else { Self::Released }
    }

    /// The capture of `epoch` contains what is held. Returns whether this is.
    pub fn capture(&mut self, epoch: u64) -> bool {
        let is_held = *self == Self::Held;
        if is_held {
            *self = Self::Captured(epoch);
        }
        is_held
    }

    /// The capture of `epoch` will never be acked: what it contained is held again. Returns whether this is.
    pub fn uncapture(&mut self, epoch: u64) -> bool {
        let was_captured = *self == Self::Captured(epoch);
        if was_captured {
            *self = Self::Held;
        }
        was_captured
    }
}

impl Releasable {
    /// Whether it lets go an output that has come so far.
    pub(crate) fn lets_go(self, stage: Stage) -> bool {
        match self {
            Self::UpTo(epoch) => matches!(stage, Stage::Captured(captured) if captured <= epoch),
            Self::Any => true,
        }
    }
}

/// A stream of output: numbered bytes that wait for their release. It is saved as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HeldBytes {
    bytes: VecDeque<u8>,
    /// Number of the first byte of `bytes`, counted from the guest's first boot.
    first: u64,
    /// The captures that wait for their ack: epoch, and the number behind the last byte contained.
    captured: VecDeque<(u64, u64)>,
}

impl HeldBytes {
    /// Whether a saved one can be: the captures contain no bytes that are not there.
    pub(crate) fn is_possible(&self) -> bool {
        self.bytes.len() <= CONSOLE_BYTES_MAX
            && self
                .first
                .checked_add(self.bytes.len() as u64)
                .is_some_and(|end| self.captured.iter().all(|&(_, captured_end)| captured_end <= end))
    }

    fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64
    }

    /// Whether some of it is in no capture.
    pub(crate) fn is_held(&self) -> bool {
        self.captured
            .back()
            .map_or(!self.bytes.is_empty(), |&(_, end)| end < self.end())
    }

    /// The guest has written a byte.
    pub(crate) fn push(&mut self, byte: u8) {
        if self.bytes.len() >= CONSOLE_BYTES_MAX {
            self.bytes.pop_front();
            self.first += 1;
        }
        self.bytes.push_back(byte);
    }

    /// The capture of `epoch` contains all of it. Returns whether there is something that no capture before
    /// has.
    pub(crate) fn capture(&mut self, epoch: u64) -> bool {
        let is_held = self.is_held();
        if is_held {
            self.captured.push_back((epoch, self.end()));
        }
        is_held
    }

    /// The capture of `epoch` will never be acked.
    pub(crate) fn uncapture(&mut self, epoch: u64) {
        self.captured.retain(|&(captured, _)| captured != epoch);
    }

    /// Takes out what is let go.
    pub(crate) fn release(&mut self, which: Releasable) -> Vec<u8> {
        let mut end = self.first;
        while let Some(&(epoch, captured_end)) = self.captured.front()
            && which.lets_go(Stage::Captured(epoch))
        {
            end = captured_end.max(end);
            self.captured.pop_front();
        }
        if which.lets_go(Stage::Held) {
            end = self.end();
        }
        let count = (end - self.first) as usize;
        self.first = end;
        self.bytes.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Releasable::{Any, UpTo};
    use super::*;

    #[test]
    fn an_output_goes_from_capture_to_capture_until_one_is_acked() {
        let mut stage = Stage::of_new(true);
        assert!(!UpTo(9).lets_go(stage) && Any.lets_go(stage), "no capture has it");
        assert!(stage.capture(3) && !stage.capture(4), "one capture has it");
        assert!(!UpTo(2).lets_go(stage) && UpTo(3).lets_go(stage) && UpTo(4).lets_go(stage));
        assert!(!stage.uncapture(4) && stage.uncapture(3) && !stage.uncapture(3));
        assert!(!UpTo(3).lets_go(stage) && stage.capture(5));
        let mut stage = Stage::of_new(false);
        assert!(!stage.capture(1) && !stage.uncapture(1) && stage == Stage::Released);
    }

    #[test]
    fn an_ack_releases_the_bytes_of_its_capture_and_no_later_ones() {
        let mut output = HeldBytes::default();
        b"ab".iter().for_each(|&byte| output.push(byte));
        output.capture(1);
        b"c".iter().for_each(|&byte| output.push(byte));
        assert!(output.is_held());
        output.capture(2);
        b"d".iter().for_each(|&byte| output.push(byte));
        assert_eq!(output.release(UpTo(0)), b"");
        assert_eq!(output.release(UpTo(1)), b"ab");
        assert_eq!(output.release(UpTo(2)), b"c");
        assert_eq!(output.release(Any), b"d");
        assert_eq!(output.first, 4);
    }

    #[test]
    fn an_ack_is_for_all_captures_before_it_and_one_that_failed_gives_its_bytes_to_the_next() {
        let mut output = HeldBytes::default();
        output.push(b'a');
        output.capture(1);
        output.push(b'b');
        output.capture(2);
        output.uncapture(2);
        assert!(output.is_held(), "the next capture must have it");
        output.push(b'c');
        output.capture(3);
        output.push(b'd');
        output.capture(4);
        assert_eq!(output.release(UpTo(3)), b"abc");
        assert_eq!(output.release(UpTo(4)), b"d");
    }

    #[test]
    fn a_saved_buffer_that_is_too_large_or_whose_captures_have_bytes_that_are_not_there_is_impossible() {
        let mut output = HeldBytes::default();
        output.push(b'a');
        output.capture(1);
        assert!(output.is_possible());
        output.captured.push_back((2, 2));
        assert!(!output.is_possible());
        let of = |bytes: usize| HeldBytes {
            bytes: vec![b'x'; bytes].into(),
            ..HeldBytes::default()
        };
        assert!(of(CONSOLE_BYTES_MAX).is_possible());
        assert!(
            !of(CONSOLE_BYTES_MAX + 1).is_possible(),
            "no console holds so much"
        );
        assert!(
            !HeldBytes {
                first: u64::MAX,
                bytes: [1].into(),
                ..HeldBytes::default()
            }
            .is_possible()
        );
    }

    #[test]
    fn the_buffer_is_bounded_and_keeps_the_newest_bytes_and_their_numbers() {
        let mut output = HeldBytes::default();
        output.push(b'x');
        output.capture(1);
        for index in 0..CONSOLE_BYTES_MAX {
            output.push(index as u8);
        }
        assert_eq!(output.bytes.len(), CONSOLE_BYTES_MAX);
        assert_eq!(output.first, 1);
        assert_eq!(
            output.release(UpTo(1)),
            b"",
            "the captured byte was pushed out, the later ones are not released"
        );
    }
}
