//! Work that goes on for long: it is done in slices, and everything else is served between them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::pattern::PatternArea;
use crate::{abi, clock, cpu, fpu};

/// How long a slice takes at most, in microseconds (one page or kick more, to be exact).
const SLICE_US_MAX: u64 = 2_000;
/// Durations of kicks that are kept for the statistics; later ones are counted only.
const SAMPLES_MAX: usize = 65_536;

/// A piece of work.
pub enum Job {
    /// Writes pages of the pattern area.
    Dirty(DirtyJob),
    /// Writes pages and kicks, again and again.
    Kick(KickJob),
}

/// Pages, one by one over some time.
pub struct DirtyJob {
    pages: usize,
    written: usize,
    begun_us: u64,
    duration_us: u64,
}

impl DirtyJob {
    /// So many pages over so long.
    pub fn over(pages: usize, duration_us: u64) -> DirtyJob {
        DirtyJob {
            pages,
            written: 0,
            begun_us: clock::now_us(),
            duration_us,
        }
    }

    fn elapsed_us(&self) -> u64 {
        clock::now_us() - self.begun_us
    }

    fn is_done(&self) -> bool {
        self.written == self.pages && self.elapsed_us() >= self.duration_us
    }

    /// Writes a page if its time has come.
    fn write(&mut self, area: &mut PatternArea) {
        let is_due = self.written as u64 * self.duration_us <= self.elapsed_us() * self.pages as u64;
        if self.written < self.pages && is_due {
            self.written += 1;
            area.dirty_page();
        }
    }
}

/// Kicks, each after so many pages were written, until a number or a time is reached.
pub struct KickJob {
    pages: usize,
    kicks_left: usize,
    until_us: u64,
    begun_us: u64,
    kicks: usize,
    reports: bool,
    /// Nanoseconds that each kick took: with a synchronous sync, the guest's whole wait for it.
    samples_ns: Vec<u32>,
}

impl KickJob {
    /// So many kicks.
    pub fn counted(kicks: usize, pages: usize) -> KickJob {
        KickJob {
            kicks_left: kicks,
            ..KickJob::timed(pages, u64::MAX)
        }
    }

    /// For so long, with a report of how long the kicks took.
    pub fn timed(pages: usize, duration_us: u64) -> KickJob {
        let now_us = clock::now_us();
        KickJob {
            pages,
            kicks_left: usize::MAX,
            until_us: now_us.saturating_add(duration_us),
            begun_us: now_us,
            kicks: 0,
            reports: duration_us != u64::MAX,
            samples_ns: Vec::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.kicks_left == 0 || clock::now_us() >= self.until_us
    }

    fn kick(&mut self, area: &mut PatternArea) {
        (0..self.pages).for_each(|_| area.dirty_page());
        let begin = cpu::rdtsc();
        fpu::guarded_outb(abi::KICK_PORT, 1);
        let took_ns = clock::ticks_to_ns(cpu::rdtsc().saturating_sub(begin));
        if self.reports && self.samples_ns.len() < SAMPLES_MAX {
            self.samples_ns.push(u32::try_from(took_ns).unwrap_or(u32::MAX));
        }
        self.kicks += 1;
        self.kicks_left -= 1;
    }

    fn report(&mut self) -> String {
        self.samples_ns.sort_unstable();
        let samples = &self.samples_ns;
        let at = |permille: usize| {
            let ns = samples
                .get((samples.len().saturating_sub(1)) * permille / 1000)
                .copied()
                .unwrap_or(0);
            format!("{}.{}", ns / 1000, ns % 1000 / 100)
        };
        format!(
            "kicks:{}\npages:{}\nelapsed_us:{}\nkick_us_min:{}\nkick_us_median:{}\nkick_us_p90:{}\n\
             kick_us_p99:{}\nkick_us_max:{}\n",
            self.kicks,
            self.pages,
            clock::now_us() - self.begun_us,
            at(0),
            at(500),
            at(900),
            at(990),
            at(1000),
        )
    }
}

/// What a job has to say when it has ended.
pub enum Ending {
    /// That it has ended.
    Done,
    /// Lines of `key:value`.
    Report(String),
}

impl Job {
    /// Pages that it writes at a time: not more than the area has.
    pub fn pages(&self) -> usize {
        match self {
            Job::Dirty(dirty) => dirty.pages,
            Job::Kick(kicks) => kicks.pages,
        }
    }

    /// Works for a slice. Returns the ending when there is nothing left to do.
    pub fn slice(&mut self, area: &mut PatternArea) -> Option<Ending> {
        let until_us = clock::now_us() + SLICE_US_MAX;
        loop {
            match self {
                Job::Dirty(dirty) if dirty.is_done() => return Some(Ending::Done),
                Job::Dirty(dirty) => dirty.write(area),
                Job::Kick(job) if job.is_done() => {
                    return Some(if job.reports {
                        Ending::Report(job.report())
                    } else {
                        Ending::Done
                    });
                }
                Job::Kick(job) => job.kick(area),
            }
            if clock::now_us() >= until_us {
                return None;
            }
        }
    }
}
