//! Watching a disk: somebody who must know of changes before they are issued,
//! and of flushes before the guest does.
//!
//! A [`DiskWatch`] stands between those who ask something of a disk and its [`super::Server`], on both ends:
//! a change is not issued before the watch is prepared for it, and the end of a flush is not told before the
//! watch is content.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::operation::{DiskJob, Operation};
use super::server::{EndSink, Outcome};
use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES};
use crate::threads;

/// Most changes for which a watch is prepared at a time.
const PREPARED_MAX: usize = 256;

/// Tells whoever asked for it that a flush has ended.
pub type Tell = Box<dyn FnOnce() + Send>;

/// What a watch's thread asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "disk watch",
    parts: &[COMMON, DEVICES, OPEN_FILES],
};

/// Who must know of a disk's changes. Ranges are in bytes of the image; requests are named by their numbers,
/// which rise over the life of the device.
pub trait DiskWatch: Send + Sync {
    /// Whether a change of this range may be issued at once; if so, it is. Must not block.
    fn may_change(&self, range: &Range<u64>) -> bool;
    /// The image has so many bytes now, and the guest is about to know it. It may block.
    ///
    /// # Errors
    /// The guest is not told.
    fn grown(&self, bytes: u64) -> io::Result<()>;
    /// Makes it so that changes of these ranges may be issued; they are, then. Called on a thread of its own:
    /// it may block.
    ///
    /// # Errors
    /// The changes are not carried out, and the guest is told this error.
    fn prepare(&self, ranges: &[Range<u64>]) -> io::Result<()>;
    /// A change that was issued, or that [`DiskWatch::prepare`] has refused, has ended, well or not. Until
    /// then it may be on the image, in part or not at all.
    fn changed(&self, id: u64, range: &Range<u64>, ok: bool);
    /// Whether a flush shows something to the outside after all, and needs consent as output does.
    fn flush_is_output(&self) -> bool;
    /// A flush is about to be issued: it covers all changes that have ended. `ended`: the last request up to
    /// which all have.
    fn flush_begins(&self, id: u64, ended: Option<u64>);
    /// A flush has ended well. `tell` tells the guest so, now or later, and from any thread; it must not be
    /// called under a lock that another method of this trait takes.
    fn flushed(&self, id: u64, tell: Tell);
}

enum Asked {
    Change(Range<u64>),
    Flush,
}

#[derive(Default)]
struct Open {
    /// Outputs that are under way.
    asked: HashMap<u64, Asked>,
    /// How many of them wait for the watch to be prepared: what comes later must not overtake them.
    waiting: usize,
}

impl Open {
    /// The last request before the flush `id` up to which all changes have ended.
    fn ended(&self, id: u64) -> Option<u64> {
        let changes = self
            .asked
            .iter()
            .filter(|(_, asked)| matches!(asked, Asked::Change(_)));
        match changes.map(|(open, _)| *open).min() {
            Some(open) if open < id => open.checked_sub(1),
            _ => Some(id),
        }
    }
}

/// A watch at work, between those who ask something of a disk and its [`super::Server`].
pub(crate) struct Watched {
    watch: Arc<dyn DiskWatch>,
    open: Mutex<Open>,
    unprepared: Sender<DiskJob>,
}

