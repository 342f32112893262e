//! Watching a disk: somebody who must know of changes before they are issued, and of flushes before the guest does.
//!
//! A [`DiskWatch`] stands between the requests of a disk and whatever carries them out, on both ends: a change is not
//! issued before the watch is prepared for it, and the end of a flush is not told before the watch is content.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES};
use crate::disk::{DiskJob, Operation};
use crate::threads;
use crate::virtio::{Completion, Completions};

/// Most changes for which a watch is prepared at a time.
const PREPARED_MAX: usize = 256;

/// Tells the device that a flush has ended.
pub type Tell = Box<dyn FnOnce() + Send>;

/// What a watch's thread asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "disk watch",
    parts: &[COMMON, DEVICES, OPEN_FILES],
};

/// Who must know of a disk's changes. Ranges are in bytes of the image; requests are named by their numbers, which rise
/// over the life of the device.
pub trait DiskWatch: Send + Sync {
    /// Whether a change of this range may be issued at once; if so, it is. Must not block.
    fn may_change(&self, range: &Range<u64>) -> bool;
    /// The image has so many bytes now, and the guest is about to know it. It may block.
    ///
    /// # Errors
    /// The guest is not told.
    fn grown(&self, bytes: u64) -> io::Result<()>;
    /// Makes it so that changes of these ranges may be issued; they are, then. Called on a thread of its own: it may
    /// block.
    ///
    /// # Errors
    /// The changes are not carried out, and the guest is told this error.
    fn prepare(&self, ranges: &[Range<u64>]) -> io::Result<()>;
    /// A change that was issued, or that [`DiskWatch::prepare`] has refused, has ended, well or not. Until then it may be
    /// on the image, in part or not at all.
    fn changed(&self, id: u64, range: &Range<u64>, ok: bool);
    /// Whether a flush shows something to the outside after all, and needs consent as output does.
    fn flush_is_output(&self) -> bool;
    /// A flush is about to be issued: it covers all changes that have ended. `ended`: the last request up to which all
    /// have.
    fn flush_begins(&self, id: u64, ended: Option<u64>);
    /// A flush has ended well. `tell` tells the guest so, now or later, and from any thread; it must not be called under
    /// a lock that another method of this trait takes.
    fn flushed(&self, id: u64, tell: Tell);
}

enum Kind {
    Change(Range<u64>),
    Flush,
}

#[derive(Default)]
struct Open {
    /// Outputs that are under way.
    kinds: HashMap<u64, Kind>,
    /// How many of them wait for the watch to be prepared: what comes later must not overtake them.
    waiting: usize,
}

impl Open {
    /// The last request before the flush `id` up to which all changes have ended.
    fn ended(&self, id: u64) -> Option<u64> {
        let changes = self
            .kinds
            .iter()
            .filter(|(_, kind)| matches!(kind, Kind::Change(_)));
        match changes.map(|(open, _)| *open).min() {
            Some(open) if open < id => open.checked_sub(1),
            _ => Some(id),
        }
    }
}

/// Hands a job on; false: there is nobody to take it.
type Forward = Box<dyn Fn(DiskJob) -> bool + Send + Sync>;

/// A watch at work, between a disk's device and whatever carries out its jobs.
pub struct Watched {
    watch: Arc<dyn DiskWatch>,
    device: Weak<dyn Completions>,
    forward: Forward,
    open: Mutex<Open>,
    unprepared: Sender<DiskJob>,
}

