//! Threads. A host may have none left, by a limit of its own or of this process's control group, just when a
//! VM has to go on there. So those that serve its devices can be made beforehand: they wait in a reserve
//! until they are started.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::confine;

type Work = Box<dyn FnOnce() + Send>;

/// The reserve of this process.
static RESERVE: Reserve = Reserve::new();

/// Makes a thread.
///
/// # Errors
/// If the system has none left.
pub fn make(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        let sentence = format!(
            "no thread `{name}` can be made: {error}; raise the limit of tasks (`ulimit -u`, TasksMax, \
             pids.max)"
        );
        io::Error::new(error.kind(), sentence)
    })
}

/// Has a thread do this: one of the reserve, if there is one. A thread that has a list of system calls of its
/// own makes new ones, which can do no more than it can.
///
/// # Errors
/// If the reserve is empty, and the system has none left.
pub(crate) fn start(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    match confine::is_thread_confined() {
        true => make(name, work).map(drop),
        false => RESERVE.start(name, Box::new(work)),
    }
}

/// Has so many threads in the reserve: makes those that are missing, and ends those that are too many.
///
/// # Errors
/// If the system has none left. What could be made stays.
pub fn reserve(count: usize) -> io::Result<()> {
    RESERVE.hold(count, |work| make("reserve", work).map(drop))
}

/// Threads that wait for their work. Each ends when that is done, or its sender is dropped.
struct Reserve(Mutex<Vec<Sender<(&'static str, Work)>>>);

impl Reserve {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn hold(&self, count: usize, make: impl Fn(Work) -> io::Result<()>) -> io::Result<()> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.truncate(count);
        while idle.len() < count {
            let (sender, work) = channel::<(&str, Work)>();
            make(Box::new(move || {
                if let Ok((name, work)) = work.recv() {
                    set_name(name);
                    work();
                }
            }))?;
            idle.push(sender);
        }
        Ok(())
    }

    fn start(&self, name: &'static str, work: Work) -> io::Result<()> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let left = match idle {
            Some(idle) => idle.send((name, work)).err().map(|unsent| unsent.0),
            None => Some((name, work)),
        };
        left.map_or(Ok(()), |(name, work)| make(name, work).map(drop))
    }
}

/// Names the calling thread: for eyes only. A name has 15 bytes at most.
pub fn set_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    use super::*;

    /// Has a thread of the reserve, or a new one, say what it is called.
    fn started(reserve: &Reserve, name: &'static str) -> Receiver<Option<String>> {
        let (tells, told) = channel();
        let work = move || {
            let name = rustix::thread::name().ok();
            let name = name.map(|name| name.to_string_lossy().into_owned());
            tells.send(name).expect("it is waited for");
        };
        reserve.start(name, Box::new(work)).expect("a thread");
        told
    }

    fn waiting(reserve: &Reserve) -> usize {
        reserve.0.lock().expect("nobody has panicked").len()
    }

    fn made(work: Work) -> io::Result<()> {
        make("reserve", work).map(drop)
    }

    #[test]
    fn who_is_started_was_made_beforehand_and_has_the_name_of_its_work() {
        let reserve = Reserve::new();
        reserve.hold(3, made).expect("threads");
        reserve.hold(2, made).expect("threads");
        assert_eq!(waiting(&reserve), 2);
        for left in [1, 0, 0] {
            let told = started(&reserve, "disk ring");
            assert_eq!(waiting(&reserve), left);
            let name = told.recv_timeout(Duration::from_secs(10)).expect("it works");
            assert_eq!(name.as_deref(), Some("disk ring"));
        }
    }

    #[test]
    fn what_could_be_made_stays_and_the_rest_is_made_later() {
        let left = Cell::new(2);
        let reserve = Reserve::new();
        let limited = |work| match left.replace(left.get() - 1) {
            0 => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            _ => made(work),
        };
        assert!(reserve.hold(3, limited).is_err());
        assert_eq!(waiting(&reserve), 2);
        reserve.hold(3, made).expect("threads");
        assert_eq!(waiting(&reserve), 3);
    }
}
