//! Requests of clients, carried out.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::apic::Timer;
use crate::commands::{self, Command};
use crate::commit::Client;
use crate::guest::{End, Guest};
use crate::jobs::{DirtyJob, Job, KickJob};
use crate::server::Activity;
use crate::{abuse, check, clock, fpu, resp, traps, worker};

/// How long a reset or a power-off waits until its reply has arrived, in microseconds.
const GOODBYE_US_MAX: u64 = 1_000_000;

impl Guest {
    /// Carries out a request: replies, or notes what the connection now waits for.
    pub(crate) fn carry_out(&mut self, connection: usize, request: &[Vec<u8>]) {
        let arguments: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        let result = commands::parse(&arguments).and_then(|command| self.execute(connection, command));
        if let Err(what) = result {
            resp::error(&mut self.connections[connection].output, &what);
        }
    }

    fn execute(&mut self, i: usize, command: Command) -> Result<(), String> {
        let client = self.connections[i].client(i);
        match command {
            Command::Ping(None) => self.ok(i, "PONG"),
            Command::Ping(Some(text)) => resp::bulk(&mut self.connections[i].output, Some(&text)),
            Command::Set(key, value) => self.set(i, client, key, value)?,
            Command::Get(key) => {
                self.usable()?;
                self.counts.gets += 1;
                resp::bulk(&mut self.connections[i].output, self.storage.index().get(&key));
            }
            Command::Dirty(pages, ms) => {
                self.begin_job(i, Job::Dirty(DirtyJob::over(pages, ms as u64 * 1000)))?;
            }
            Command::Kick(kicks, pages) => {
                self.begin_job(i, Job::Kick(KickJob::counted(kicks, pages)))?;
            }
            Command::KickLoop(pages, seconds) => {
                self.begin_job(i, Job::Kick(KickJob::timed(pages, seconds as u64 * 1_000_000)))?;
            }
            Command::Check => {
                check::check(&self.area, &mut self.timer, &self.storage)?;
                self.ok(i, "OK");
            }
            Command::Info => {
                let text = self.info();
                resp::bulk(&mut self.connections[i].output, Some(text.as_bytes()));
            }
            Command::Reboot => self.end_machine(i, End::Reset),
            Command::PowerOff => self.end_machine(i, End::PowerOff),
            Command::ResetQueues => self.reset_queues(client)?,
            Command::DiskLoop(kind, seconds) => {
                let load = self
                    .load
                    .as_mut()
                    .ok_or("there is no disk with room for a load")?;
                load.begin(client, kind, seconds as u64 * 1_000_000)?;
                self.connections[i].activity = Activity::Other;
            }
            Command::BlockTest(writes, depth) => {
                let (test, _) = self
                    .tests
                    .as_mut()
                    .ok_or("there is no disk with room for a test")?;
                test.begin(client, writes, depth)?;
                self.connections[i].activity = Activity::Other;
            }
            Command::Abuse(abuse, ms) => {
                let until_us = clock::now_us() + ms as u64 * 1000;
                abuse::commit(abuse, &self.devices, &mut self.area, until_us)?;
                self.reset_queues(client)?;
            }
            Command::Stall(ms) => {
                check::stall(ms as u64 * 1000);
                self.ok(i, "OK");
            }
            Command::Quit => {
                self.ok(i, "OK");
                self.connections[i].close();
            }
        }
        Ok(())
    }

    fn set(&mut self, i: usize, client: Client, key: Vec<u8>, value: Vec<u8>) -> Result<(), String> {
        self.usable()?;
        self.storage.set(client, key, value);
        let under_way = match self.connections[i].activity {
            Activity::Sets(count) => count,
            _ => 0,
        };
        self.connections[i].activity = Activity::Sets(under_way + 1);
        Ok(())
    }

    fn ok(&mut self, connection: usize, text: &str) {
        resp::simple(&mut self.connections[connection].output, text);
    }

    fn usable(&self) -> Result<(), String> {
        self.storage.refusal().map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// Begins a job, if the pattern area has as many pages as it writes at a time.
    fn begin_job(&mut self, connection: usize, job: Job) -> Result<(), String> {
        if job.pages() > self.area.pages() {
            return Err(format!("the pattern area has {} pages only", self.area.pages()));
        }
        self.connections[connection].activity = Activity::Job(job);
        Ok(())
    }

    fn end_machine(&mut self, connection: usize, end: End) {
        self.ok(connection, "OK");
        self.end = Some((end, clock::now_us() + GOODBYE_US_MAX));
    }

    /// Resets disk and card while requests are in flight.
    fn reset_queues(&mut self, client: Client) -> Result<(), String> {
        if self.card_reset_by.is_some() {
            return Err("a reset is under way already".into());
        }
        match (&mut self.disk, &mut self.tests) {
            (Some(disk), Some((_, probe))) => {
                probe.begin(client, disk)?;
                disk.begin_reset();
            }
            (disk, _) => {
                self.card_reset_by = Some(client);
                if let Some(disk) = disk {
                    disk.begin_reset();
                }
            }
        }
        if let Some(net) = &mut self.net {
            net.nic.begin_reset();
        }
        self.connections[client.connection].activity = Activity::Other;
        Ok(())
    }

    /// The text of `INFO`.
    fn info(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn core::fmt::Display| {
            text.push_str(&format!("{key}:{value}\n"));
        };
        line("uptime_us", &clock::now_us());
        line("boots", &self.storage.layout().map_or(0, |layout| layout.boots));
        line(
            "connections",
            &self.net.as_ref().map_or(0, |net| net.connections()),
        );
        line("sets", &self.counts.sets);
        line("gets", &self.counts.gets);
        line("keys", &self.storage.index().len());
        line("slots", &self.storage.layout().map_or(0, |layout| layout.slots));
        line("irqs", &traps::total());
        line("ticks", &Timer::ticks());
        line("halts", &self.counts.halts);
        line("tsc_steps_back", &clock::steps_back());
        let (comparisons, mismatches) = fpu::counts();
        line("fpu_comparisons", &comparisons);
        line("fpu_mismatches", &mismatches);
        let (rounds, wrong) = worker::counts();
        line("worker_rounds", &rounds);
        line("worker_mismatches", &wrong);
        line("pattern_pages", &self.area.pages());
        line("pattern_touched", &self.area.touched());
        if let Some(net) = &self.net {
            for (name, (avail, used)) in ["net_rx", "net_tx"].iter().zip(net.nic.indexes()) {
                line(&format!("{name}_avail"), &avail);
                line(&format!("{name}_used"), &used);
            }
        }
        if let Some(disk) = &self.disk {
            let (avail, used) = disk.indexes();
            line("blk_avail", &avail);
            line("blk_used", &used);
        }
        text
    }
}