impl Watched {
    /// Begins to watch. `forward` hands jobs to whatever carries them out, in order; their completions are to come to
    /// this value, which passes them on to `device`.
    pub fn start(
        watch: Arc<dyn DiskWatch>,
        device: Weak<dyn Completions>,
        forward: Forward,
    ) -> io::Result<Arc<Self>> {
        let (unprepared, jobs) = channel();
        let watched = Arc::new(Self {
            watch,
            device,
            forward,
            open: Mutex::default(),
            unprepared,
        });
        let weak = Arc::downgrade(&watched);
        threads::start("disk watch", move || {
            confine::thread(&CALLS);
            prepare(&weak, &jobs);
        })?;
        Ok(watched)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job: it is handed on at once, or when the watch is prepared for it. False: there is nobody to take it.
    pub fn submit(&self, job: DiskJob) -> bool {
        let mut open = self.lock();
        let range = match &job.operation {
            Operation::Flush => None,
            operation => match operation.changes() {
                Some(range) => Some(range),
                None => return (self.forward)(job),
            },
        };
        let (id, is_flush) = (job.id, range.is_none());
        let may_go = open.waiting == 0 && range.as_ref().is_none_or(|range| self.watch.may_change(range));
        open.kinds.insert(id, range.map_or(Kind::Flush, Kind::Change));
        if !may_go {
            open.waiting += 1;
            return self.unprepared.send(job).is_ok();
        }
        if is_flush {
            self.watch.flush_begins(id, open.ended(id));
        }
        (self.forward)(job)
    }

    /// Hands on jobs that waited; those that change something are told the error if there is one.
    fn go_on(&self, jobs: Vec<DiskJob>, result: &io::Result<()>) {
        let mut refused = Vec::new();
        let mut open = self.lock();
        open.waiting -= jobs.len();
        for job in jobs {
            match (result, &job.operation) {
                (_, Operation::Flush) => {
                    self.watch.flush_begins(job.id, open.ended(job.id));
                    (self.forward)(job);
                }
                (Ok(()), _) => {
                    (self.forward)(job);
                }
                (Err(error), _) => refused.push((job.id, io::Error::new(error.kind(), error.to_string()))),
            }
        }
        drop(open);
        for (id, error) in refused {
            self.complete(id, Err(error));
        }
    }
}

fn prepare(watched: &Weak<Watched>, jobs: &Receiver<DiskJob>) {
    while let Ok(first) = jobs.recv() {
        let batch: Vec<DiskJob> = std::iter::once(first)
            .chain(jobs.try_iter().take(PREPARED_MAX - 1))
            .collect();
        let ranges: Vec<Range<u64>> = batch.iter().filter_map(|job| job.operation.changes()).collect();
        let Some(watched) = watched.upgrade() else {
            return;
        };
        let result = watched.watch.prepare(&ranges);
        watched.go_on(batch, &result);
    }
}

impl Completions for Watched {
    fn complete(&self, id: u64, completion: Completion) {
        let kind = self.lock().kinds.remove(&id);
        match kind {
            Some(Kind::Change(range)) => self.watch.changed(id, &range, completion.is_ok()),
            Some(Kind::Flush) if completion.is_ok() => {
                let device = self.device.clone();
                let tell = Box::new(move || {
                    if let Some(device) = device.upgrade() {
                        device.complete(id, Ok(Vec::new()));
                    }
                });
                return self.watch.flushed(id, tell);
            }
            Some(Kind::Flush) | None => {}
        }
        if let Some(device) = self.device.upgrade() {
            device.complete(id, completion);
        }
    }

