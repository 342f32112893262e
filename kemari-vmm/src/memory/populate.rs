//! Memory that is there: a secondary's must not be missing in a commit, or at a takeover.
//!
//! It is bound by how fast the kernel makes zeros, which it does once for each page. The lock comes first,
//! while there is nothing behind it (mlock2(2), MLOCK_ONFAULT: each page is locked as it comes). If it came
//! last it would go over all pages once more, and in that time, a second for 8 GiB in small pages, no thread
//! of the process could map memory or begin: heartbeats would stall.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;

use vm_memory::GuestMemoryBackend;

use super::{Memory, MemoryError};

/// Memory that is populated at a time: one huge page.
const PIECE_BYTES: usize = 2 << 20;

/// Most threads that populate: a few have all of a host's memory bandwidth.
const THREADS_MAX: usize = 8;

/// Gives every page memory and pins it, so that a secondary cannot run out of memory in the middle of a
/// takeover.
pub fn populate_and_lock(memory: &Memory) -> Result<(), MemoryError> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    // One is left to the heartbeats.
    populate_with(memory, (processors - 1).clamp(1, THREADS_MAX))
}

fn populate_with(memory: &Memory, threads: usize) -> Result<(), MemoryError> {
    for region in memory.iter() {
        // SAFETY: the range is a live mapping of ours; locking changes no content.
        checked(unsafe { libc::mlock2(region.as_ptr().cast(), region.size(), libc::MLOCK_ONFAULT) })?;
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let work = || populate_pieces(memory, &next);
        // A host that has no more threads for it gets it done by fewer: by this one, if need be.
        let workers: Vec<_> = (1..threads)
            .map_while(|_| {
                thread::Builder::new()
                    .name("populate".into())
                    .spawn_scoped(scope, work)
                    .ok()
            })
            .collect();
        let own = work();
        let mut ends = workers.into_iter().map(|worker| worker.join());
        own.and(ends.try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    })
}

/// Populates pieces, each that no other thread has taken, until there are no more.
fn populate_pieces(memory: &Memory, next: &AtomicUsize) -> Result<(), MemoryError> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some((start, bytes)) = piece(memory, number) else {
            return Ok(());
        };
        if let Err(error) = populate(start, bytes) {
            // The others need not go on.
            next.store(usize::MAX / 2, Ordering::Relaxed);
            return Err(error);
        }
    }
}

/// Where piece `number` of the memory lies, and its size.
fn piece(memory: &Memory, mut number: usize) -> Option<(*mut u8, usize)> {
    for region in memory.iter() {
        let pieces = region.size().div_ceil(PIECE_BYTES);
        if number < pieces {
            let start = number * PIECE_BYTES;
            let place = region.as_ptr().wrapping_add(start);
            return Some((place, PIECE_BYTES.min(region.size() - start)));
        }
        number -= pieces;
    }
    None
}

/// Populates whole pages of a locked mapping of ours.
fn populate(start: *mut u8, bytes: usize) -> Result<(), MemoryError> {
    // A page fault keeps nobody else from mapping memory (Linux 6.4 and later), populating does. So a huge
    // page comes by a fault, and populating finds it there; or finds what is missing, if there was none. The
    // byte is written only if it is zero, with zero; if it is not, there is memory already.
    //
    // SAFETY: the byte lies in a live mapping of ours, and others use it as they do guest memory:
    // as bytes of their own.
    let byte = unsafe { AtomicU8::from_ptr(start) };
    let _ = byte.compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
    // SAFETY: the range lies in a live mapping of ours; populating it changes no content.
    if unsafe { libc::madvise(start.cast(), bytes, libc::MADV_POPULATE_WRITE) } == 0 {
        return Ok(());
    }
    // Where the kernel does not know that advice (before Linux 5.14), or has no memory, a lock that does not
    // wait for faults populates, or says why not.
    //
    // SAFETY: as above; locking changes no content.
    checked(unsafe { libc::mlock(start.cast(), bytes) })
}

fn checked(result: i32) -> Result<(), MemoryError> {
    match result {
        0 => Ok(()),
        _ => Err(MemoryError::Lock(io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, PAGE_BYTES, Touched, create};

    /// What the kernel says of the mapping that begins here: a number of KiB from /proc/self/smaps.
    fn kib(region: *const u8, name: &str) -> usize {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("the kernel tells");
        let start = format!("{:x}-", region as usize);
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines
            .find(|line| line.starts_with(name))
            .expect("it is told of each mapping");
        let number = line[name.len()..].trim().trim_end_matches("kB").trim();
        number.parse().expect("a number of KiB")
    }

    #[test]
    fn all_memory_is_there_and_locked_and_holds_what_it_held() {
        for (threads, advice) in [(1, libc::MADV_HUGEPAGE), (3, libc::MADV_NOHUGEPAGE)] {
            // Not a whole number of pieces.
            let memory = create(65 << 20).expect("memory");
            let region = memory.iter().next().expect("one region");
            // SAFETY: the range is a live mapping of ours; the advice changes no content.
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
            memory::write_in_page(&memory, 512, 0, b"held").expect("a page of the guest");
            populate_with(&memory, threads).expect("there is memory, and it may be locked");
            assert_eq!(kib(region.as_ptr(), "Rss:"), 65 << 10);
            assert_eq!(kib(region.as_ptr(), "Locked:"), 65 << 10);
            let mut found = Vec::new();
            let mut walk = Touched::new();
            while walk.next_piece(&memory, &mut found) > 0 {}
            assert!(
                found.into_iter().eq(memory::all_pages(&memory)),
                "{threads} threads"
            );
            let mut page = [0; PAGE_BYTES];
            memory::read_page(&memory, 512, &mut page).expect("a page of the guest");
            assert_eq!(page[..5], *b"held\0");
        }
    }

    #[test]
    fn pieces_are_all_of_the_memory_on_both_sides_of_the_hole() {
        let memory = create((3 << 30) + (1 << 20)).expect("memory that nobody touches costs nothing");
        let pieces: Vec<_> = (0..).map_while(|number| piece(&memory, number)).collect();
        assert_eq!(
            pieces.iter().map(|(_, bytes)| bytes).sum::<usize>(),
            (3 << 30) + (1 << 20)
        );
        let high = memory.iter().nth(1).expect("two regions");
        assert_eq!(pieces.last(), Some(&(high.as_ptr(), 1 << 20)));
        assert_eq!(piece(&memory, usize::MAX / 2), None);
    }
}
