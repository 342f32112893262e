//! `BLKTEST`: writes of blocks with verifiable contents, many in flight and finishing in any order, some of them to one
//! block, with flushes and zeroes between them, and reads that overlap writes; then a flush, and every written block is read
//! and verified.
//!
//! Of writes to one block the one that was submitted last is there in the end: a machine that carries them out in another
//! order, be it after a takeover, is noticed. A read that overlaps writes may find, word by word, any version from the last one finished when it was submitted
//! to the last one submitted when it finishes. Any other read must find exactly the last finished one: a read that
//! overtakes a finished write is noticed.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::commit::{Client, Owner};
use crate::pattern::mix;
use crate::store::BLOCK_BYTES;
use crate::virtio::block::{Disk, Finished, Operation, Request, SECTOR_BYTES};
use crate::virtio::memory::Dma;

/// Most blocks of the area that a test uses.
pub const BLOCKS_MAX: usize = 256;
const SECTORS_A_BLOCK: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// Half of all writes go to so few blocks, and so many of them to one block may be in flight.
const BUSY_BLOCKS: usize = 4;
const WRITES_A_BLOCK_MAX: u64 = 4;
/// One of so many versions of a block is zeros.
const ZEROS_OF: u64 = 5;
/// One flush for so many writes, on average.
const WRITES_A_FLUSH: usize = 16;

/// Fills a block with the contents of a version.
pub fn fill(data: &mut [u8], block: usize, version: u64) {
    for (i, word) in data.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_of(block, version, i).to_le_bytes());
    }
}

/// Whether each word of a block belongs to one of the versions.
pub fn matches(data: &[u8], block: usize, versions: core::ops::RangeInclusive<u64>) -> bool {
    data.chunks_exact(8).enumerate().all(|(i, found)| {
        versions
            .clone()
            .any(|version| found == word_of(block, version, i).to_le_bytes())
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

/// What is known of a block. Versions begin at 1; 0: unknown contents.
#[derive(Clone, Default)]
struct Block {
    /// Version of the last finished write, and of the last submitted one.
    finished: u64,
    submitted: u64,
    /// Writes in flight.
    writing: u64,
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
    blocks: Vec<Block>,
    random: u64,
    run: Option<Run>,
    buffers: Vec<Dma>,
}

impl BlockTest {
    /// Over so many blocks from this sector on. `salt` makes versions of this boot unlike those of others.
    pub fn new(first_sector: u64, blocks: usize, salt: u64) -> BlockTest {
        let salted = Block {
            finished: 0,
            submitted: salt << 32,
            ..Block::default()
        };
        BlockTest {
            first_sector,
            blocks: vec![salted; blocks.min(BLOCKS_MAX)],
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
            Operation::Write | Operation::Zero => {
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
                    if !matches(data, number, from..=block.submitted) {
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
                submit_flush(disk);
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
                submit_flush(disk);
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
        let block = &mut self.blocks[number];
        block.submitted += 1;
        block.writing += 1;
        block.written_in_this_run = true;
        fill(data.bytes_mut(), number, block.submitted);
        let operation = match is_zeros(block.submitted) && disk.makes_zeros() {
            true => Operation::Zero,
            false => Operation::Write,
        };
        run.writes_left -= 1;
        run.writes += 1;
        self.submit(run, operation, number, data, disk);
    }

    fn submit_read(&mut self, run: &mut Run, number: usize, disk: &mut Disk<Owner>) {
        let data = self.buffer();
        let block = &mut self.blocks[number];
        block.reading_from = Some(block.finished);
        run.reads += 1;
        self.submit(run, Operation::Read, number, data, disk);
    }

    fn submit(
        &mut self,
        run: &mut Run,
        operation: Operation,
        number: usize,
        data: Dma,
        disk: &mut Disk<Owner>,
    ) {
        run.in_flight += 1;
        let sector = self.first_sector + number as u64 * SECTORS_A_BLOCK;
        disk.submit(Request {
            operation,
            sector,
            data: Some(data),
            owner: Owner::Test(number),
        });
    }

    fn buffer(&mut self) -> Dma {
        self.buffers
            .pop()
            .unwrap_or_else(|| Dma::new(BLOCK_BYTES, BLOCK_BYTES))
    }
}

fn submit_flush(disk: &mut Disk<Owner>) {
    disk.submit(Request {
        operation: Operation::Flush,
        sector: 0,
        data: None,
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
        assert!(matches(&new, 3, 8..=8) && !matches(&old, 3, 8..=8) && !matches(&new, 4, 8..=8));
        old[..16].copy_from_slice(&new[..16]);
        assert!(matches(&old, 3, 7..=8) && !matches(&old, 3, 7..=7));
        fill(&mut new, 3, 10);
        assert!(new.iter().all(|byte| *byte == 0) && matches(&new, 3, 9..=10) && !matches(&new, 3, 8..=9));
    }
}
