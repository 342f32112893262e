//! What humans are told of a secondary, and were told already.

use kemari_sync::Protection as Stage;

use super::super::shown::Shown;
use crate::replica::ImageView;

/// See the module.
#[derive(Default)]
pub struct Told {
    pub shown: Shown,
    /// What each replicated disk's record said last.
    pub views: Vec<Result<ImageView, String>>,
    /// The disks that a takeover waits for, or has waited for, as they were told.
    held: Vec<String>,
    /// Why this side has ended a session, since it protected the VM last.
    parted: Option<String>,
    /// See [`super::Setup::not_booted`].
    not_booted: Option<String>,
}

impl Told {
    /// Nothing yet.
    pub fn new(views: Vec<Result<ImageView, String>>, not_booted: Option<String>) -> Self {
        Self {
            views,
            not_booted,
            ..Self::default()
        }
    }

    /// This side has ended a session.
    pub fn note_parted(&mut self, reason: String) {
        self.parted = Some(reason);
    }

    /// Why the session before has ended says nothing of the next one.
    pub fn forget_parted(&mut self) {
        self.parted = None;
    }

    /// Whether this takeover has not been held by that before: a slow disk goes on now and then, and stands
    /// still again.
    pub fn is_held_anew(&mut self, stage: Stage, held: Option<&str>) -> bool {
        if stage != Stage::Deciding {
            self.held.clear();
        }
        let new = held.filter(|held| !self.held.iter().any(|told| told == held));
        self.held.extend(new.map(str::to_owned));
        new.is_some()
    }

    /// What this side waits for, with what explains it, as a sentence. `held`: by what a takeover is held.
    pub fn waiting(
        &mut self,
        waiting: Option<String>,
        stage: Stage,
        is_connected: bool,
        held: Option<&str>,
    ) -> Option<String> {
        if stage == Stage::Protected {
            self.forget_parted();
        }
        let not_booted = self.not_booted.as_ref().filter(|_| !is_connected);
        let is_idle = stage == Stage::Unprotected && !is_connected;
        let parted = self.parted.as_ref().filter(|_| is_idle);
        let mut waiting = match (waiting, not_booted) {
            (Some(waiting), Some(reason)) => format!("{waiting}; the VM is not booted here: {reason}"),
            (waiting, reason) => waiting.or(reason.cloned())?,
        };
        let explains = [
            parted.map(|reason| format!("; the last session ended: {reason}")),
            held.map(|reason| format!(": {reason}")),
        ];
        waiting.extend(explains.into_iter().flatten());
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_holds_up_a_takeover_is_told_once_though_it_goes_on_now_and_then() {
        use Stage::{Deciding, Protected};
        let mut told = Told::default();
        for (stage, held, is_told) in [
            (Protected, None, false),
            (Deciding, Some("blk0"), true),
            (Deciding, Some("blk0"), false),
            (Deciding, None, false),
            (Deciding, Some("blk0"), false),
            (Deciding, Some("blk1"), true),
            (Deciding, Some("blk0"), false),
            // The next takeover.
            (Protected, None, false),
            (Deciding, Some("blk0"), true),
        ] {
            assert_eq!(told.is_held_anew(stage, held), is_told, "{stage:?} {held:?}");
        }
    }

    #[test]
    fn why_a_session_has_ended_is_told_until_the_next_one_begins_or_protects() {
        use Stage::{Protected, Unprotected};
        let mut told = Told::default();
        let waiting = |told: &mut Told, stage, is_connected| {
            let said = told.waiting(Some("it waits".into()), stage, is_connected, None);
            said.expect("it waits for something")
        };
        told.note_parted("a test".into());
        let parted = "it waits; the last session ended: a test";
        assert_eq!(waiting(&mut told, Unprotected, false), parted);
        assert_eq!(
            waiting(&mut told, Unprotected, true),
            "it waits",
            "somebody is here"
        );
        assert_eq!(waiting(&mut told, Unprotected, false), parted);
        waiting(&mut told, Protected, true);
        assert_eq!(waiting(&mut told, Unprotected, false), "it waits");
        told.note_parted("a test".into());
        told.forget_parted();
        assert_eq!(waiting(&mut told, Unprotected, false), "it waits");
    }

    #[test]
    fn why_the_vm_is_not_booted_is_told_while_nobody_is_here() {
        let mut told = Told::new(Vec::new(), Some("a test".into()));
        let mut waiting = |waiting: Option<&str>, is_connected| {
            told.waiting(waiting.map(str::to_owned), Stage::Unprotected, is_connected, None)
        };
        let said = "it waits; the VM is not booted here: a test";
        assert_eq!(waiting(Some("it waits"), false).as_deref(), Some(said));
        assert_eq!(waiting(None, false).as_deref(), Some("a test"));
        assert_eq!(waiting(None, true), None);
    }
}
