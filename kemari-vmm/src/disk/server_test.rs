use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use super::*;
use crate::disk::DiskConfig;

/// A disk whose flushes succeed, each when the test lets it.
struct Slow {
    begun: Mutex<Sender<()>>,
    may_end: Mutex<Receiver<()>>,
}

impl Store for Slow {
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let told = self.begun.lock().unwrap().send(());
        let may_end = self.may_end.lock().unwrap().recv();
        told.map_err(io::Error::other)
            .and(may_end.map_err(io::Error::other))
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
}

/// Passes the ends of jobs on.
fn ends_to(to: Sender<Outcome>) -> EndSink {
    Arc::new(move |ended| {
        for outcome in ended {
            // The test may be over.
            let _ = to.send(outcome);
        }
    })
}

/// The kernel tells a failed write-back to one flush of a file only:
/// the one under way must not be taken for a good one.
#[test]
fn a_flush_that_succeeds_while_another_fails_has_failed() {
    let ((begins, begun), (ends, may_end), (tells, told)) = (channel(), channel(), channel());
    let store = Arc::new(Slow {
        begun: Mutex::new(begins),
        may_end: Mutex::new(may_end),
    });
    let disk = Arc::new(Disk::with_store(store, OnError::Report).expect("it has a size"));
    let is_in_trouble = Arc::new(AtomicBool::new(false));
    let noted = is_in_trouble.clone();
    let trouble: TroubleSink = Arc::new(move |_| noted.store(true, Ordering::SeqCst));
    let server = Server::start(disk, None, ends_to(tells), trouble).expect("threads start");
    let flush = |id, meanwhile: &dyn Fn()| {
        server.submit(DiskJob {
            id,
            operation: Operation::Flush,
        });
        begun.recv().expect("it begins");
        meanwhile();
        ends.send(()).expect("it waits");
        told.recv().expect("it ends")
    };
    assert!(matches!(flush(0, &|| {}), (0, Ok(_))));
    let (id, result) = flush(1, &|| server.disk.store().note_failed());
    let why = result.expect_err("another has failed").to_string();
    assert!(id == 1 && why.contains("another flush has failed"), "{why}");
    // What that one was for is written again now: nothing is, here.
    assert!(matches!(flush(2, &|| {}), (2, Ok(_))));
    assert!(!is_in_trouble.load(Ordering::SeqCst), "the guest is told");
}

/// Who ended the batch began nothing any more, and what the ring had of it was waited for, for ever.
#[test]
fn what_a_batch_has_begun_ends_although_the_disk_is_closed() {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(4096).expect("a sparse file");
    let disk = Arc::new(Disk::open(&DiskConfig::new(image.path())).expect("it opens"));
    let (tells, told) = channel();
    let trouble: TroubleSink = Arc::new(|trouble| panic!("{}", trouble.reason));
    let server = Server::start(disk, None, ends_to(tells), trouble).expect("it starts");
    server.batch_begins();
    let data = vec![1; 512];
    let operation = Operation::Write { offset: 0, data };
    server.submit(DiskJob { id: 0, operation });
    let (closes, closed) = channel();
    let closing = server.clone();
    std::thread::spawn(move || closes.send(closing.close()));
    while !server.lock().is_closed {
        std::thread::yield_now();
    }
    server.batch_ends();
    let closed = closed.recv_timeout(std::time::Duration::from_secs(20));
    closed.expect("it ends").expect("all is written");
    assert!(matches!(told.recv(), Ok((0, Ok(_)))));
}
