//! Whether "protected" is true: whether a takeover would succeed now.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Protection, Role, Status};

/// A side's loop says something every second. After so long it is held up, which is told of any side.
const STILL_MIN: Duration = Duration::from_secs(3);

/// Whether the secondary could take over now, as it has found out itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether it could.
    pub ready: bool,
    /// What keeps it from that, as sentences.
    pub reasons: Vec<String>,
    /// How long ago that was found out, in ms.
    pub checked_ms: u64,
}

impl From<kemari_sync::Readiness> for Readiness {
    fn from(found: kemari_sync::Readiness) -> Self {
        Self {
            ready: found.is_ready(),
            checked_ms: found.age_ms,
            reasons: found.reasons,
        }
    }
}

/// What `kemari status --check` says, by its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// If the primary died now, the secondary would go on.
    Ready = 0,
    /// It would not: there is none, or it is not ready.
    NotReady = 1,
    /// It cannot be told: the pair is broken and its outcome open, or its arbiter is silent,
    /// or the side itself.
    Doubtful = 2,
    /// No side of the VM runs here.
    NothingHere = 3,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(verdict as u8)
    }
}

impl Status {
    /// So much time has passed since the side's loop has said this. Of one that has stood still for longer
    /// than `most` nothing is known: the other side may have given it up.
    pub(crate) fn age(&mut self, age: Duration, most: Duration) {
        if age > most.max(STILL_MIN) && matches!(self.role, Role::Primary | Role::Secondary) {
            // What it said last is old, and what it waited for then may have come.
            self.since_s = self.since_s.saturating_add(age.as_secs());
            let last = self.waiting_because.take();
            let last = last.map_or(String::new(), |last| format!("; it said last: {last}"));
            let s = age.as_secs();
            self.waiting_because = Some(format!(
                "this side's loop has stood still for {s} s, as it does while a disk or a file system of \
                 this host holds it up{last}"
            ));
        }
        let Some(readiness) = &mut self.readiness else {
            return;
        };
        let age_ms = age.as_millis() as u64;
        readiness.checked_ms = readiness.checked_ms.saturating_add(age_ms);
        // What is old because the other side is silent says so already.
        if age > most {
            readiness.ready = false;
            let still = "this side's loop stands still: its log or a debugger may tell why";
            readiness.reasons.push(still.to_owned());
            self.doubt = Some(still.to_owned());
        }
    }

    /// Notes how the arbiter stands. A secondary counts what is wrong with it among its own findings. A
    /// primary that could not ask could not go on alone if its secondary died, so nobody is to rely on the
    /// pair either.
    ///
    /// Where no answer comes it is in doubt whether there still is a pair: the record may be gone,
    /// or another's.
    pub(crate) fn note_arbiter(&mut self, report: crate::arbiter::Report) {
        self.arbiter_answered_ms = report.answered_ms;
        if !report.says.is_empty() {
            self.arbiter = report.says;
        }
        self.arbiter_trouble = report.trouble;
        if report.is_silent {
            self.doubt.clone_from(&self.arbiter_trouble);
        }
        if let (Some(trouble), Some(readiness), Role::Primary) =
            (&self.arbiter_trouble, &mut self.readiness, self.role)
        {
            readiness.ready = false;
            readiness
                .reasons
                .push(format!("seen from the primary, the arbiter: {trouble}"));
        }
    }

    /// Notes a certificate of the link that ends soon, or is over: then the pair, if it breaks, is not made
    /// again, and nobody is to rely on it.
    pub(crate) fn note_certificate(&mut self, sentence: String, is_over: bool) {
        if let Some(readiness) = self.readiness.as_mut().filter(|_| is_over) {
            readiness.ready = false;
            if !readiness.reasons.contains(&sentence) {
                readiness.reasons.push(sentence.clone());
            }
        }
        self.warnings.push(sentence);
    }

    /// Whether a takeover would succeed now. What is not known is no "yes".
    pub fn verdict(&self) -> Verdict {
        match (self.role, self.protection, &self.readiness) {
            (Role::Starting | Role::Stopped, ..) => Verdict::NotReady,
            (_, Protection::Doubtful, _) => Verdict::Doubtful,
            (_, Protection::On, _) if self.doubt.is_some() => Verdict::Doubtful,
            (_, Protection::On, Some(readiness)) if readiness.ready => Verdict::Ready,
            _ => Verdict::NotReady,
        }
    }

