//! How long a side waits for a primary, if there is a limit: one that holds nothing may boot the VM itself.

/// See the module.
pub struct Idle {
    /// After so long with nothing to do it is over, in milliseconds.
    most_ms: Option<u64>,
    /// Since when there is nothing to do.
    since_ms: Option<u64>,
}

impl Idle {
    pub fn new(most_ms: Option<u64>) -> Self {
        Self {
            most_ms,
            since_ms: None,
        }
    }

    /// Whether there is nothing to do.
    pub fn note(&mut self, is_idle: bool, now_ms: u64) {
        self.since_ms = is_idle.then(|| self.since_ms.unwrap_or(now_ms));
    }

    /// When it has lasted too long.
    pub fn due_ms(&self) -> Option<u64> {
        Some(self.since_ms? + self.most_ms?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_idle_for_so_long_without_a_break() {
        let mut idle = Idle::new(Some(100));
        idle.note(true, 1_000);
        idle.note(true, 1_099);
        assert_eq!(idle.due_ms(), Some(1_100));
        idle.note(false, 1_100);
        assert_eq!(idle.due_ms(), None);
        idle.note(true, 1_150);
        assert_eq!(idle.due_ms(), Some(1_250));
    }

    #[test]
    fn without_a_limit_it_waits_for_ever() {
        let mut idle = Idle::new(None);
        idle.note(true, 0);
        idle.note(true, u64::MAX);
        assert_eq!(idle.due_ms(), None);
    }
}
