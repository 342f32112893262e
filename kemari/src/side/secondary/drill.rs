//! Drills: when one begins, what it begins from, and what its outcome means.

use std::time::{Duration, Instant};

use kemari_sync::Protection as Stage;

use super::super::board::Order;
use super::super::clock::wall_clock_ms;
use super::super::drill::{Drill, DrillId, LAYER_BYTES_MAX, Moment, News, Plan, Verdict};
use super::super::faults;
use super::super::readiness::{Findings, Source};
use super::berth::Berth;
use super::orders::answer;
use super::{Input, SecondarySide};
use crate::control::{self, DRILL_SECONDS, DRILL_SECONDS_DEFAULT};

/// The drills of a secondary.
#[derive(Default)]
pub struct Drills {
    running: Option<Running>,
    next: DrillId,
    last: Option<Last>,
    /// When one begins by itself, in milliseconds.
    due_ms: Option<u64>,
}

struct Running {
    id: DrillId,
    drill: Drill,
    /// Who waits for the outcome.
    order: Option<Order>,
}

struct Last {
    shown: control::Drill,
    ended_ms: u64,
}

impl Drills {
    /// When one begins by itself, in milliseconds.
    pub fn due_ms(&self) -> Option<u64> {
        self.due_ms.filter(|_| self.running.is_none())
    }

    /// The last one, for humans.
    pub fn shown(&self, now_ms: u64) -> Option<control::Drill> {
        let Last { shown, ended_ms } = self.last.as_ref()?;
        Some(control::Drill {
            age_s: now_ms.saturating_sub(*ended_ms) / 1000,
            ..shown.clone()
        })
    }
}

impl SecondarySide {
    /// The operator wants one.
    pub(super) fn order_drill(&mut self, seconds: u32, order: Order) {
        match DRILL_SECONDS.contains(&seconds) {
            true => self.begin_drill(seconds, Some(order)),
            false => {
                let (least, most) = (DRILL_SECONDS.start(), DRILL_SECONDS.end());
                let reason = format!("a drill takes {least} to {most} seconds, not {seconds}");
                answer(&order, Err(reason));
            }
        }
    }

    /// Drills begin by themselves so long after the pair has, and after each other, if they are to.
    pub(super) fn note_drills(&mut self) {
        if self.drills.running.is_some() {
            return;
        }
        let due_ms = self.drills.due_ms;
        let interval_ms = self.drill_interval_ms().filter(|_| self.holds_a_pair());
        self.drills.due_ms =
            interval_ms.map(|interval_ms| due_ms.unwrap_or(self.clock.now_ms() + interval_ms));
    }

    /// It is time for one.
    pub(super) fn begin_due_drill(&mut self, now_ms: u64) {
        self.drills.due_ms = self.drill_interval_ms().map(|interval_ms| now_ms + interval_ms);
        self.begin_drill(DRILL_SECONDS_DEFAULT, None);
    }

    /// `[protection] drill_interval_s`.
    fn drill_interval_ms(&self) -> Option<u64> {
        let interval_s = u64::from(self.config.protection.drill_interval_s);
        (interval_s > 0).then_some(interval_s * 1000)
    }

    fn holds_a_pair(&self) -> bool {
        let stage = self.core.status(self.clock.now_ms()).protection;
        stage == Stage::Protected && matches!(self.berth, Berth::Following(_))
    }

    fn begin_drill(&mut self, seconds: u32, order: Option<Order>) {
        let result = self.start_drill(Duration::from_secs(seconds.into()));
        match (result, order) {
            (Ok(drill), order) => {
                let id = self.drills.next;
                self.drills.running = Some(Running { id, drill, order });
            }
            (Err(reason), Some(order)) => answer(&order, Err(reason)),
            (Err(reason), None) => tracing::warn!("no drill: {reason}"),
        }
    }

    fn start_drill(&mut self, time: Duration) -> Result<Drill, String> {
        if self.drills.running.is_some() {
            return Err("a drill is under way".to_owned());
        }
        let standby = self.berth.standby().filter(|_| self.holds_a_pair());
        let standby =
            standby.ok_or("the VM is not protected by this secondary, so there is nothing to try")?;
        let plan = Plan {
            config: self.config.clone(),
            host: self.host.clone(),
            spec: self.spec.clone(),
            memory: standby.seat.machine.memory().clone(),
            time,
        };
        self.drills.next += 1;
        let (id, mailbox) = (self.drills.next, self.mailbox.clone());
        Drill::start(plan, move |news| mailbox.post(Input::Drill(id, news)))
            .map_err(|error| format!("{error:#}"))
    }

