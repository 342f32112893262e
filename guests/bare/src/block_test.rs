//! `BLKTEST`: writes of blocks with verifiable contents, many in flight, over all queues, and finishing in
//! any order, some of them to one block, with flushes, zeroes and discards between them, and reads that
//! overlap writes; then a flush, and every written block is read and verified. The blocks lie far apart.
//!
//! Of writes to one block the one that was submitted last is there in the end: a machine that carries them
//! out in another order, be it after a takeover, is noticed. Those that are in flight at a time go by one
//! queue, the next ones by another. A read that overlaps writes may find, word by word, any version from the
//! last one finished when it was submitted to the last one submitted when it finishes. Any other read must
//! find exactly the last finished one: a read that overtakes a finished write is noticed.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::commit::{Client, Owner};
use crate::pattern::mix;
use crate::store::BLOCK_BYTES;
use crate::virtio::block::{Disk, Finished, Operation, Request, SECTOR_BYTES};
use crate::virtio::memory::Dma;

/// Most blocks of the area that a test uses.
const BLOCKS_MAX: usize = 256;
const SECTORS_A_BLOCK: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// Half of all writes go to so few blocks, and so many of them to one block may be in flight.
const BUSY_BLOCKS: usize = 4;
const WRITES_A_BLOCK_MAX: u64 = 4;
/// One of so many versions of a block is zeros.
const ZEROS_OF: u64 = 5;
/// In one of as many, which has this remainder, the block is let go. Kemari's disks have zeros there then, on
/// every host alike.
const LET_GO: u64 = 2;
/// One flush for so many writes, on average.
const WRITES_A_FLUSH: usize = 16;

/// Fills a block with the contents of a version.
pub fn fill(data: &mut [u8], block: usize, version: u64) {
    for (i, word) in data.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_of(block, version, i).to_le_bytes());
    }
}

/// Whether each word of a block belongs to one of the versions; `discards`: of a disk that lets go of blocks.
pub fn matches(data: &[u8], block: usize, versions: RangeInclusive<u64>, discards: bool) -> bool {
    data.chunks_exact(8).enumerate().all(|(i, found)| {
        versions
            .clone()
            .any(|version| match discards && is_let_go(version) {
                true => found == [0; 8],
                false => found == word_of(block, version, i).to_le_bytes(),
            })
    })
}

fn word_of(block: usize, version: u64, i: usize) -> u64 {
    if is_zeros(version) {
        return 0;
    }
    mix(mix(version) ^ (block as u64) << 32 ^ i as u64)
}

fn is_zeros(version: u64) -> bool {
    version.is_multiple_of(ZEROS_OF)
}

fn is_let_go(version: u64) -> bool {
    version % ZEROS_OF == LET_GO
}

/// What is known of a block. Versions begin at 1; 0: unknown contents.
#[derive(Clone, Default)]
struct Block {
    /// Version of the last finished write, and of the last submitted one.
    finished: u64,
    submitted: u64,
    /// Writes in flight, all of one lane.
    writing: u64,
    lane: usize,
    /// The last finished version when the read in flight was submitted.
    reading_from: Option<u64>,
    written_in_this_run: bool,
}

enum Stage {
    Writing,
    Flushing,
    Verifying,
}

struct Run {
    client: Client,
    stage: Stage,
    depth: usize,
    in_flight: usize,
    writes_left: usize,
    writes: usize,
    reads: usize,
    verified: usize,
    /// The next block to verify.
    cursor: usize,
    error: Option<String>,
}

/// The area of the disk that is for tests, and the test that runs.
pub struct BlockTest {
    first_sector: u64,
    /// From one block to the next.
    sectors_apart: u64,
    blocks: Vec<Block>,
    discards: bool,
    random: u64,
    run: Option<Run>,
    buffers: Vec<Dma>,
}

impl BlockTest {
    /// Spread over so many blocks from this sector on. `salt` makes versions of this boot unlike those of
    /// others.
    pub fn new(first_sector: u64, blocks: usize, salt: u64) -> BlockTest {
        let salted = Block {
            finished: 0,
            // The first version is neither zeros nor let go: what was there before, nobody knows.
            submitted: (salt << 32).next_multiple_of(ZEROS_OF),
            ..Block::default()
        };
        let tested = blocks.min(BLOCKS_MAX);
        BlockTest {
            first_sector,
            sectors_apart: (blocks / tested.max(1)) as u64 * SECTORS_A_BLOCK,
            blocks: vec![salted; tested],
            discards: false,
            random: salt,
            run: None,
            buffers: Vec::new(),
        }
    }

