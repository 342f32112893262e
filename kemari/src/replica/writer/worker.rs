//! The thread that writes the image of a replica.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use kemari_sync::wire::CHUNK_SUM_BYTES;
use kemari_sync::{Carried, ReplicaMarks};
use kemari_vmm::disk::{KeptDisk, Operation, Overlay};

use super::super::chunk::chunk_sum;
use super::super::image::Image;
use super::super::record::Map;
use super::super::tracker::MARK_AGE_MIN;
use super::queue::Queue;
use super::{Answer, Barrier, Job, Report};

/// Frames of the copy after which what came is made durable.
const STORED_FRAMES: u64 = 64;
/// Longest time that what was carried out stays without a flush. The guest's own flushes come only where it
/// waits for both disks (see `kemari_vmm::disk::DiskWatch::flush_is_output`), and no mark goes before a
/// flush.
pub(crate) const FLUSH_AGE_MAX: Duration = Duration::from_secs(5);

/// Carries out jobs, one after the other, on a thread of its own.
pub(crate) struct Worker {
    image: Arc<Image>,
    disk: KeptDisk,
    queue: Arc<Queue>,
    report: Box<dyn Fn(Report) + Send>,
    /// What could not be carried out when the image failed, and outputs that came since, in order.
    left: VecDeque<Job>,
    /// When the first of them was that no flush has followed.
    unflushed: Option<Instant>,
    marks: ReplicaMarks,
    /// Times of marks are counted from here.
    begun: Instant,
    /// A fault for tests: so long it takes to carry out a job.
    delay: Duration,
    /// Shows the image as it was at one moment, to somebody who needs that still.
    overlay: Weak<Overlay>,
}

impl Worker {
    /// A worker that has carried out nothing yet. See [`super::Replica::start`].
    pub(super) fn new(
        image: Arc<Image>,
        disk: KeptDisk,
        queue: Arc<Queue>,
        delay: Duration,
        report: impl Fn(Report) + Send + 'static,
    ) -> Self {
        Self {
            image,
            disk,
            queue,
            report: Box::new(report),
            left: VecDeque::new(),
            unflushed: None,
            marks: ReplicaMarks::default(),
            begun: Instant::now(),
            delay,
            overlay: Weak::new(),
        }
    }

