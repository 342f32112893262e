//! `RESETQ`: resets the disk and the network card while requests are in flight. Writes of its own make sure
//! that there are some; the driver submits them again after the reset, and then they are read back.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::block_test::{fill, matches};
use crate::commit::{Client, Owner};
use crate::store::BLOCK_BYTES;
use crate::virtio::block::{Disk, Finished, Operation, Request, SECTOR_BYTES};
use crate::virtio::memory::Dma;

/// Blocks of the disk that the probe writes, and so many requests.
pub const PROBE_BLOCKS: usize = 8;

/// The probe's blocks, and the probe that runs.
pub struct Probe {
    first_sector: u64,
    version: u64,
    run: Option<Run>,
}

struct Run {
    client: Client,
    operation: Operation,
    buffers: Vec<Dma>,
    left: usize,
    error: Option<String>,
}

impl Probe {
    /// Over [`PROBE_BLOCKS`] blocks from this sector on. `salt` makes contents of this boot unlike those of
    /// others.
    pub fn new(first_sector: u64, salt: u64) -> Probe {
        Probe {
            first_sector,
            version: salt << 32,
            run: None,
        }
    }

    /// Submits writes; the caller then resets the disk.
    pub fn begin(&mut self, client: Client, disk: &mut Disk<Owner>) -> Result<(), String> {
        if self.run.is_some() {
            return Err("a reset is under way already".into());
        }
        self.version += 1;
        let buffers = (0..PROBE_BLOCKS).map(|number| {
            let mut data = Dma::new(BLOCK_BYTES, BLOCK_BYTES);
            fill(data.bytes_mut(), number, self.version);
            data
        });
        let buffers = buffers.collect();
        self.run = Some(Run {
            client,
            operation: Operation::Write,
            buffers,
            left: 0,
            error: None,
        });
        self.submit(disk);
        Ok(())
    }

    fn submit(&mut self, disk: &mut Disk<Owner>) {
        let Some(run) = &mut self.run else { return };
        run.left = run.buffers.len();
        for (number, data) in run.buffers.drain(..).enumerate() {
            let sector = self.first_sector + (number * BLOCK_BYTES / SECTOR_BYTES) as u64;
            let (operation, owner) = (run.operation, Owner::Probe(number));
            disk.submit(Request {
                operation,
                sector,
                data: Some(data),
                lane: 0,
                owner,
            });
        }
    }

    /// A request of [`Owner::Probe`] has finished.
    pub fn finished(&mut self, finished: Finished<Owner>) {
        let (Some(run), Owner::Probe(number)) = (&mut self.run, finished.request.owner) else {
            return;
        };
        run.left -= 1;
        let data = finished.request.data;
        let read = run.operation == Operation::Read;
        let wrong = read
            && !data
                .as_ref()
                .is_some_and(|data| matches(data.bytes(), number, self.version..=self.version, false));
        if !finished.ok || wrong {
            run.error = Some(format!(
                "{:?} of block {number} failed over the reset",
                run.operation
            ));
        }
        run.buffers.extend(data);
    }

    /// Goes on. Returns the result when all was read back.
    pub fn step(&mut self, disk: &mut Disk<Owner>) -> Option<(Client, Result<(), String>)> {
        let run = self.run.as_mut().filter(|run| run.left == 0)?;
        if run.operation == Operation::Write && run.error.is_none() {
            run.operation = Operation::Read;
            self.submit(disk);
            return None;
        }
        self.run
            .take()
            .map(|run| (run.client, run.error.map_or(Ok(()), Err)))
    }
}