impl Watched {
    /// Begins to watch. The jobs that come out of the receiver wait for [`Watched::prepare`].
    pub(crate) fn new(watch: Arc<dyn DiskWatch>) -> (Self, Receiver<DiskJob>) {
        let (unprepared, jobs) = channel();
        let watched = Self {
            watch,
            open: Mutex::default(),
            unprepared,
        };
        (watched, jobs)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job, and hands it on at once if the watch is prepared for it.
    pub(crate) fn submit(&self, job: DiskJob, hand_on: impl Fn(DiskJob)) {
        let mut open = self.lock();
        let range = match &job.operation {
            Operation::Flush => None,
            operation => match operation.changes() {
                Some(range) => Some(range),
                None => return hand_on(job),
            },
        };
        let (id, is_flush) = (job.id, range.is_none());
        let may_go = open.waiting == 0 && range.as_ref().is_none_or(|range| self.watch.may_change(range));
        open.asked.insert(id, range.map_or(Asked::Flush, Asked::Change));
        if !may_go {
            open.waiting += 1;
            let sent = self.unprepared.send(job);
            return sent.expect("somebody prepares the watch for as long as the disk is served");
        }
        if is_flush {
            self.watch.flush_begins(id, open.ended(id));
        }
        hand_on(job);
    }

    /// Prepares the watch for jobs that waited, and hands them on. If it cannot be prepared, those that
    /// change something are returned with the error.
    pub(crate) fn prepare(&self, jobs: Vec<DiskJob>, hand_on: impl Fn(DiskJob)) -> Vec<Outcome> {
        let ranges: Vec<Range<u64>> = jobs.iter().filter_map(|job| job.operation.changes()).collect();
        let result = self.watch.prepare(&ranges);
        let mut refused = Vec::new();
        let mut open = self.lock();
        open.waiting -= jobs.len();
        for job in jobs {
            match (&result, &job.operation) {
                (_, Operation::Flush) => {
                    self.watch.flush_begins(job.id, open.ended(job.id));
                    hand_on(job);
                }
                (Ok(()), _) => hand_on(job),
                (Err(error), _) => {
                    refused.push((job.id, Err(io::Error::new(error.kind(), error.to_string()))));
                }
            }
        }
        refused
    }

    /// A job has ended. Returns what is to be told now; the end of a flush the watch tells itself,
    /// when it is content.
    pub(crate) fn ended(&self, (id, result): Outcome, ends: &EndSink) -> Option<Outcome> {
        let asked = self.lock().asked.remove(&id);
        match asked {
            Some(Asked::Change(range)) => self.watch.changed(id, &range, result.is_ok()),
            Some(Asked::Flush) if result.is_ok() => {
                let ends = ends.clone();
                self.watch
                    .flushed(id, Box::new(move || ends(vec![(id, Ok(Vec::new()))])));
                return None;
            }
            Some(Asked::Flush) | None => {}
        }
        Some((id, result))
    }
}

/// The next jobs that wait; none any more if the disk is not served any more.
fn next(jobs: &Receiver<DiskJob>) -> Option<Vec<DiskJob>> {
    let first = jobs.recv().ok()?;
    Some(
        std::iter::once(first)
            .chain(jobs.try_iter().take(PREPARED_MAX - 1))
            .collect(),
    )
}

/// Starts the thread that has `prepare` prepare the watch for jobs that wait, until it returns false.
pub(crate) fn start_preparing(
    jobs: Receiver<DiskJob>,
    prepare: impl Fn(Vec<DiskJob>) -> bool + Send + 'static,
) -> io::Result<()> {
    threads::start("disk watch", move || {
        confine::thread(&CALLS);
        while let Some(waiting) = next(&jobs)
            && prepare(waiting)
        {}
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Recorder {
        prepared: AtomicBool,
        fails: AtomicBool,
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

    struct Bench {
        watch: Arc<Recorder>,
        told: Arc<Mutex<Vec<(u64, bool)>>>,
        ends: EndSink,
        watched: Watched,
        unprepared: Receiver<DiskJob>,
        issued: Mutex<Vec<u64>>,
    }

    impl Bench {
        fn new() -> Self {
            let watch = Arc::<Recorder>::default();
            let told = Arc::<Mutex<Vec<(u64, bool)>>>::default();
            let tell = told.clone();
            let ends: EndSink = Arc::new(move |ended: Vec<Outcome>| {
                let ended = ended.into_iter().map(|(id, result)| (id, result.is_ok()));
                tell.lock().unwrap().extend(ended);
            });
            let (watched, unprepared) = Watched::new(watch.clone());
            Self {
                watch,
                told,
                ends,
                watched,
                unprepared,
                issued: Mutex::default(),
            }
        }

        fn issue(&self, job: DiskJob) {
            self.issued.lock().unwrap().push(job.id);
        }

        fn submit(&self, id: u64, operation: Operation) {
            self.watched
                .submit(DiskJob { id, operation }, |job| self.issue(job));
        }

        fn prepare(&self) {
            let jobs = next(&self.unprepared).expect("somebody waits");
            for refused in self.watched.prepare(jobs, |job| self.issue(job)) {
                self.end(refused);
            }
        }

        fn end(&self, outcome: Outcome) {
            if let Some(outcome) = self.watched.ended(outcome, &self.ends) {
                (self.ends)(vec![outcome]);
            }
        }

        fn issued(&self) -> Vec<u64> {
            std::mem::take(&mut self.issued.lock().unwrap())
        }

        fn told(&self) -> Vec<(u64, bool)> {
            std::mem::take(&mut self.told.lock().unwrap())
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
        bench.submit(0, write());
        bench.submit(1, Operation::Flush);
        bench.submit(
            2,
            Operation::Read {
                offset: 0,
                bytes: 512,
            },
        );
        assert_eq!(
            bench.issued(),
            [2],
            "a read waits for nothing, the others for the watch"
        );
        bench.prepare();
        assert_eq!(bench.issued(), [0, 1]);
        bench.submit(3, write());
        assert_eq!(bench.issued(), [3]);
    }

    #[test]
    fn a_change_that_cannot_be_prepared_for_is_not_carried_out() {
        let bench = Bench::new();
        bench.watch.fails.store(true, Ordering::SeqCst);
        bench.submit(0, write());
        bench.submit(1, Operation::Flush);
        bench.prepare();
        assert_eq!(bench.issued(), [1]);
        assert_eq!(bench.told(), [(0, false)]);
        let seen = bench.watch.seen.lock().unwrap();
        assert!(seen.contains(&"changed 0 false".to_owned()), "{seen:?}");
    }

    #[test]
    fn the_end_of_a_flush_is_told_when_the_watch_is_content() {
        let bench = Bench::new();
        bench.submit(0, Operation::Flush);
        bench.end((0, Ok(Vec::new())));
        assert!(bench.told().is_empty());
        let tell = bench.watch.tells.lock().unwrap().pop();
        tell.expect("the watch knows of it")();
        assert_eq!(bench.told(), [(0, true)]);
        bench.submit(1, Operation::Flush);
        bench.end((1, Err(io::Error::other("broken"))));
        assert_eq!(bench.told(), [(1, false)]);
    }

    #[test]
    fn a_flush_says_up_to_where_everything_has_ended() {
        let bench = Bench::new();
        bench.watch.prepared.store(true, Ordering::SeqCst);
        bench.submit(5, Operation::Flush);
        bench.submit(6, write());
        bench.submit(7, write());
        bench.end((6, Ok(Vec::new())));
        bench.submit(8, Operation::Flush);
        bench.end((7, Ok(Vec::new())));
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
