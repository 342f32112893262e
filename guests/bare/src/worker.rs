//! What the further vCPUs do: work beside the one that serves, in bursts, and look at each other's steps.
//! What they check can only hold if all vCPUs and the memory are of one and the same moment, also after a
//! takeover:
//!
//! * a *ledger*: every vCPU enters rounds into it, under a lock. The total is the sum of what each has
//!   entered, and each knows by its own registers and stack how much that is;
//! * *pages* of each worker, written anew again and again, which must hold what it has written last.
//!
//! A worker kicks after each burst: output comes from every vCPU. It allocates nothing and uses no clock;
//! both belong to the vCPU that serves.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::pattern::mix;
use crate::{abi, apic, cpu, traps};

/// Time between two bursts, in microseconds.
const PERIOD_US: u64 = 4_000;
/// Rounds of a burst.
const BURST_ROUNDS: usize = 64;
/// Pages of a worker; one is written in each round.
const PAGES: usize = 16;
const WORDS: usize = 512;

/// One number on a page of its own: it is dirtied apart from the others.
#[repr(align(4096))]
struct Cell(AtomicU64);

/// What all vCPUs share.
struct Ledger {
    lock: AtomicBool,
    total: Cell,
    by: [Cell; abi::VCPUS_MAX],
    /// Rounds in which something did not fit.
    wrong: AtomicU64,
}

static LEDGER: Ledger = Ledger {
    lock: AtomicBool::new(false),
    total: Cell(AtomicU64::new(0)),
    by: [const { Cell(AtomicU64::new(0)) }; abi::VCPUS_MAX],
    wrong: AtomicU64::new(0),
};

/// Counts of the timer in [`PERIOD_US`]; 0: the workers wait.
static TIMER_COUNT: AtomicU64 = AtomicU64::new(0);

impl Ledger {
    /// Enters one round of a vCPU that has entered `own` so far.
    fn enter(&self, vcpu: usize, own: &mut u64) {
        while self.lock.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let sum: u64 = self.by.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum();
        let (total, mine) = (&self.total.0, &self.by[vcpu].0);
        if total.load(Ordering::Relaxed) != sum || mine.load(Ordering::Relaxed) != *own {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        *own += 1;
        total.store(sum + 1, Ordering::Relaxed);
        mine.store(*own, Ordering::Relaxed);
        self.lock.store(false, Ordering::Release);
    }
}

/// The part of the vCPU that serves.
#[derive(Default)]
pub struct Overseer {
    own: u64,
}

impl Overseer {
    /// Lets the workers begin. `timer_hz`: counts of the local APIC's timer in a second,
    /// with the divider in use.
    pub fn start(timer_hz: u64) -> Overseer {
        TIMER_COUNT.store((timer_hz * PERIOD_US / 1_000_000).max(1), Ordering::Release);
        Overseer::default()
    }

    /// Enters a round, now and then.
    pub fn enter(&mut self) {
        LEDGER.enter(0, &mut self.own);
    }
}

/// Rounds of all vCPUs, and those in which something did not fit.
pub fn counts() -> (u64, u64) {
    (
        LEDGER.total.0.load(Ordering::Relaxed),
        LEDGER.wrong.load(Ordering::Relaxed),
    )
}

/// Pages of one worker, with what it knows of them.
struct Pages {
    pages: [[u64; WORDS]; PAGES],
}

impl Pages {
    /// Says whether a page holds its old content, and writes a new one.
    fn renew(&mut self, index: usize, old: u64, new: u64) -> bool {
        let page = &mut self.pages[index];
        let right = old == 0
            || page
                .iter()
                .enumerate()
                .all(|(i, word)| *word == mix(old ^ (i as u64) << 48));
        for (i, word) in page.iter_mut().enumerate() {
            *word = mix(new ^ (i as u64) << 48);
        }
        right
    }
}

/// The pages, in memory that nobody else uses. They start on pages of their own.
#[repr(align(4096))]
struct Room([Pages; abi::VCPUS_MAX - 1]);
static mut ROOM: Room = Room(
    [const {
        Pages {
            pages: [[0; WORDS]; PAGES],
        }
    }; abi::VCPUS_MAX - 1],
);

/// What vCPU `vcpu` > 0 does from its entry on.
///
/// # Safety
/// To be called once on each further vCPU of the machine of abi.rs.
pub unsafe fn work(vcpu: usize) -> ! {
    let count = loop {
        match TIMER_COUNT.load(Ordering::Acquire) {
            0 => core::hint::spin_loop(),
            count => break count,
        }
    };
    // The gates are installed by now.
    apic::start_periodic(traps::WORKER_VECTOR, count as u32);
    // SAFETY: this vCPU alone uses this part of the room.
    let pages = unsafe { &mut *(&raw mut ROOM.0).cast::<Pages>().add(vcpu - 1) };
    let (mut own, mut written) = (0, [0u64; PAGES]);
    loop {
        for _ in 0..BURST_ROUNDS {
            LEDGER.enter(vcpu, &mut own);
            let index = own as usize % PAGES;
            let new = own << 8 | vcpu as u64;
            if !pages.renew(index, written[index], new) {
                LEDGER.wrong.fetch_add(1, Ordering::Relaxed);
            }
            written[index] = new;
        }
        cpu::kick();
        // SAFETY: the gates are installed, and this stub returns at the next tick.
        unsafe { cpu::ring0(traps::tick_stub()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger {
            lock: AtomicBool::new(false),
            total: Cell(AtomicU64::new(0)),
            by: [const { Cell(AtomicU64::new(0)) }; abi::VCPUS_MAX],
            wrong: AtomicU64::new(0),
        }
    }

    #[test]
    fn rounds_of_all_add_up_and_a_number_of_another_moment_is_noticed() {
        let ledger = ledger();
        std::thread::scope(|scope| {
            for vcpu in 0..3 {
                let ledger = &ledger;
                scope.spawn(move || {
                    (0..1000).fold(0, |mut own, _| {
                        ledger.enter(vcpu, &mut own);
                        own
                    })
                });
            }
        });
        let wrong = || ledger.wrong.load(Ordering::Relaxed);
        assert_eq!((ledger.total.0.load(Ordering::Relaxed), wrong()), (3000, 0));
        // A page that fell back.
        ledger.by[1].0.store(999, Ordering::Relaxed);
        ledger.enter(0, &mut 1000);
        assert_eq!(wrong(), 1);
        // Registers that fell back.
        ledger.enter(2, &mut 999);
        assert_eq!(wrong(), 2);
    }

    #[test]
    fn a_page_of_an_older_round_is_noticed() {
        let mut pages = Box::new(Pages {
            pages: [[0; WORDS]; PAGES],
        });
        assert!(pages.renew(3, 0, 7) && pages.renew(3, 7, 8));
        assert!(!pages.renew(3, 7, 9));
        pages.pages[3][100] ^= 1;
        assert!(!pages.renew(3, 9, 10));
    }
}