    /// Begins a test: so many writes, so many requests in flight.
    pub fn begin(&mut self, client: Client, writes: usize, depth: usize) -> Result<(), String> {
        if self.run.is_some() {
            return Err("a test of the disk is running already".into());
        }
        if self.blocks.len() < 2 {
            return Err("the disk has no room for a test".into());
        }
        self.blocks
            .iter_mut()
            .for_each(|block| block.written_in_this_run = false);
        self.run = Some(Run {
            client,
            stage: Stage::Writing,
            depth: depth.min(self.blocks.len() / 2),
            in_flight: 0,
            writes_left: writes,
            writes: 0,
            reads: 0,
            verified: 0,
            cursor: 0,
            error: None,
        });
        Ok(())
    }

    /// A request of [`Owner::Test`] has finished.
    pub fn finished(&mut self, finished: Finished<Owner>) {
        let (Some(run), Owner::Test(number)) = (&mut self.run, finished.request.owner) else {
            return;
        };
        run.in_flight -= 1;
        let mut fail = |what: String| _ = run.error.get_or_insert(what);
        let operation = finished.request.operation;
        if !finished.ok {
            fail(format!("{operation:?} of block {number} failed"));
        }
        match operation {
            Operation::Flush if matches!(run.stage, Stage::Flushing) => run.stage = Stage::Verifying,
            Operation::Flush => {}
            Operation::Write | Operation::Zero | Operation::Discard => {
                let block = &mut self.blocks[number];
                block.writing -= 1;
                // They overlap, so they finish in their order.
                let version = block.submitted - block.writing;
                block.finished = if finished.ok { version } else { 0 };
            }
            Operation::Read => {
                let block = &mut self.blocks[number];
                let from = block.reading_from.take().unwrap_or(0);
                let data = finished.request.data.as_ref().map_or(&[][..], Dma::bytes);
                if finished.ok && from != 0 {
                    run.verified += 1;
                    if !matches(data, number, from..=block.submitted, self.discards) {
                        let to = block.submitted;
                        fail(format!(
                            "block {number} has none of the versions {from:#x} to {to:#x}"
                        ));
                    }
                }
            }
        }
        self.buffers.extend(finished.request.data);
    }

    /// Submits what may be in flight now. Returns the result when the test has ended.
    pub fn step(&mut self, disk: &mut Disk<Owner>) -> Option<(Client, Result<String, String>)> {
        let mut run = self.run.take()?;
        self.discards = disk.discards();
        match run.stage {
            Stage::Writing => self.submit_writes(&mut run, disk),
            Stage::Verifying => {
                while run.in_flight < run.depth && run.cursor < self.blocks.len() {
                    let number = run.cursor;
                    run.cursor += 1;
                    if self.blocks[number].written_in_this_run {
                        self.submit_read(&mut run, number, disk);
                    }
                }
            }
            Stage::Flushing => {}
        }
        if run.in_flight > 0 {
            self.run = Some(run);
            return None;
        }
        if matches!(run.stage, Stage::Writing) && run.error.is_none() {
            run.stage = Stage::Verifying;
            if disk.needs_flush() {
                run.stage = Stage::Flushing;
                run.in_flight = 1;
                let lane = self.draw();
                submit_flush(lane, disk);
            }
            self.run = Some(run);
            // Without a flush there is nothing to wait for: go on at once.
            return self
                .run
                .as_ref()
                .is_some_and(|run| run.in_flight == 0)
                .then(|| self.step(disk))
                .flatten();
        }
        let summary = format!(
            "OK writes={} reads={} verified={}",
            run.writes, run.reads, run.verified
        );
        Some((run.client, run.error.map_or(Ok(summary), Err)))
    }

