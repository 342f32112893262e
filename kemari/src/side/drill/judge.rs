//! What a drill has shown.

use kemari_vmm::arch::stats::VcpuCounts;
use kemari_vmm::machine::VcpuDue;

/// The counts are looked at so long after the begin of the run, in nanoseconds.
pub const EARLY_NS: u64 = 100_000_000;
/// A timer that was due so long before the end of the run must have fired, in nanoseconds.
const TIMER_GRACE_NS: u64 = 250_000_000;

/// A verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What is wrong with the committed state, as sentences.
    pub failures: Vec<String>,
    /// Why nothing can be said of it, if nothing is wrong.
    pub doubts: Vec<String>,
    /// For how long the guest ran, in milliseconds.
    pub ran_ms: u64,
    /// vCPUs that were in the guest.
    pub vcpus_ran: u32,
    /// Memory that was copied for it, in bytes.
    pub memory_copied_bytes: u64,
    /// What the throw-away layers of its disks held in the end, in bytes.
    pub disk_kept_bytes: u64,
    /// Of its disks what its guest wrote, in bytes.
    pub disk_written_bytes: u64,
    /// For how long the secondary's loop stood still for it, in microseconds.
    pub standstill_us: u64,
}

impl Verdict {
    pub fn fail(&mut self, why: impl Into<String>) {
        self.failures.push(why.into());
    }

    pub fn doubt(&mut self, why: impl Into<String>) {
        self.doubts.push(why.into());
    }
}

/// What is known of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSigns {
    /// What it was about to do.
    pub due: VcpuDue,
    /// What it had done before the guest ran, at an early point of the run, and at the end.
    pub counts: [VcpuCounts; 3],
}

/// Whether the vCPUs did what they were about to do, in a run of so many nanoseconds.
pub fn judge_vcpus(verdict: &mut Verdict, signs: &[VcpuSigns], ran_ns: u64) {
    let ran = |signs: &VcpuSigns| signs.counts[2].exits > signs.counts[0].exits;
    verdict.vcpus_ran = signs.iter().filter(|signs| ran(signs)).count() as u32;
    for (index, signs) in signs.iter().enumerate().filter(|(_, signs)| !ran(signs)) {
        // One that waits for an interrupt may wait.
        if signs.due.runnable {
            verdict.fail(format!("vCPU {index} did not run"));
        }
    }
    if verdict.vcpus_ran == 0 && verdict.failures.is_empty() {
        verdict.fail("no vCPU ran");
    }
    // The first interrupts may be those by which the devices make themselves known again.
    let ticked = |signs: &&VcpuSigns| {
        let first = usize::from(signs.due.timer_ns.is_some_and(|due_ns| due_ns >= EARLY_NS));
        signs.counts[2].interrupts > signs.counts[first].interrupts
    };
    let is_due = |signs: &&VcpuSigns| {
        let due_ns = signs.due.timer_ns.filter(|_| signs.due.started);
        due_ns.is_some_and(|due_ns| due_ns.saturating_add(TIMER_GRACE_NS) <= ran_ns)
    };
    if signs.iter().any(|signs| is_due(&signs)) && !signs.iter().filter(is_due).any(|signs| ticked(&signs)) {
        verdict.fail("no timer of the guest fired, though one was due");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn counts(exits: u64, interrupts: u64) -> VcpuCounts {
        VcpuCounts { exits, interrupts }
    }

    fn judged(signs: &[VcpuSigns]) -> Verdict {
        let mut verdict = Verdict::default();
        judge_vcpus(&mut verdict, signs, SECOND_NS);
        verdict
    }

    fn signs(runnable: bool, timer_ns: Option<u64>, counts: [VcpuCounts; 3]) -> VcpuSigns {
        let due = VcpuDue {
            runnable,
            started: true,
            timer_ns,
        };
        VcpuSigns { due, counts }
    }

    #[test]
    fn a_vcpu_that_was_running_must_run_and_one_that_waits_may_wait() {
        let idle = [counts(3, 0); 3];
        let busy = [counts(3, 0), counts(9, 0), counts(20, 0)];
        let verdict = judged(&[signs(true, None, busy), signs(false, None, idle)]);
        assert_eq!((verdict.vcpus_ran, verdict.failures), (1, vec![]));
        let verdict = judged(&[signs(true, None, busy), signs(true, None, idle)]);
        assert_eq!(verdict.failures, ["vCPU 1 did not run"]);
        let verdict = judged(&[signs(false, None, idle)]);
        assert_eq!(verdict.failures, ["no vCPU ran"]);
    }

    #[test]
    fn a_timer_that_was_due_must_have_fired() {
        let from = |early, end| [counts(1, 5), counts(2, early), counts(3, end)];
        let failures = |timer_ns, counts| judged(&[signs(true, timer_ns, counts)]).failures.len();
        let (soon, later) = (Some(1000), Some(SECOND_NS / 2));
        assert_eq!(failures(soon, from(6, 6)), 0);
        assert_eq!(failures(soon, from(5, 5)), 1);
        assert_eq!(failures(later, from(6, 7)), 0);
        assert_eq!(failures(later, from(6, 6)), 1, "that was another interrupt");
        // Nothing was due.
        assert_eq!(failures(Some(SECOND_NS), from(5, 5)), 0);
        assert_eq!(failures(None, from(5, 5)), 0);
        let mut stopped = signs(false, soon, from(5, 5));
        stopped.due.started = false;
        let runs = signs(true, None, from(5, 5));
        assert_eq!(judged(&[runs, stopped]).failures.len(), 0, "it was never started");
        // Of several one is enough: the others may have been stopped.
        let all = [signs(true, soon, from(5, 5)), signs(true, soon, from(6, 9))];
        assert_eq!(judged(&all).failures.len(), 0);
    }
}
