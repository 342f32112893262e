//! The loop: everything the guest does, in one thread, served in turn. When there is nothing to do the vCPU
//! halts until a device or the timer interrupts.

use alloc::vec::Vec;
use core::fmt::Write;

use crate::abi::BootDevice;
use crate::apic::Timer;
use crate::block_test::BlockTest;
use crate::boot::Settings;
use crate::check;
use crate::commit::{Client, Outcome, Owner, Storage};
use crate::console::Console;
use crate::disk_load::DiskLoad;
use crate::jobs::{Ending, Job};
use crate::net::{Net, Next};
use crate::pattern::PatternArea;
use crate::probe::Probe;
use crate::server::{Activity, Connection};
use crate::virtio::block::Disk;
use crate::worker::Overseer;
use crate::{clock, cpu, fpu, resp, traps};

/// Passes in a row that may find the network due at once before the loop waits a little nevertheless.
const BUSY_PASSES_MAX: u32 = 64;
/// That little while, and how often the end of a reset is looked for: in microseconds.
const SHORT_WAIT_US: u64 = 1_000;

/// How the machine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Reset,
    PowerOff,
}

/// Numbers for `INFO`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub sets: u64,
    pub gets: u64,
    pub halts: u64,
}

/// Everything.
pub struct Guest {
    pub(crate) settings: Settings,
    pub(crate) devices: Vec<BootDevice>,
    /// Interrupts of each device at the last look.
    pub(crate) interrupts_seen: Vec<u64>,
    pub(crate) timer: Timer,
    pub(crate) area: PatternArea,
    /// If there are further vCPUs.
    pub(crate) overseer: Option<Overseer>,
    pub(crate) net: Option<Net>,
    pub(crate) disk: Option<Disk<Owner>>,
    pub(crate) storage: Storage,
    /// The room on the disk for tests, if there is any.
    pub(crate) tests: Option<(BlockTest, Probe)>,
    /// The room on the disk for loads, if there is any.
    pub(crate) load: Option<DiskLoad>,
    /// One a socket.
    pub(crate) connections: Vec<Connection>,
    /// A job of the command line, without a client.
    pub(crate) boot_job: Option<Job>,
    pub(crate) counts: Counts,
    /// How the machine is to end, and when at the latest (in microseconds of the clock).
    pub(crate) end: Option<(End, u64)>,
    /// Who waits for a reset of the network card alone.
    pub(crate) card_reset_by: Option<Client>,
}

impl Guest {
    /// Serves until the machine is reset or powered off.
    pub fn run(mut self) -> ! {
        let mut busy_passes = 0;
        loop {
            traps::forget_wake();
            self.acknowledge();
            let again = self.pass();
            match self.deadline() {
                _ if again => busy_passes = 0,
                Some(0) if busy_passes < BUSY_PASSES_MAX => busy_passes += 1,
                wait_us => {
                    busy_passes = 0;
                    if let Some(wait_us) = wait_us {
                        self.timer.fire_by(clock::now_us() + wait_us.max(SHORT_WAIT_US));
                    }
                    self.counts.halts += 1;
                    // SAFETY: the gates are installed, and this stub returns at the next interrupt.
                    unsafe { fpu::guarded_ring0(traps::halt_stub()) };
                }
            }
        }
    }

    /// Acknowledges interrupts of devices, before their rings are looked at.
    fn acknowledge(&mut self) {
        for (i, device) in self.devices.iter().enumerate() {
            let count = traps::count(1 + i);
            if count == self.interrupts_seen[i] {
                continue;
            }
            self.interrupts_seen[i] = count;
            match (&self.net, &self.disk) {
                (Some(net), _) if net.nic.is_at(device.base) => net.nic.acknowledge(),
                (_, Some(disk)) if disk.is_at(device.base) => disk.acknowledge(),
                _ => {}
            }
        }
    }

    /// Serves everything once. Returns whether there is more to do at once.
    fn pass(&mut self) -> bool {
        if let Some(overseer) = &mut self.overseer {
            overseer.enter();
        }
        if let Some(net) = &mut self.net {
            net.poll();
        }
        while let Some(finished) = self.disk.as_mut().and_then(Disk::poll) {
            match (finished.request.owner, &mut self.tests) {
                (Owner::Commit, _) => self.storage.finished(finished),
                (Owner::Load, _) => {
                    if let Some(load) = &mut self.load {
                        load.finished(finished);
                    }
                }
                (Owner::Test(_), Some((test, _))) => test.finished(finished),
                (Owner::Probe(_), Some((_, probe))) => probe.finished(finished),
                _ => {}
            }
        }
        self.step();
        let busy = self.serve();
        let again = self.step();
        if let Some(disk) = &mut self.disk {
            disk.notify();
        }
        self.finish_if_due();
        busy || again
    }