    /// Works until there will be no more jobs.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Some(job) = self.next(jobs) {
            thread::sleep(self.delay);
            self.take(job);
        }
    }

    /// Carries a job out. Outputs that cannot be are kept: they are committed, and nobody else has them.
    pub(super) fn take(&mut self, job: Job) {
        let cost = job.cost();
        match (self.queue.failure(), job) {
            (Some(_), job @ Job::Outputs(_)) => return self.left.push_back(job),
            (Some(reason), Job::Enlarge(_, answer)) => answer(Err(reason)),
            (Some(_), job) if !matches!(job, Job::Retry) => {}
            (_, job) => {
                let outputs = match &job {
                    Job::Outputs(outputs) => Some(outputs.clone()),
                    _ => None,
                };
                if let Err(error) = self.carry_out(job) {
                    self.fail(&error);
                    if let Some(outputs) = outputs {
                        return self.left.push_back(Job::Outputs(outputs));
                    }
                }
            }
        }
        let was_full = self.queue.is_full();
        self.queue.remove(cost);
        if was_full && !self.queue.is_full() {
            (self.report)(Report::Room);
        }
    }

    /// Tries again what was left when the image failed.
    fn retry(&mut self) {
        if !self.queue.heal() {
            return;
        }
        for job in std::mem::take(&mut self.left) {
            self.take(job);
        }
    }

    /// The next job; none: there will be no more. While there is none what was carried out is flushed in
    /// time.
    fn next(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        while let Some(unflushed) = self.unflushed {
            let left = FLUSH_AGE_MAX.saturating_sub(unflushed.elapsed());
            if !left.is_zero() {
                match jobs.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => {}
                    received => return received.ok(),
                }
            }
            // Also if it cannot be: then nothing more is carried out.
            self.unflushed = None;
            if self.queue.failure().is_some() {
                continue;
            }
            match self.flush() {
                Err(error) => self.fail(&error.into()),
                Ok(durable) => durable
                    .request
                    .into_iter()
                    .for_each(|request| (self.report)(Report::Flushed(request))),
            }
        }
        jobs.recv().ok()
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Makes durable what was carried out.
    fn flush(&mut self) -> io::Result<Carried> {
        let flush = self.marks.begin_flush();
        self.disk.flush()?;
        self.unflushed = None;
        Ok(self.marks.flushed(flush))
    }

    fn fail(&self, error: &anyhow::Error) {
        let reason = format!(
            "the image {} of disk {} cannot be written: {error:#}",
            self.image.path().display(),
            self.image.disk()
        );
        self.queue.fail(&reason);
        (self.report)(Report::Failed(reason));
    }

    fn carry_out(&mut self, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Outputs(outputs) => self.outputs(&outputs),
            Job::Retry => {
                self.retry();
                Ok(())
            }
            Job::Sums { first, sums } => {
                let (count, bits) = self.compare(first, &sums)?;
                let unstored = self.marks.end_frame();
                (self.report)(Report::Wanted { first, count, bits });
                self.store_now_and_then(unstored)
            }
            Job::Blocks { offset, bytes, data } => {
                let bytes = if data.is_empty() { bytes } else { data.len() as u64 };
                if offset
                    .checked_add(bytes)
                    .is_none_or(|end| end > self.disk.disk().bytes())
                {
                    bail!("the primary sent a block beyond the end of the disk");
                }
                // What has no storage at the primary needs none here.
                let block = match data.is_empty() {
                    true => Operation::Zero {
                        offset,
                        bytes,
                        unmap: true,
                    },
                    false => Operation::Write { offset, data },
                };
                // The primary has it, and what is half copied is copied again.
                self.disk.copy(&block)?;
                let unstored = self.marks.end_frame();
                self.store_now_and_then(unstored)
            }
            Job::Barrier(barrier) => self.barrier(barrier),
            Job::Recorded => self.image.note_recorded(),
            Job::Settled(request) => self.settle(request, MARK_AGE_MIN),
            Job::Overlay(bytes_max, answer) => {
                let overlay = Arc::new(Overlay::over(self.disk.disk(), bytes_max));
                self.overlay = Arc::downgrade(&overlay);
                answer(overlay);
                Ok(())
            }
            Job::Enlarge(bytes, answer) => self.enlarge(bytes, answer),
        }
    }

    /// An image that does not grow goes on as it is; one that cannot be flushed is not to be relied on any
    /// more.
    fn enlarge(&mut self, bytes: u64, answer: Answer) -> anyhow::Result<()> {
        if let Err(error) = self.disk.disk().enlarge(bytes) {
            answer(Err(format!("{:#}", anyhow::Error::from(error))));
            return Ok(());
        }
        let flushed = self.flush();
        answer(flushed.as_ref().map(|_| ()).map_err(io::Error::to_string));
        flushed?;
        Ok(())
    }

    /// Everything is marked before any of it is written.
    fn outputs(&mut self, outputs: &[(u64, Arc<Operation>)]) -> anyhow::Result<()> {
        let ranges: Vec<Range<u64>> = outputs
            .iter()
            .filter_map(|(_, output)| output.changes())
            .collect();
        if ranges.iter().any(|range| range.end > self.disk.disk().bytes()) {
            bail!("an output lies beyond the end of the disk");
        }
        self.image.mark_ranges(&ranges)?;
        for (id, operation) in outputs {
            let id = *id;
            let is_flush = matches!(**operation, Operation::Flush);
            let extents = operation
                .changes()
                .into_iter()
                .flat_map(|range| Map::touched(&range));
            let now_ms = self.now_ms();
            if !self.marks.begin(id, extents, now_ms) {
                // It was carried out before the image failed.
                continue;
            }
            if let (Some(overlay), Some(range)) = (self.overlay.upgrade(), operation.changes()) {
                overlay.keep(&range);
            }
            match is_flush {
                true => _ = self.flush()?,
                false => self.disk.change(operation)?,
            }
            self.marks.end(id);
            self.queue.advance();
            if let Some(reason) = self.queue.failure() {
                // It was let go while this one did not end.
                bail!(reason);
            }
            if is_flush {
                (self.report)(Report::Flushed(id));
            } else {
                self.unflushed.get_or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    /// Takes the marks of what is durable on both images, and was not written for `age`.
    fn settle(&mut self, request: u64, age: Duration) -> anyhow::Result<()> {
        let age_ms = age.as_millis() as u64;
        let settled = self.marks.settle(request, self.now_ms(), age_ms);
        self.image.clear(&settled)
    }

    /// Which chunks differ from those with these checksums.
    fn compare(&self, first: u64, sums: &[u8]) -> anyhow::Result<(u32, Vec<u8>)> {
        let count = sums.len() / CHUNK_SUM_BYTES;
        let mut bits = vec![0; count.div_ceil(8)];
        for (index, sum) in sums.chunks_exact(CHUNK_SUM_BYTES).enumerate() {
            let (found, _) = chunk_sum(self.disk.disk(), first.saturating_add(index as u64))?;
            if found != sum {
                bits[index / 8] |= 1 << (index % 8);
            }
        }
        Ok((count as u32, bits))
    }

    /// From time to time what was copied is made durable, so that it need not be copied again after a break.
    fn store_now_and_then(&mut self, unstored: u64) -> anyhow::Result<()> {
        if unstored >= STORED_FRAMES {
            let durable = self.flush()?;
            (self.report)(Report::Stored(durable.frames));
        }
        Ok(())
    }

    fn barrier(&mut self, barrier: Barrier) -> anyhow::Result<()> {
        self.flush()?;
        match barrier {
            Barrier::Flush => {}
            Barrier::Whole(term) => self.image.become_whole(term)?,
            Barrier::Stop => self.image.stop()?,
        }
        (self.report)(Report::Reached(barrier));
        Ok(())
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
