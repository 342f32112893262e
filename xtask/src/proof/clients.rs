//! Clients at work, and the judgement on what they saw.

use std::time::Duration;

use super::checker::check;
use super::client::{Swarm, read_all_keys};
use super::history::{Clock, History};
use super::load::Load;
use crate::tools::wait_for;
use anyhow::{Result, ensure};

/// Longest wait for anything that should take a second or two: generous, as the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Acknowledged writes that every connection must get to show that it goes on. More than one: the first may
/// be an answer that was on its way before.
const GOING_ON: u64 = 5;
/// Sentences of a verdict that are shown.
const SHOWN_MAX: usize = 5;

/// Connections that work, and never reconnect.
pub struct Clients {
    load: Load,
    clock: Clock,
    swarm: Swarm,
}

/// What clients saw that have stopped.
pub struct Seen {
    load: Load,
    clock: Clock,
    history: History,
}

impl Clients {
    /// Connects them and sets them to work.
    pub fn start(load: Load) -> Result<Self> {
        let clock = Clock::start();
        let swarm = Swarm::start(&load, clock)?;
        Ok(Self { load, clock, swarm })
    }

    /// Waits until each connection has got answers to further writes.
    pub fn go_on(&self) -> Result<()> {
        let before = self.swarm.acknowledged();
        wait_for("an answer to each connection", PATIENCE, || {
            ensure!(
                self.swarm.lost() == 0,
                "{} connections were lost: {}",
                self.swarm.lost(),
                self.swarm.loss().unwrap_or_default()
            );
            let now = self.swarm.acknowledged();
            Ok(now
                .iter()
                .zip(&before)
                .all(|(now, before)| now - before >= GOING_ON)
                .then_some(()))
        })
    }

    /// Lets them work for a time.
    pub fn work(&self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        self.go_on()
    }

    /// Acknowledged writes so far.
    pub fn acknowledged(&self) -> u64 {
        self.swarm.acknowledged().iter().sum()
    }

    /// Stops them after the answers to what they have asked.
    pub fn stop(self) -> Result<Seen> {
        let history = self.swarm.finish(true)?;
        for end in &history.connections {
            let lost = end.lost.as_deref();
            ensure!(
                lost.is_none(),
                "connection {} was lost: {}",
                end.connection,
                lost.unwrap_or_default()
            );
        }
        Ok(Seen {
            load: self.load,
            clock: self.clock,
            history,
        })
    }

    /// Stops them where nobody answers any more: what they asked last stays open.
    pub fn abandon(self) -> Result<Seen> {
        Ok(Seen {
            history: self.swarm.finish(false)?,
            load: self.load,
            clock: self.clock,
        })
    }

    /// Stops them, reads everything back, and judges.
    pub fn finish(self) -> Result<()> {
        self.stop()?.judge()
    }
}

impl Seen {
    /// Longest time that a connection waited between two answers.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_nanos(self.history.longest_gap())
    }

    /// Reads all keys once more, and judges everything seen so far: nothing that was acknowledged is lost,
    /// and one order of all operations explains every answer.
    pub fn judge(&mut self) -> Result<()> {
        let read = read_all_keys(&self.load, self.clock, &self.history)?;
        self.history.merge(read);
        self.judge_answers()
    }

    /// Judges what was seen so far, where nothing can be read any more.
    pub fn judge_answers(&self) -> Result<()> {
        let verdict = check(&self.history)?;
        let shown = |sentences: &[String]| sentences[..sentences.len().min(SHOWN_MAX)].join("\n");
        ensure!(verdict.acknowledged > 0, "the clients wrote nothing");
        ensure!(
            verdict.is_clean(),
            "of {} acknowledged writes {} are lost, and {} answers are contradicted:\n{}\n{}",
            verdict.acknowledged,
            verdict.lost.len(),
            verdict.contradicted.len(),
            shown(&verdict.lost),
            shown(&verdict.contradicted)
        );
        Ok(())
    }
}