    /// How the VM stands, in some words: what `fmt_protection` says, without the reasons.
    pub fn state(&self) -> String {
        match (self.protection, self.verdict()) {
            (Protection::On, Verdict::Doubtful) | (Protection::Doubtful, _) => "in doubt".to_owned(),
            (Protection::On, Verdict::Ready) => "protected".to_owned(),
            (Protection::On, _) => "not ready".to_owned(),
            (Protection::Off, _) => "not protected".to_owned(),
            (
                Protection::Copying {
                    done_bytes,
                    total_bytes,
                },
                _,
            ) => format!("copying {} %", percent(done_bytes, total_bytes)),
        }
    }

    /// What waits, and what keeps the VM from going on elsewhere, as sentences: each once.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let unready = self.readiness.iter().filter(|readiness| !readiness.ready);
        let mut all: Vec<String> = (self.waiting_because.iter())
            .chain(&self.doubt)
            .chain(unready.flat_map(|readiness| &readiness.reasons))
            .chain(&self.arbiter_trouble)
            .chain(&self.warnings)
            .cloned()
            .collect();
        let mut told = std::collections::BTreeSet::new();
        all.retain(|sentence| told.insert(sentence.clone()));
        all
    }

    /// Writes how well the VM is protected: "protected" only if a takeover would succeed now.
    pub(super) fn fmt_protection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.protection, &self.readiness) {
            (Protection::Off, _) => f.write_str("not protected"),
            (
                Protection::Copying {
                    done_bytes,
                    total_bytes,
                },
                _,
            ) => write!(
                f,
                "not yet protected: {} % of {} MiB copied",
                percent(done_bytes, total_bytes),
                total_bytes >> 20
            ),
            (Protection::On, _) if self.doubt.is_some() => {
                write!(f, "in doubt: {}", self.doubt.as_deref().unwrap_or_default())
            }
            (Protection::On, Some(readiness)) if readiness.ready => f.write_str("protected"),
            (Protection::On, Some(readiness)) => write!(f, "not ready: {}", readiness.reasons.join("; ")),
            (Protection::On, None) => {
                f.write_str("not ready: this side does not say whether a takeover would succeed")
            }
            (Protection::Doubtful, _) => f.write_str("protection in doubt"),
        }
    }
}

