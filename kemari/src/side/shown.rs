//! When a side tells how things stand: seldom while much happens, and soon after the last thing that did.

use kemari_sync::Readiness;

use super::readiness::Announced;

/// How often the status is renewed at most, in milliseconds.
const INTERVAL_MS: u64 = 20;
/// How old it gets at most, though nothing happens: it says for how long things have stood, and a side that
/// shows nothing counts as one whose loop stands still.
const AGE_MS_MAX: u64 = 1000;

/// See the module.
#[derive(Default)]
pub struct Shown {
    at_ms: u64,
    /// Something may have happened since.
    is_behind: bool,
    announced: Announced,
}

impl Shown {
    /// Whether the status is to be renewed now. If it is too soon, it will be.
    pub fn is_due(&mut self, now_ms: u64) -> bool {
        self.is_behind = true;
        self.due_ms() <= now_ms
    }

    /// The status is renewed. The log says whether a takeover would succeed, if that is another word.
    pub fn note(&mut self, now_ms: u64, readiness: Option<&Readiness>) {
        self.at_ms = now_ms;
        self.is_behind = false;
        self.announced.note(readiness);
    }

    /// When it is to be renewed although nothing more happens.
    pub fn due_ms(&self) -> u64 {
        self.at_ms + if self.is_behind { INTERVAL_MS } else { AGE_MS_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_too_soon_after_the_last_time_is_shown_without_anything_more() {
        let mut shown = Shown::default();
        assert!(shown.is_due(1000));
        shown.note(1000, None);
        assert_eq!(shown.due_ms(), 2000, "nothing has happened since");
        assert!(!shown.is_due(1019));
        assert_eq!(shown.due_ms(), 1020);
        assert!(shown.is_due(1020));
        shown.note(1020, None);
        assert_eq!(shown.due_ms(), 2020);
    }
    #[test]
    fn each_time_the_log_says_whether_a_takeover_would_succeed() {
        let readiness = Readiness::found(["no TAP".to_owned()]);
        let mut said = Announced::default();
        said.note(Some(&readiness));
        let mut shown = Shown::default();
        shown.note(1000, Some(&readiness));
        assert_eq!(shown.announced, said);
    }
}