    fn input_ready(&self) {
        if let Some(device) = self.device.upgrade() {
            device.input_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[derive(Default)]
    struct Recorder {
        prepared: AtomicBool,
        fails: AtomicBool,
        /// Whether it may go on with preparing.
        gate: Mutex<()>,
        seen: Mutex<Vec<String>>,
        tells: Mutex<Vec<Tell>>,
    }

    impl Recorder {
        fn note(&self, text: String) {
            self.seen.lock().unwrap().push(text);
        }
    }

    impl DiskWatch for Recorder {
        fn may_change(&self, _: &Range<u64>) -> bool {
            self.prepared.load(Ordering::SeqCst)
        }
        fn flush_is_output(&self) -> bool {
            false
        }
        fn grown(&self, bytes: u64) -> io::Result<()> {
            self.note(format!("grown {bytes}"));
            Ok(())
        }
        fn prepare(&self, ranges: &[Range<u64>]) -> io::Result<()> {
            let _gate = self.gate.lock().unwrap();
            self.note(format!("prepare {}", ranges.len()));
            match self.fails.load(Ordering::SeqCst) {
                true => Err(io::Error::other("no record")),
                false => {
                    self.prepared.store(true, Ordering::SeqCst);
                    Ok(())
                }
            }
        }
        fn changed(&self, id: u64, _: &Range<u64>, ok: bool) {
            self.note(format!("changed {id} {ok}"));
        }
        fn flush_begins(&self, id: u64, ended: Option<u64>) {
            self.note(format!("flush {id} covers {ended:?}"));
        }
        fn flushed(&self, _: u64, tell: Tell) {
            self.tells.lock().unwrap().push(tell);
        }
    }

    #[derive(Default)]
    struct Told(Mutex<Vec<(u64, bool)>>);

    impl Completions for Told {
        fn complete(&self, id: u64, completion: Completion) {
            self.0.lock().unwrap().push((id, completion.is_ok()));
        }
        fn input_ready(&self) {}
    }

    struct Bench {
        watch: Arc<Recorder>,
        told: Arc<Told>,
        watched: Arc<Watched>,
        issued: Receiver<DiskJob>,
    }

    impl Bench {
        fn new() -> Self {
            let (watch, told) = (Arc::<Recorder>::default(), Arc::<Told>::default());
            let (sender, issued) = channel();
            let device = Arc::downgrade(&told);
            let forward = Box::new(move |job| sender.send(job).is_ok());
            let watched = Watched::start(watch.clone(), device, forward).unwrap();
            Self {
                watch,
                told,
                watched,
                issued,
            }
        }

        fn submit(&self, id: u64, operation: Operation) {
            assert!(self.watched.submit(DiskJob { id, operation }));
        }

        fn next_issued(&self) -> u64 {
            self.issued
                .recv_timeout(Duration::from_secs(10))
                .expect("a job")
                .id
        }
    }

    fn write() -> Operation {
        Operation::Write {
            offset: 4096,
            data: vec![1; 512],
        }
    }

    #[test]
    fn nothing_overtakes_a_change_that_the_watch_is_not_prepared_for() {
        let bench = Bench::new();
        let gate = bench.watch.gate.lock().unwrap();
        bench.submit(0, write());
        bench.submit(1, Operation::Flush);
        bench.submit(
            2,
            Operation::Read {
                offset: 0,
                bytes: 512,
            },
        );
        assert_eq!(bench.next_issued(), 2, "a read waits for nothing");
        assert!(
            bench.issued.try_recv().is_err(),
            "a write was issued before the watch was prepared"
        );
        drop(gate);
        assert_eq!((bench.next_issued(), bench.next_issued()), (0, 1));
        bench.submit(3, write());
        assert_eq!(bench.next_issued(), 3);
    }

    #[test]
    fn a_change_that_cannot_be_prepared_for_is_not_carried_out() {
        let bench = Bench::new();
        bench.watch.fails.store(true, Ordering::SeqCst);
        bench.submit(0, write());
        bench.submit(1, Operation::Flush);
        assert_eq!(bench.next_issued(), 1);
        while bench.told.0.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*bench.told.0.lock().unwrap(), [(0, false)]);
    }

    #[test]
    fn the_end_of_a_flush_is_told_when_the_watch_is_content() {
        let bench = Bench::new();
        bench.submit(0, Operation::Flush);
        bench.watched.complete(0, Ok(Vec::new()));
        assert!(bench.told.0.lock().unwrap().is_empty());
        let tell = bench
            .watch
            .tells
            .lock()
            .unwrap()
            .pop()
            .expect("the watch knows of it");
        tell();
        assert_eq!(*bench.told.0.lock().unwrap(), [(0, true)]);
        bench.submit(1, Operation::Flush);
        bench.watched.complete(1, Err(io::Error::other("broken")));
        assert_eq!(*bench.told.0.lock().unwrap(), [(0, true), (1, false)]);
    }

    #[test]
    fn a_flush_says_up_to_where_everything_has_ended() {
        let bench = Bench::new();
        bench.watch.prepared.store(true, Ordering::SeqCst);
        bench.submit(5, Operation::Flush);
        bench.submit(6, write());
        bench.submit(7, write());
        bench.watched.complete(6, Ok(Vec::new()));
        bench.submit(8, Operation::Flush);
        bench.watched.complete(7, Ok(Vec::new()));
        bench.submit(9, Operation::Flush);
        let seen = bench.watch.seen.lock().unwrap();
        let flushes: Vec<&String> = seen.iter().filter(|text| text.starts_with("flush")).collect();
        assert_eq!(
            flushes,
            [
                "flush 5 covers Some(5)",
                "flush 8 covers Some(6)",
                "flush 9 covers Some(9)"
            ]
        );
    }
}