fn percent(done_bytes: u64, total_bytes: u64) -> u128 {
    let percent = (u128::from(done_bytes) * 100).checked_div(total_bytes.into());
    percent.unwrap_or(0).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: &str, protection: &str, readiness: Option<(bool, &str)>) -> Status {
        let readiness = readiness.map(
            |(ready, reason)| serde_json::json!({ "ready": ready, "reasons": [reason], "checked_ms": 10 }),
        );
        let json = serde_json::json!({
            "vm": "shop", "host": "a", "version": "0", "role": role, "term": 1, "epoch": 1,
            "protection": protection, "since_s": 5, "waiting_because": null, "peer": null, "arbiter": "",
            "counters": {}, "readiness": readiness,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_what_is_known_to_be_ready_is_ready() {
        for role in ["primary", "secondary"] {
            let verdict = |protection, readiness| status(role, protection, readiness).verdict();
            assert_eq!(verdict("on", Some((true, ""))), Verdict::Ready);
            assert_eq!(verdict("on", Some((false, "no TAP"))), Verdict::NotReady);
            assert_eq!(verdict("on", None), Verdict::NotReady);
            assert_eq!(verdict("off", None), Verdict::NotReady);
            assert_eq!(verdict("off", Some((true, ""))), Verdict::NotReady);
            assert_eq!(verdict("doubtful", Some((true, ""))), Verdict::Doubtful);
        }
        assert_eq!(status("starting", "off", None).verdict(), Verdict::NotReady);
        assert_eq!(
            status("stopped", "on", Some((true, ""))).verdict(),
            Verdict::NotReady
        );
    }

    fn report(trouble: Option<&str>, is_silent: bool) -> crate::arbiter::Report {
        crate::arbiter::Report {
            answered_ms: Some(4_000),
            trouble: trouble.map(str::to_owned),
            is_silent,
            says: trouble.unwrap_or("term 5").to_owned(),
        }
    }

    #[test]
    fn an_arbiter_that_does_not_answer_puts_a_pair_in_doubt_and_nothing_else() {
        let silence = || report(Some("etcd cannot be asked"), true);
        for role in ["primary", "secondary"] {
            for readiness in [(true, ""), (false, "no TAP")] {
                let mut pair = status(role, "on", Some(readiness));
                pair.note_arbiter(silence());
                assert_eq!(pair.verdict(), Verdict::Doubtful);
                let text = pair.to_string();
                assert!(
                    text.contains("protection  in doubt: etcd cannot be asked, for"),
                    "{text}"
                );
                // It has answered again.
                let mut pair = status(role, "on", Some((true, "")));
                pair.note_arbiter(report(None, false));
                assert_eq!((pair.verdict(), pair.doubt), (Verdict::Ready, None));
            }
            let mut alone = status(role, "off", None);
            alone.note_arbiter(silence());
            assert_eq!(alone.verdict(), Verdict::NotReady, "that it is alone is known");
        }
    }

    #[test]
    fn a_primary_that_cannot_ask_the_arbiter_is_not_relied_upon() {
        let report = |trouble: Option<&str>| report(trouble, false);
        let mut well = status("primary", "on", Some((true, "")));
        well.note_arbiter(report(None));
        assert_eq!(well.verdict(), Verdict::Ready);
        assert!(
            well.to_string().contains("arbiter     term 5; answered 4 s ago"),
            "{well}"
        );
        let mut ill = status("primary", "on", Some((true, "")));
        ill.note_arbiter(report(Some("etcd is full")));
        assert_eq!(ill.verdict(), Verdict::NotReady);
        assert!(ill.to_string().contains("the arbiter: etcd is full"), "{ill}");
        assert_eq!(ill.arbiter_trouble.as_deref(), Some("etcd is full"));
        // A secondary has it among its own findings.
        let mut secondary = status("secondary", "on", Some((false, "etcd is full")));
        secondary.note_arbiter(report(Some("etcd is full")));
        assert_eq!(secondary.readiness.unwrap().reasons, ["etcd is full"]);
    }

    #[test]
    fn a_certificate_that_ends_is_a_warning_and_one_that_has_ended_is_not_relied_upon() {
        let mut pair = status("primary", "on", Some((true, "")));
        pair.note_certificate("it ends in 3 days".to_owned(), false);
        assert_eq!(pair.verdict(), Verdict::Ready);
        assert!(
            pair.to_string().contains("  warning     it ends in 3 days\n"),
            "{pair}"
        );
        // The other side may have said it, too.
        let mut pair = status("primary", "on", Some((false, "it has ended")));
        for _ in 0..2 {
            pair.note_certificate("it has ended".to_owned(), true);
        }
        assert_eq!(pair.verdict(), Verdict::NotReady);
        assert_eq!(pair.readiness.unwrap().reasons, ["it has ended"]);
    }

    #[test]
    fn a_side_that_stands_still_is_in_doubt() {
        let mut status = status("primary", "on", Some((true, "")));
        let most = Duration::from_millis(900);
        status.age(most, most);
        assert_eq!(status.verdict(), Verdict::Ready);
        status.age(most + Duration::from_millis(1), most);
        assert_eq!(status.verdict(), Verdict::Doubtful);
        assert!(!status.readiness.as_ref().unwrap().ready);
        assert!(status.to_string().contains("stands still"));
    }

    #[test]
    fn what_a_side_has_said_before_it_stood_still_is_told_as_old() {
        let most = Duration::from_millis(900);
        let aged = |role, s| {
            let mut status = status(role, "doubtful", None);
            status.waiting_because = Some("restoring the last commit".to_owned());
            status.age(Duration::from_secs(s), most);
            (status.since_s, status.waiting_because.unwrap_or_default())
        };
        for role in ["primary", "secondary"] {
            let (since_s, waits) = aged(role, 20);
            assert_eq!(since_s, 25);
            assert!(
                waits.contains("stood still for 20 s") && waits.contains("said last: restoring"),
                "{waits}"
            );
            assert_eq!(aged(role, 2), (5, "restoring the last commit".to_owned()));
        }
        assert_eq!(aged("stopped", 20).0, 5, "it has nothing more to say");
    }

    #[test]
    fn protected_is_said_only_of_what_is_ready() {
        let text = |readiness| status("primary", "on", readiness).to_string();
        assert!(text(Some((true, ""))).contains("protection  protected, for 5 s"));
        assert!(text(Some((false, "no TAP tap0"))).contains("protection  not ready: no TAP tap0"));
        for readiness in [Some((false, "x")), None] {
            assert!(!text(readiness).contains("protection  protected"));
        }
    }
}
