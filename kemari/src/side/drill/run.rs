//! The thread of a drill.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::disk::SECTOR_BYTES;
use kemari_vmm::disk::{Disk, OnError, Overlay, Store};
use kemari_vmm::machine::{Machine, MachineError, MachineEvent, MachineSpec, VcpuDue, VcpuWatch};
use kemari_vmm::memory::LazyCopy;

use super::console::Console;
use super::judge::{EARLY_NS, VcpuSigns, Verdict, judge_vcpus};
use super::{Moment, MomentOfDisk, Plan, Signal, room};
use crate::config::HostDisk;
use crate::image::image_of;

/// How much less than others the drill's threads are to get of the processors: see nice(1).
const NICE: i32 = 15;
/// Most that the throw-away layer of a disk may hold, in bytes.
pub const LAYER_BYTES_MAX: u64 = 64 << 20;
/// Longest time that the images may take to come to the moment.
const IMAGES_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether a limit is reached.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often it is looked whether memory has become short, which takes ten times as long as the rest.
const MEMORY_INTERVAL: Duration = Duration::from_millis(200);
/// Places of a disk that are read, whatever the guest reads.
const PLACES: u64 = 16;

/// How a drill ended that did not come to its end.
enum Cut {
    /// The side wants it to end: there is no verdict.
    Ended,
    /// Something happened that is in the verdict.
    Judged,
}

/// Carries a drill out. `built` is told when the copy of the memory has begun. No verdict: it was cut short.
pub(super) fn drill(
    plan: Plan,
    to_self: Sender<Signal>,
    signals: &Receiver<Signal>,
    built: impl FnOnce(Arc<LazyCopy>),
) -> Option<Verdict> {
    let mut verdict = Verdict::default();
    let rehearsal = match Rehearsal::build(plan, to_self) {
        Ok(rehearsal) => rehearsal,
        Err(error) => {
            verdict.doubt(format!("the drill cannot be prepared: {error:#}"));
            return Some(verdict);
        }
    };
    built(rehearsal.copy.clone());
    let result = rehearsal.play(signals, &mut verdict);
    rehearsal.end();
    match result {
        Err(Cut::Ended) => None,
        Ok(()) | Err(Cut::Judged) => Some(verdict),
    }
}

struct Rehearsal {
    plan: Plan,
    machine: Machine,
    copy: Arc<LazyCopy>,
    console: Console,
}

