//! What threads may ask of the kernel: seccomp(2).
//!
//! Each kind of thread has a list of the system calls that it makes, beside its code, each with its reason.
//! What is not on the list of the thread that asks ends the process, before the kernel has done anything: so
//! ends whoever got hold of a thread by a mistake in what it reads of a guest. The other host takes over
//! then, as after any death.
//!
//! The lists hold with any C library, whatever its version and however it is linked: an entry stands for all
//! calls that do the same ([`same`]), and a call that is newer than the lists is answered as an older kernel
//! answers it, so that its caller goes on with one that was there before.
//!
//! A thread that others are started from gives them its own list; theirs can only be shorter. So the process
//! as a whole has one as well, set before there is a second thread.

mod common;
mod filter;
mod report;
mod same;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::signals;

pub use common::{COMMON, DEVICES, FAULTS, OPEN_FILES, RINGS, STREAMS};
pub use filter::refuse;

/// A list of calls.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Whose it is, for people.
    pub of: &'static str,
    /// The calls, in parts that several lists have in common.
    pub parts: &'static [&'static [Call]],
}

/// A system call that may be made, with those that do the same.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    number: libc::c_long,
    when: When,
    /// What it is needed for.
    pub why: &'static str,
}

/// For which arguments a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// For all.
    Always,
    /// If these bits of an argument are these.
    Bits {
        /// Which argument, from 0 on.
        argument: u8,
        /// The bits.
        mask: u64,
        /// What they must be.
        are: u64,
    },
    /// If two arguments, from 0 on, are these ints.
    Both([(u8, u64); 2]),
}

/// All of an int.
const INT: u64 = u32::MAX as u64;

/// A call that may be made with any arguments, as all that do the same.
pub const fn call(number: libc::c_long, why: &'static str) -> Call {
    let when = When::Always;
    Call { number, when, why }
}

/// A call that may be made with some arguments, it alone. With several of one number, one of them must fit.
pub(crate) const fn call_if(
    number: libc::c_long,
    argument: u8,
    mask: u64,
    are: u64,
    why: &'static str,
) -> Call {
    let when = When::Bits { argument, mask, are };
    Call { number, when, why }
}

/// The ioctl of this number.
pub const fn ioctl(number: libc::c_ulong, why: &'static str) -> Call {
    call_if(libc::SYS_ioctl, 1, INT, number, why)
}

/// Sockets of this family.
pub const fn socket(family: libc::c_int, why: &'static str) -> Call {
    call_if(libc::SYS_socket, 0, INT, family as u64, why)
}

/// The option of this number, of sockets' options of this level.
const fn option(level: libc::c_int, option: libc::c_int, why: &'static str) -> Call {
    Call {
        number: libc::SYS_setsockopt,
        when: When::Both([(1, level as u64), (2, option as u64)]),
        why,
    }
}

/// What happens at a call that is not on the list.
#[derive(Debug)]
pub enum Breach {
    /// The kernel ends the process by SIGSYS, and says so in its audit log.
    Kill,
    /// For tests: number and thread are written into the file, and the process ends with [`BREACH_STATUS`].
    Report(File),
}

/// Exit status of a process of a test that made a call which is on no list: 128 and SIGSYS.
pub const BREACH_STATUS: i32 = 128 + libc::SIGSYS;

const OFF: u8 = 0;
const KILL: u8 = 1;
const REPORT: u8 = 2;

/// How breaches end, once the process has its list.
static BREACHES_END: AtomicU8 = AtomicU8::new(OFF);

/// Gives the process its list. To be called while it has one thread; it must have no_new_privs.
///
/// # Errors
/// If the kernel has no seccomp filters: then no thread gets a list.
pub fn process(calls: &Calls, breach: Breach) -> io::Result<()> {
    let end = match breach {
        Breach::Kill => KILL,
        Breach::Report(file) => {
            report::to(file)?;
            REPORT
        }
    };
    // Where the kernel keeps its clocks is looked up once (rustix), while that may be done in any way.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    filter::refuse(filter::REFUSED, libc::ENOSYS)?;
    filter::install(calls, end == REPORT)?;
    BREACHES_END.store(end, Ordering::Relaxed);
    Ok(())
}

thread_local! {
    static IS_CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread has been given a list of its own, or would have been if the process had one.
pub(crate) fn is_thread_confined() -> bool {
    IS_CONFINED.get()
}

/// Gives the calling thread its list, if the process has one. It takes no signals that tell the process to
/// end: what their handler does is on no list but the process's.
pub fn thread(calls: &Calls) {
    IS_CONFINED.set(true);
    signals::leave_to_others();
    let end = BREACHES_END.load(Ordering::Relaxed);
    if end == OFF {
        return;
    }
    if let Err(error) = filter::install(calls, end == REPORT) {
        tracing::warn!(
            "the thread `{}` keeps the rights of the whole process: {error}",
            calls.of
        );
    }
}

/// The lists of this crate's threads.
pub const LISTS: [Calls; 8] = [
    crate::vcpu::CALLS,
    crate::virtio::tap::CALLS,
    crate::virtio::device::CALLS,
    crate::virtio::rate::CALLS,
    crate::disk::THREADS_CALLS,
    crate::disk::RING_CALLS,
    crate::disk::WATCH_CALLS,
    crate::memory::COPY_CALLS,
];

impl When {
    /// An argument, bits of it and what they must be, for all that must hold.
    fn conditions(self) -> Vec<(u8, u64, u64)> {
        match self {
            Self::Always => Vec::new(),
            Self::Bits { argument, mask, are } => vec![(argument, mask, are)],
            Self::Both(both) => both.map(|(argument, is)| (argument, INT, is)).to_vec(),
        }
    }
}

impl Call {
    fn all(&self) -> impl Iterator<Item = (libc::c_long, When)> {
        let numbers = match self.when {
            When::Always => same::as_one(&self.number),
            When::Bits { .. } | When::Both(_) => std::slice::from_ref(&self.number),
        };
        numbers.iter().map(|number| (*number, self.when))
    }
}

impl Calls {
    /// How many different system calls it allows.
    pub fn count(&self) -> usize {
        let mut numbers: Vec<_> = self.all().map(|(number, _)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    }

    /// Whether all that it allows is allowed by the other as well. What is on neither is refused by both.
    pub fn is_within(&self, other: &Self) -> bool {
        self.all().all(|(number, when)| {
            other
                .all()
                .any(|known| known == (number, When::Always) || known == (number, when))
        })
    }

    /// Each number, and when it may be called.
    fn all(&self) -> impl Iterator<Item = (libc::c_long, When)> {
        self.parts.iter().copied().flatten().flat_map(Call::all)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is limited by its arguments is no whole line by itself: the others stand beside it.
    #[test]
    fn who_may_make_a_call_may_make_all_that_do_the_same() {
        for list in LISTS {
            let numbers: BTreeSet<_> = list.all().map(|(number, _)| number).collect();
            for line in same::SAME {
                let allowed = line.iter().filter(|number| numbers.contains(number)).count();
                assert!(
                    [0, line.len()].contains(&allowed),
                    "{} may make {allowed} of {line:?}",
                    list.of
                );
            }
        }
    }

    #[test]
    fn a_call_is_in_one_line_at_most_and_none_is_newer_than_the_lists() {
        let all: Vec<_> = same::SAME.iter().copied().flatten().collect();
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), different.len());
        let of_lists = LISTS.iter().flat_map(Calls::all).map(|(number, _)| number);
        assert!(of_lists.max() <= Some(filter::NEWEST));
    }
}
