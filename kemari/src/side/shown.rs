//! When a side's status is renewed: seldom while much happens, and soon after the last thing that did.

/// How often the status is renewed, in milliseconds.
const INTERVAL_MS: u64 = 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Shown {
    at_ms: u64,
    /// Something may have happened since.
    is_behind: bool,
}

impl Shown {
    /// Whether the status is to be renewed now. If it is too soon, it will be.
    pub fn is_due(&mut self, now_ms: u64) -> bool {
        self.is_behind = now_ms < self.at_ms + INTERVAL_MS;
        !self.is_behind
    }

    /// The status is renewed.
    pub fn note(&mut self, now_ms: u64) {
        *self = Self {
            at_ms: now_ms,
            is_behind: false,
        };
    }

    /// When it is to be renewed although nothing more happens.
    pub fn due_ms(&self) -> Option<u64> {
        self.is_behind.then_some(self.at_ms + INTERVAL_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_too_soon_after_the_last_time_is_shown_without_anything_more() {
        let mut shown = Shown::default();
        assert!(shown.is_due(1000));
        shown.note(1000);
        assert_eq!(shown.due_ms(), None, "nothing has happened since");
        assert!(!shown.is_due(1019));
        assert_eq!(shown.due_ms(), Some(1020));
        assert!(shown.is_due(1020));
        shown.note(1020);
        assert_eq!(shown.due_ms(), None);
    }
}