impl Rehearsal {
    fn build(plan: Plan, to_self: Sender<Signal>) -> anyhow::Result<Self> {
        let bytes_max = room::copied_bytes_max(plan.spec.memory_bytes)?;
        let console = Console::default();
        let events = Arc::new(move |event| {
            // The drill may be over.
            let _ = to_self.send(Signal::Machine(event));
        });
        let spec = MachineSpec {
            dirty_source: DirtySource::Log,
            ..plan.spec.clone()
        };
        let guest_console = Box::new(console.clone());
        // The vCPUs inherit the priority of who makes them. Whoever copies pages must not:
        // the secondary waits for him.
        let machine = thread::scope(|scope| {
            let making = thread::Builder::new()
                .name("drill".into())
                .spawn_scoped(scope, || {
                    // If it cannot be had, the drill takes a little more from the others.
                    let _ = rustix::process::nice(NICE);
                    Machine::new(spec, guest_console, events)
                });
            let made = making.map_err(MachineError::Thread)?;
            made.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let machine = machine.context("cannot build the machine")?;
        let copy = LazyCopy::begin(&plan.memory, machine.memory(), bytes_max).context(
            "cannot copy the memory as it is touched (userfaultfd): give this process CAP_SYS_PTRACE",
        )?;
        Ok(Self {
            plan,
            machine,
            copy: Arc::new(copy),
            console,
        })
    }

    fn play(&self, signals: &Receiver<Signal>, verdict: &mut Verdict) -> Result<(), Cut> {
        let moment = loop {
            match signals.recv() {
                Ok(Signal::Moment(moment)) => break *moment,
                Ok(Signal::Machine(_)) => {}
                Ok(Signal::End) | Err(_) => return Err(Cut::Ended),
            }
        };
        verdict.standstill_us = moment.standstill_us;
        let overlays = self.overlays(&moment, signals, verdict)?;
        let watched = self.ready(&moment, &overlays);
        let (due, watch, broken) = watched.map_err(|error| {
            verdict.fail(format!("the committed state cannot be started: {error:#}"));
            Cut::Judged
        })?;
        let before = counts(&watch);
        let begin = Instant::now();
        self.machine.resume();
        let early = Duration::from_nanos(EARLY_NS).min(self.plan.time);
        let mut result = self.wait(signals, begin + early, &overlays, verdict);
        let middle = counts(&watch);
        if result.is_ok() {
            result = self.wait(signals, begin + self.plan.time, &overlays, verdict);
        }
        let after = counts(&watch);
        let ran = begin.elapsed();
        self.machine.halt();
        if matches!(result, Err(Cut::Ended)) {
            return result;
        }
        verdict.ran_ms = ran.as_millis() as u64;
        verdict.memory_copied_bytes = self.copy.copied_bytes();
        verdict.disk_kept_bytes = overlays.iter().map(|overlay| overlay.held_bytes()).sum();
        verdict.disk_written_bytes = overlays.iter().map(|overlay| overlay.written_bytes()).sum();
        match (before, middle, after) {
            // Once something went wrong it is no wonder what did not happen.
            _ if !verdict.failures.is_empty() => {}
            (Some(before), Some(middle), Some(after)) => {
                let signs: Vec<VcpuSigns> = (0..due.len())
                    .map(|index| VcpuSigns {
                        due: due[index],
                        counts: [before[index], middle[index], after[index]],
                    })
                    .collect();
                judge_vcpus(verdict, &signs, ran.as_nanos() as u64);
            }
            _ => verdict.doubt("this KVM does not count what vCPUs do (it needs Linux 5.14)"),
        }
        if verdict.failures.is_empty() {
            self.judge_devices(&overlays, &broken, verdict);
        }
        if let Some(why) = self.copy.failure() {
            // Whatever went wrong, it may be for want of a page.
            verdict.failures.clear();
            verdict.doubt(format!("the copy of the memory was not whole: {why}"));
        }
        result
    }

    /// The layers over the replicated images, once those are at the moment.
    fn overlays(
        &self,
        moment: &Moment,
        signals: &Receiver<Signal>,
        verdict: &mut Verdict,
    ) -> Result<Vec<Arc<Overlay>>, Cut> {
        let deadline = Instant::now() + IMAGES_WAIT_MAX;
        let mut overlays = Vec::new();
        for disk in &moment.disks {
            loop {
                match disk.overlay.recv_timeout(LOOK_INTERVAL) {
                    Ok(overlay) => break overlays.push(overlay),
                    Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                    Err(_) => {
                        verdict.doubt("an image could not be brought to the moment in time");
                        return Err(Cut::Judged);
                    }
                }
                if let Ok(Signal::End) = signals.try_recv() {
                    return Err(Cut::Ended);
                }
            }
        }
        Ok(overlays)
    }

    /// Loads the state as a takeover does, and plugs in what may be. Returns what the vCPUs are about to do,
    /// who watches them, and which devices the guest's driver had broken before.
    fn ready(
        &self,
        moment: &Moment,
        overlays: &[Arc<Overlay>],
    ) -> anyhow::Result<(Vec<VcpuDue>, std::io::Result<VcpuWatch>, Vec<String>)> {
        let (config, machine) = (&*self.plan.config, &self.machine);
        machine.load(&moment.states, true)?;
        let broken = machine.broken_devices();
        let mut replicas = overlays.iter().zip(&moment.disks);
        for disk in config.disks_of(&self.plan.host) {
            let replica = config.replicates(disk.disk).then(|| replicas.next()).flatten();
            self.attach(&disk, replica)
                .with_context(|| format!("disk {}", disk.disk.id))?;
        }
        machine.open_gate();
        let due = machine.vcpus_due(&moment.states)?;
        let watch = machine.watch_vcpus();
        self.console.clear();
        machine.wake();
        Ok((due, watch, broken))
    }

    fn attach(
        &self,
        disk: &HostDisk<'_>,
        replica: Option<(&Arc<Overlay>, &MomentOfDisk)>,
    ) -> anyhow::Result<()> {
        let (id, machine) = (&disk.disk.id, &self.machine);
        match replica {
            Some((overlay, moment)) => {
                read_places(overlay).context("its image cannot be read")?;
                machine.attach_open_disk(id, Disk::with_store(overlay.clone(), OnError::Report)?)?;
                if let Some(applied) = moment.applied {
                    machine.note_applied(id, applied)?;
                }
            }
            None if disk.disk.read_only => machine.attach_disk(id, &image_of(disk, false))?,
            // The primary writes it, and only who has fenced that one may open it.
            None => machine.mute_disk(id)?,
        }
        Ok(())
    }

    /// Lets the guest run until then, unless something ends it.
    fn wait(
        &self,
        signals: &Receiver<Signal>,
        until: Instant,
        overlays: &[Arc<Overlay>],
        verdict: &mut Verdict,
    ) -> Result<(), Cut> {
        let mut memory_due = Instant::now();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match signals.recv_timeout(left.min(LOOK_INTERVAL)) {
                Ok(Signal::End) | Err(RecvTimeoutError::Disconnected) => return Err(Cut::Ended),
                // Nobody is owed the pages that the guest of a drill writes.
                Ok(Signal::Machine(MachineEvent::MuchDirty)) => {}
                Ok(Signal::Machine(event)) => {
                    verdict.fail(self.explain(event));
                    return Err(Cut::Judged);
                }
                Ok(Signal::Moment(_)) | Err(RecvTimeoutError::Timeout) => {}
            }
            // Why it has failed is said when it is judged.
            if self.copy.has_failed() {
                return Err(Cut::Judged);
            }
            let mut reached = self.limit_reached(overlays);
            if reached.is_none() && memory_due <= Instant::now() {
                memory_due = Instant::now() + MEMORY_INTERVAL;
                reached = room::shortage();
            }
            if let Some(why) = reached {
                verdict.doubt(format!("{why}, so it was ended early"));
                return Err(Cut::Judged);
            }
        }
    }

    fn limit_reached(&self, overlays: &[Arc<Overlay>]) -> Option<String> {
        if self.copy.is_over() {
            return Some("the guest touched more memory than a drill may copy".to_owned());
        }
        let is_over = overlays.iter().any(|overlay| overlay.is_over());
        is_over.then(|| {
            let most_mib = LAYER_BYTES_MAX >> 20;
            format!("more of a disk changed than the {most_mib} MiB that a drill may keep")
        })
    }

    fn explain(&self, event: MachineEvent) -> String {
        match event {
            MachineEvent::Failed(why) => why,
            MachineEvent::GuestFailed(why) => format!("the guest cannot go on: {why}"),
            MachineEvent::Reset if self.machine.shut_downs() > 0 => {
                "a processor of the guest shut down (a triple fault)".to_owned()
            }
            MachineEvent::Reset => "the guest reset itself".to_owned(),
            MachineEvent::PowerOff => "the guest powered itself off".to_owned(),
            MachineEvent::MuchDirty => "the guest wrote much memory".to_owned(),
            MachineEvent::DiskTrouble { disk, reason, .. } => format!("disk {disk}: {reason}"),
        }
    }

    fn judge_devices(&self, overlays: &[Arc<Overlay>], broken: &[String], verdict: &mut Verdict) {
        for overlay in overlays {
            if overlay.failures() > 0 {
                verdict.fail(format!("{} requests of a disk failed", overlay.failures()));
            }
        }
        // One that had stopped before has stopped on the primary, too.
        let devices = self.machine.broken_devices();
        for device in devices.into_iter().filter(|device| !broken.contains(device)) {
            verdict.fail(format!(
                "{device} has stopped: the guest's driver broke its rules"
            ));
        }
        if let Some(line) = self.console.trouble() {
            verdict.fail(format!("the guest says on its console: {line}"));
        }
    }

    /// Gives everything back.
    fn end(self) {
        self.machine.halt();
        drop(self.machine);
        self.copy.end();
    }
}

/// What the vCPUs have done so far, if KVM tells.
fn counts(watch: &std::io::Result<VcpuWatch>) -> Option<Vec<kemari_vmm::arch::stats::VcpuCounts>> {
    watch.as_ref().ok()?.counts().ok()
}

/// Reads places all over a disk.
fn read_places(disk: &Overlay) -> std::io::Result<()> {
    let sectors = disk.bytes()? / SECTOR_BYTES;
    let mut buffer = [0; SECTOR_BYTES as usize];
    for place in 0..PLACES.min(sectors) {
        let sector = u128::from(sectors - 1) * u128::from(place) / u128::from(PLACES - 1).max(1);
        disk.read(sector as u64 * SECTOR_BYTES, &mut buffer)?;
    }
    Ok(())
}
