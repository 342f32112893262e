//! `DISKLOOP`: requests to the disk for a time, to measure how many it takes. Contents are of no interest,
//! but they never repeat.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::clock;
use crate::commands::DiskKind;
use crate::commit::{Client, Owner};
use crate::pattern::mix;
use crate::store::BLOCK_BYTES;
use crate::virtio::block::{Disk, Finished, Operation, Request, SECTOR_BYTES};
use crate::virtio::memory::Dma;

/// Bytes of a sequential write.
const SEQUENTIAL_BYTES: usize = 16 * BLOCK_BYTES;
/// Fewest blocks of the area.
const BLOCKS_MIN: usize = 64;

impl DiskKind {
    /// Bytes of a request, and requests in flight.
    fn shape(self) -> (usize, usize) {
        match self {
            DiskKind::RandomWrite | DiskKind::Read => (BLOCK_BYTES, 16),
            DiskKind::SequentialWrite => (SEQUENTIAL_BYTES, 4),
            DiskKind::Sync => (BLOCK_BYTES, 1),
        }
    }
}

struct Run {
    client: Client,
    kind: DiskKind,
    begun_us: u64,
    until_us: u64,
    in_flight: usize,
    /// Finished, without flushes of their own.
    done: u64,
    failed: bool,
    /// A write has finished, and its flush has not begun.
    flush_due: bool,
    /// The next block of sequential writes.
    next: usize,
}

/// The area of the disk for such loads, and the one that runs.
pub struct DiskLoad {
    first_sector: u64,
    blocks: usize,
    random: u64,
    run: Option<Run>,
    buffers: Vec<Dma>,
}

impl DiskLoad {
    /// Over so many blocks from this sector on.
    pub fn new(first_sector: u64, blocks: usize, salt: u64) -> DiskLoad {
        DiskLoad {
            first_sector,
            blocks,
            random: salt << 32,
            run: None,
            buffers: Vec::new(),
        }
    }

    /// Begins a load for so long.
    pub fn begin(&mut self, client: Client, kind: DiskKind, duration_us: u64) -> Result<(), String> {
        if self.run.is_some() {
            return Err("a load of the disk is running already".into());
        }
        if self.blocks < BLOCKS_MIN {
            return Err("the disk has no room for a load".into());
        }
        let begun_us = clock::now_us();
        self.buffers.clear();
        self.run = Some(Run {
            client,
            kind,
            begun_us,
            until_us: begun_us + duration_us,
            in_flight: 0,
            done: 0,
            failed: false,
            flush_due: false,
            next: 0,
        });
        Ok(())
    }

    /// A request of [`Owner::Load`] has finished.
    pub fn finished(&mut self, finished: Finished<Owner>) {
        let Some(run) = &mut self.run else { return };
        run.in_flight -= 1;
        run.failed |= !finished.ok;
        let synced = run.kind == DiskKind::Sync;
        match finished.request.operation {
            Operation::Write if synced => run.flush_due = true,
            _ => run.done += 1,
        }
        self.buffers.extend(finished.request.data);
    }

    /// Submits what may be in flight now. Returns the report when the load has ended.
    pub fn step(&mut self, disk: &mut Disk<Owner>) -> Option<(Client, Result<String, String>)> {
        let mut run = self.run.take()?;
        let (bytes, depth) = run.kind.shape();
        if core::mem::take(&mut run.flush_due) {
            if disk.needs_flush() {
                run.in_flight += 1;
                disk.submit(Request {
                    operation: Operation::Flush,
                    sector: 0,
                    data: None,
                    lane: 0,
                    owner: Owner::Load,
                });
            } else {
                run.done += 1;
            }
        }
        let now_us = clock::now_us();
        while now_us < run.until_us && run.in_flight < depth {
            run.in_flight += 1;
            self.submit(&mut run, bytes, disk);
        }
        if run.in_flight > 0 {
            self.run = Some(run);
            return None;
        }
        let report = format!(
            "requests:{}\nbytes:{bytes}\nelapsed_us:{}\n",
            run.done,
            clock::now_us() - run.begun_us
        );
        let failed = run.failed.then(|| "a request to the disk failed".into());
        Some((run.client, failed.map_or(Ok(report), Err)))
    }

    fn submit(&mut self, run: &mut Run, bytes: usize, disk: &mut Disk<Owner>) {
        self.random = self.random.wrapping_add(1);
        let random = mix(self.random);
        let blocks = bytes / BLOCK_BYTES;
        let block = match run.kind {
            DiskKind::SequentialWrite => {
                let block = run.next;
                run.next = (run.next + blocks) % (self.blocks - blocks + 1);
                block
            }
            _ => (random % self.blocks as u64) as usize,
        };
        let mut data = self.buffers.pop().unwrap_or_else(|| Dma::new(bytes, BLOCK_BYTES));
        let operation = match run.kind {
            DiskKind::Read => Operation::Read,
            _ => {
                data.bytes_mut()[..8].copy_from_slice(&random.to_le_bytes());
                Operation::Write
            }
        };
        disk.submit(Request {
            operation,
            sector: self.first_sector + (block * BLOCK_BYTES / SECTOR_BYTES) as u64,
            data: Some(data),
            lane: 0,
            owner: Owner::Load,
        });
    }
}
