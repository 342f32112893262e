//! Many requests of every kind at once, through the disk's real server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kemari_vmm::disk::{Disk, DiskJob, EndSink, Operation, Outcome, Server};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::log::{Entry, Log};
use super::model::{Asked, Model, content};
use crate::own_file::SECTOR_BYTES;

/// Requests of a storm, and most of them under way at a time.
const REQUESTS: u64 = 400;
const UNDER_WAY_MAX: usize = 24;
/// Most sectors of a request; most that are made zeros at once.
const SECTORS_MAX: u64 = 24;
const ZERO_SECTORS_MAX: u64 = 512;
/// The first sectors, to which half of all requests go, so that many overlap.
const BUSY_SECTORS: u64 = 256;
/// Longest wait for the end of a request.
const END_MAX: Duration = Duration::from_secs(60);

/// How a disk is treated.
pub(crate) struct Storm<'a> {
    /// Where what is asked and what has ended is noted.
    pub log: &'a Arc<Log>,
    /// Makes the disk so many sectors long, durably.
    pub grow: &'a dyn Fn(&Server, u64) -> Result<()>,
    /// So long it becomes on the way.
    pub grown_sectors: u64,
    /// Whether the guest knows no flush.
    pub write_through: bool,
}

impl Storm<'_> {
    /// Asks a disk for a lot; returns what must be on it.
    pub(crate) fn rage(&self, disk: Disk, mut model: Model, random: &mut ChaCha8Rng) -> Result<Model> {
        let (sender, ends) = channel();
        let log = self.log.clone();
        let told: EndSink = Arc::new(move |ended| {
            for (id, result) in ended {
                log.note(Entry::Ended(id));
                // Nobody listens any more after an error.
                let _ = sender.send((id, result));
            }
        });
        let server = Server::start(Arc::new(disk), None, told, Arc::new(|_| {}))?;
        server.set_write_through(self.write_through);
        let mut asker = Asker {
            server: &server,
            log: self.log,
            ends,
            under_way: BTreeMap::new(),
        };
        let grows_at = random.random_range(REQUESTS / 4..REQUESTS / 2);
        for id in 1..=REQUESTS {
            if id == grows_at {
                self.log.note(Entry::Asked(id));
                model.ask(id, Asked::Grow(self.grown_sectors));
                (self.grow)(&server, self.grown_sectors)?;
                self.log.note(Entry::Ended(id));
                continue;
            }
            asker.ask(id, &mut model, random);
            while asker.under_way.len() >= UNDER_WAY_MAX {
                asker.await_one()?;
            }
        }
        while !asker.under_way.is_empty() {
            asker.await_one()?;
        }
        Ok(model)
    }
}

struct Asker<'a> {
    server: &'a Server,
    log: &'a Log,
    ends: Receiver<Outcome>,
    /// What each must return.
    under_way: BTreeMap<u64, Vec<u8>>,
}

impl Asker<'_> {
    fn ask(&mut self, id: u64, model: &mut Model, random: &mut ChaCha8Rng) {
        let mut returns = Vec::new();
        let (operation, asked) = match random.random_range(0..100) {
            0..8 => (Operation::Flush, Some(Asked::Flush)),
            8..20 => {
                let range = any_range(model.sectors(), SECTORS_MAX, random);
                returns = range.clone().flat_map(|sector| model.now(sector)).collect();
                let (offset, bytes) = (range.start * SECTOR_BYTES, returns.len());
                (Operation::Read { offset, bytes }, None)
            }
            20..32 => {
                let range = any_range(model.sectors(), ZERO_SECTORS_MAX, random);
                let operation = Operation::Zero {
                    offset: range.start * SECTOR_BYTES,
                    bytes: (range.end - range.start) * SECTOR_BYTES,
                    unmap: random.random(),
                };
                (operation, Some(Asked::Zero(range)))
            }
            _ => {
                let range = any_range(model.sectors(), SECTORS_MAX, random);
                let data = range.clone().flat_map(|sector| content(id, sector)).collect();
                let offset = range.start * SECTOR_BYTES;
                (Operation::Write { offset, data }, Some(Asked::Write(range)))
            }
        };
        self.log.note(Entry::Asked(id));
        if let Some(asked) = asked {
            model.ask(id, asked);
        }
        self.under_way.insert(id, returns);
        self.server.submit(DiskJob { id, operation });
    }

    fn await_one(&mut self) -> Result<()> {
        let (id, completion) = self
            .ends
            .recv_timeout(END_MAX)
            .context("a request does not end")?;
        let Some(returns) = self.under_way.remove(&id) else {
            bail!("request {id} ended and was not under way");
        };
        let returned = completion.with_context(|| format!("request {id} failed"))?;
        ensure!(returned == returns, "request {id} has read something else");
        Ok(())
    }
}

fn any_range(sectors: u64, length_max: u64, random: &mut ChaCha8Rng) -> std::ops::Range<u64> {
    let all = match random.random() {
        true => sectors,
        false => BUSY_SECTORS,
    };
    let start = random.random_range(0..all);
    // Whole blocks of 4 KiB, and odd parts of them.
    let length = match random.random() {
        true => random.random_range(1..=length_max),
        false => length_max.min(8),
    };
    start..(start + length).min(sectors)
}
