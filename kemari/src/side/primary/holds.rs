//! Why the guest stands still: it runs if and only if nothing holds it.

use super::trouble::Standstill;

/// What holds a guest, but for a disk that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The mechanism wants it paused. The tap may pause it earlier.
    Mechanism,
    /// The machine is being reset.
    Reset,
    /// It never runs here again.
    Over,
}

/// What holds the guest. Each holds it once, however often that is said, and lets go of it alone.
#[derive(Default)]
pub struct Holds {
    held: [bool; 3],
    /// A disk has failed.
    disk: Option<Standstill>,
    /// Whether the core was told that the guest waits for acks, although the mode does not ask for it.
    until_ack: bool,
}

impl Holds {
    /// This holds the guest from now on.
    pub fn add(&mut self, hold: Hold) {
        self.held[hold as usize] = true;
    }

    /// This holds it no more.
    pub fn remove(&mut self, hold: Hold) {
        debug_assert_ne!(hold, Hold::Over, "what is over is over");
        self.held[hold as usize] = false;
    }

    /// Whether this holds the guest.
    pub fn has(&self, hold: Hold) -> bool {
        self.held[hold as usize]
    }

    /// Whether the guest may run.
    pub fn is_empty(&self) -> bool {
        self.is_empty_but_for_disk() && self.disk.is_none()
    }

    /// Whether at most a disk's failure holds it: nothing is under way then that would look at its output.
    pub fn is_empty_but_for_disk(&self) -> bool {
        !self.held.contains(&true)
    }

    /// A disk has failed; the first one is told. `fail_over`: the other host is to go on as soon as it can.
    pub fn fail_disk(&mut self, disk: &str, reason: &str, fail_over: bool) {
        let standstill = self.disk.get_or_insert_with(|| Standstill {
            disk: disk.to_owned(),
            reason: reason.to_owned(),
            fail_over: false,
        });
        standstill.fail_over |= fail_over;
    }

    /// The failure of a disk that holds it.
    pub fn disk(&self) -> Option<&Standstill> {
        self.disk.as_ref()
    }

    /// The failure holds it no more.
    pub fn take_disk(&mut self) -> Option<Standstill> {
        self.disk.take()
    }

    /// From the next sync on the mechanism holds it until the ack, or does not. Returns whether that is new.
    pub fn hold_until_ack(&mut self, until_ack: bool) -> bool {
        std::mem::replace(&mut self.until_ack, until_ack) != until_ack
    }

    /// Whether the mechanism holds it until the ack, although the mode does not ask for it.
    pub fn is_until_ack(&self) -> bool {
        self.until_ack && self.has(Hold::Mechanism)
    }
}

#[cfg(test)]
#[path = "holds_test.rs"]
mod tests;