    /// Goes on with what waits for the disk. Returns whether somebody got an answer.
    fn step(&mut self) -> bool {
        let mut outcomes = Vec::new();
        self.storage.step(self.disk.as_mut(), &mut outcomes);
        let mut answered = !outcomes.is_empty();
        for Outcome { client, result } in outcomes {
            self.counts.sets += u64::from(result.is_ok());
            self.answer(client, |out| match result {
                Ok(()) => resp::simple(out, "OK"),
                Err(what) => resp::error(out, what),
            });
        }
        if let (Some(disk), Some((test, probe))) = (&mut self.disk, &mut self.tests) {
            let (tested, probed) = (test.step(disk), probe.step(disk));
            let probed = probed.map(|(client, result)| (client, result.map(|()| "OK".into())));
            for (client, result) in tested.into_iter().chain(probed) {
                answered = true;
                self.answer(client, |out| match result {
                    Ok(text) => resp::simple(out, &text),
                    Err(what) => resp::error(out, &what),
                });
            }
        }
        if let (Some(disk), Some(load)) = (&mut self.disk, &mut self.load)
            && let Some((client, result)) = load.step(disk)
        {
            answered = true;
            self.answer(client, |out| match result {
                Ok(text) => resp::bulk(out, Some(text.as_bytes())),
                Err(what) => resp::error(out, &what),
            });
        }
        let card_is_reset = self.net.as_ref().is_none_or(|net| !net.nic.is_resetting());
        if let Some(client) = self.card_reset_by.take_if(|_| card_is_reset) {
            answered = true;
            self.answer(client, |out| resp::simple(out, "OK"));
        }
        answered
    }

    /// Gives a client the answer it waits for, unless its connection is gone.
    fn answer(&mut self, client: Client, write: impl FnOnce(&mut Vec<u8>)) {
        let connection = &mut self.connections[client.connection];
        if connection.generation != client.generation {
            return;
        }
        connection.activity = match connection.activity {
            Activity::Sets(count) if count > 1 => Activity::Sets(count - 1),
            _ => Activity::None,
        };
        write(&mut connection.output);
    }

    /// Serves the connections and the jobs. Returns whether there is more to do at once.
    fn serve(&mut self) -> bool {
        let mut busy = false;
        for i in 0..self.connections.len() {
            let Some(net) = &mut self.net else { break };
            self.connections[i].receive(net.socket(i), self.settings.port);
            while let Some(request) = self.connections[i].next_request() {
                self.carry_out(i, &request);
            }
            if let Activity::Job(job) = &mut self.connections[i].activity {
                let ending = job.slice(&mut self.area);
                busy = true;
                if let Some(ending) = ending {
                    let connection = &mut self.connections[i];
                    connection.activity = Activity::None;
                    match ending {
                        Ending::Done => resp::simple(&mut connection.output, "OK"),
                        Ending::Report(text) => resp::bulk(&mut connection.output, Some(text.as_bytes())),
                    }
                }
            }
            if let Some(net) = &mut self.net {
                self.connections[i].send(net.socket(i));
            }
        }
        if let Some(job) = &mut self.boot_job {
            busy = true;
            if let Some(ending) = job.slice(&mut self.area) {
                self.boot_job = None;
                self.report_boot_job(ending);
            }
        }
        busy
    }

    /// Says on the console how the job of the command line ended, and what a check found afterwards.
    fn report_boot_job(&mut self, ending: Ending) {
        if let Ending::Report(text) = ending {
            let _ = writeln!(Console, "kickloop {}", text.trim_end().replace('\n', " "));
        }
        let _ = match check::check(&self.area, &mut self.timer, &self.storage) {
            Ok(()) => writeln!(Console, "check ok"),
            Err(what) => writeln!(Console, "check failed: {what}"),
        };
    }

    /// How long the loop may wait: 0 for not at all, `None` for as long as nothing interrupts.
    fn deadline(&mut self) -> Option<u64> {
        let mut resetting = self.disk.as_ref().is_some_and(Disk::is_resetting);
        let mut wait_us = None;
        if let Some(net) = &mut self.net {
            resetting |= net.nic.is_resetting();
            wait_us = match net.next_poll() {
                Next::Now => return Some(0),
                Next::InUs(us) => Some(us),
                Next::Idle => None,
            };
        }
        let short = (resetting || self.end.is_some()).then_some(SHORT_WAIT_US);
        wait_us.into_iter().chain(short).min()
    }

    /// Ends the machine when every reply has arrived, or when that takes too long.
    fn finish_if_due(&mut self) {
        let Some((end, until_us)) = self.end else { return };
        let flushed = match &mut self.net {
            Some(net) => {
                (0..self.connections.len()).all(|i| self.connections[i].is_flushed(net.socket(i)))
                    && net.nic.is_drained()
            }
            None => true,
        };
        if flushed || clock::now_us() >= until_us {
            match end {
                End::Reset => cpu::reset_machine(),
                End::PowerOff => cpu::power_off(),
            }
        }
    }
}