    fn submit_writes(&mut self, run: &mut Run, disk: &mut Disk<Owner>) {
        if run.error.is_some() {
            run.writes_left = 0;
        }
        while run.in_flight < run.depth && run.writes_left > 0 {
            let number = match self.draw().is_multiple_of(2) {
                true => self.draw() % BUSY_BLOCKS,
                false => self.draw(),
            };
            let number = number.min(self.blocks.len() - 1);
            if self.blocks[number].writing < WRITES_A_BLOCK_MAX {
                self.submit_write(run, number, disk);
            }
            if disk.needs_flush() && self.draw().is_multiple_of(WRITES_A_FLUSH) && run.in_flight < run.depth {
                run.in_flight += 1;
                let lane = self.draw();
                submit_flush(lane, disk);
            }
            // Every other time a read too: of the block just written, or of any.
            if self.draw().is_multiple_of(2) && run.in_flight < run.depth {
                let number = if self.draw().is_multiple_of(2) {
                    number
                } else {
                    self.draw()
                };
                if self.blocks[number].reading_from.is_none() {
                    self.submit_read(run, number, disk);
                }
            }
        }
    }

    fn draw(&mut self) -> usize {
        self.random = self.random.wrapping_add(1);
        (mix(self.random) % self.blocks.len() as u64) as usize
    }

    fn submit_write(&mut self, run: &mut Run, number: usize, disk: &mut Disk<Owner>) {
        let mut data = self.buffer();
        let lane = self.draw();
        let block = &mut self.blocks[number];
        block.submitted += 1;
        if block.writing == 0 {
            block.lane = lane;
        }
        block.writing += 1;
        let lane = block.lane;
        block.written_in_this_run = true;
        fill(data.bytes_mut(), number, block.submitted);
        let operation = match block.submitted {
            version if is_zeros(version) && disk.makes_zeros() => Operation::Zero,
            version if is_let_go(version) && disk.discards() => Operation::Discard,
            _ => Operation::Write,
        };
        run.writes_left -= 1;
        run.writes += 1;
        self.submit(run, operation, (number, lane), data, disk);
    }

    fn submit_read(&mut self, run: &mut Run, number: usize, disk: &mut Disk<Owner>) {
        let data = self.buffer();
        let lane = self.draw();
        let block = &mut self.blocks[number];
        block.reading_from = Some(block.finished);
        run.reads += 1;
        self.submit(run, Operation::Read, (number, lane), data, disk);
    }

    fn submit(
        &mut self,
        run: &mut Run,
        operation: Operation,
        (number, lane): (usize, usize),
        data: Dma,
        disk: &mut Disk<Owner>,
    ) {
        run.in_flight += 1;
        let sector = self.first_sector + number as u64 * self.sectors_apart;
        disk.submit(Request {
            operation,
            sector,
            data: Some(data),
            lane,
            owner: Owner::Test(number),
        });
    }

    fn buffer(&mut self) -> Dma {
        self.buffers
            .pop()
            .unwrap_or_else(|| Dma::new(BLOCK_BYTES, BLOCK_BYTES))
    }
}

fn submit_flush(lane: usize, disk: &mut Disk<Owner>) {
    disk.submit(Request {
        operation: Operation::Flush,
        sector: 0,
        data: None,
        lane,
        owner: Owner::Test(0),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_allowed_versions_may_mix_and_others_are_noticed() {
        let (mut old, mut new) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        fill(&mut old, 3, 7);
        fill(&mut new, 3, 8);
        let fits = |data: &[u8], block, versions| matches(data, block, versions, false);
        assert!(fits(&new, 3, 8..=8) && !fits(&old, 3, 8..=8) && !fits(&new, 4, 8..=8));
        old[..16].copy_from_slice(&new[..16]);
        assert!(fits(&old, 3, 7..=8) && !fits(&old, 3, 7..=7));
        fill(&mut new, 3, 10);
        assert!(new.iter().all(|byte| *byte == 0) && fits(&new, 3, 9..=10) && !fits(&new, 3, 8..=9));
    }

    #[test]
    fn a_block_that_was_let_go_is_zeros() {
        let mut data = vec![0; BLOCK_BYTES];
        for version in 6..=10 {
            fill(&mut data, 3, version);
            assert_eq!(matches(&data, 3, 7..=7, true), version == 10, "{version}");
        }
        fill(&mut data, 3, 6);
        data[..16].fill(0);
        assert!(matches(&data, 3, 6..=7, true) && !matches(&data, 3, 7..=7, true));
        assert!(
            !matches(&data, 3, 7..=7, false),
            "a disk that cannot let go was written to"
        );
    }
}