    /// A drill says something.
    pub(super) fn on_drill(&mut self, id: DrillId, news: News) {
        let is_current = self
            .drills
            .running
            .as_ref()
            .is_some_and(|running| running.id == id);
        match news {
            _ if !is_current => {}
            News::Built(_) if !self.holds_a_pair() => self.end_drill("the pair is not whole any more"),
            News::Built(copy) => {
                let begin = Instant::now();
                let (Some(standby), Some(running)) = (self.berth.standby_mut(), &self.drills.running) else {
                    return;
                };
                faults::spoil_memory(standby.seat.machine.memory());
                let mut states = standby.states.clone();
                faults::spoil_vcpus(&mut states);
                let disks = standby.disks.moment(LAYER_BYTES_MAX);
                standby.copy = Some(copy);
                tracing::info!("a drill begins");
                running.drill.begin(Moment {
                    states,
                    disks,
                    standstill_us: begin.elapsed().as_micros() as u64,
                });
            }
            News::Ended(verdict) => {
                self.forget_copy();
                let order = self.drills.running.take().and_then(|running| running.order);
                match verdict {
                    Some(verdict) => self.note_drill(verdict, order),
                    None => self.cut_short(order, "it ended without a verdict"),
                }
            }
        }
    }

    /// Something else has precedence: whatever runs of a drill ends at once, and nobody waits for that.
    pub(super) fn end_drill(&mut self, why: &str) {
        if let Some(running) = self.drills.running.take() {
            running.drill.end();
            self.forget_copy();
            self.cut_short(running.order, why);
        }
    }

    /// No page need be kept any more before it changes.
    fn forget_copy(&mut self) {
        if let Some(standby) = self.berth.occupant_mut() {
            standby.copy = None;
        }
    }

    fn cut_short(&self, order: Option<Order>, why: &str) {
        tracing::info!("a drill was cut short: {why}");
        if let Some(order) = order {
            answer(&order, Err(format!("the drill was cut short: {why}")));
        }
    }

    fn note_drill(&mut self, verdict: Verdict, order: Option<Order>) {
        let shown = control::Drill {
            passed: verdict.failures.is_empty() && verdict.doubts.is_empty(),
            inconclusive: verdict.failures.is_empty() && !verdict.doubts.is_empty(),
            reasons: [&verdict.failures[..], &verdict.doubts].concat(),
            at: wall_clock_ms() / 1000,
            age_s: 0,
            ran_ms: verdict.ran_ms,
            vcpus_ran: verdict.vcpus_ran,
            memory_copied_bytes: verdict.memory_copied_bytes,
            disk_kept_bytes: verdict.disk_kept_bytes,
            disk_written_bytes: verdict.disk_written_bytes,
            standstill_us: verdict.standstill_us,
        };
        let text = format!("the drill: {shown}");
        match shown.passed {
            true => tracing::info!("{text}"),
            false => tracing::warn!("{text}"),
        }
        note_finding(self.board.findings(), &verdict);
        if let Some(order) = order {
            answer(&order, if shown.passed { Ok(text) } else { Err(text) });
        }
        self.drills.last = Some(Last {
            shown,
            ended_ms: self.clock.now_ms(),
        });
    }
}

/// Whether this host could take over, as far as a drill tells. One that says nothing does not take back what
/// an earlier one has said.
fn note_finding(findings: &Findings, verdict: &Verdict) {
    if verdict.failures.is_empty() && !verdict.doubts.is_empty() {
        return;
    }
    let failures = verdict.failures.iter();
    let reasons = failures.map(|reason| format!("the last drill failed: {reason}"));
    findings.note(Source::Drill, None, reasons);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drill_with_a_result_says_something_else_than_the_one_before() {
        let findings = Findings::new();
        let (mut failed, mut cut) = (Verdict::default(), Verdict::default());
        failed.fail("no vCPU ran");
        cut.doubt("it was ended early");
        let reasons = |verdict: &Verdict| {
            note_finding(&findings, verdict);
            findings.reasons()
        };
        assert_eq!(reasons(&cut), [""; 0]);
        assert_eq!(reasons(&failed), ["the last drill failed: no vCPU ran"]);
        assert_eq!(reasons(&cut), ["the last drill failed: no vCPU ran"]);
        // What was wrong is wrong, whatever else is not known.
        cut.fail("a timer did not fire");
        assert_eq!(reasons(&cut), ["the last drill failed: a timer did not fire"]);
        assert_eq!(reasons(&Verdict::default()), [""; 0]);
    }
}
