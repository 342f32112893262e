//! A rehearsal of a takeover: the last committed state is started in isolation, judged and thrown away, while
//! its secondary goes on.
//!
//! The machine of a drill has memory of its own that is copied page by page as it is touched
//! ([`kemari_vmm::memory::LazyCopy`]), a throw-away layer over each replicated image
//! ([`kemari_vmm::disk::Overlay`]), no TAP and a console that nobody reads. All of it is handled by a thread
//! of its own, and the vCPUs have a low priority: the secondary's loop only says which moment it is, and has
//! old pages copied before it changes them.
//!
//! 1. The thread builds the machine, and has the copy begin: [`News::Built`].
//! 2. The loop, between two commits, gives it the [`Moment`].
//! 3. The thread waits until the images are at that moment, loads, runs and judges: [`News::Ended`].

mod console;
mod judge;
mod room;
mod run;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kemari_vmm::confine::{self, COMMON, Call, Calls, DEVICES, FAULTS, OPEN_FILES, RINGS, STREAMS, call};
use kemari_vmm::disk::Overlay;
use kemari_vmm::machine::{MachineEvent, MachineSpec};
use kemari_vmm::memory::{LazyCopy, Memory};
use kemari_vmm::state::StateBlob;

use crate::config::Config;
use crate::sandbox::BLOCK_DEVICES;

pub use judge::Verdict;
pub use run::LAYER_BYTES_MAX;

/// What the thread of a drill asks of the kernel. Its machine's threads are started from it,
/// so that they have no more.
pub const CALLS: Calls = Calls {
    of: "drill",
    parts: &[
        COMMON,
        DEVICES,
        FAULTS,
        OPEN_FILES,
        STREAMS,
        RINGS,
        BLOCK_DEVICES,
        DRILLS,
    ],
};

const DRILLS: &[Call] = &[
    call(
        libc::SYS_openat,
        "KVM, memory of this host, page faults, images that are only read",
    ),
    call(
        libc::SYS_readlink,
        "images that are only read, and their backing files",
    ),
    call(libc::SYS_flock, "the same: their locks"),
    call(libc::SYS_getdents64, "the same: who holds one"),
    call(libc::SYS_userfaultfd, "memory that is copied as it is touched"),
    call(libc::SYS_eventfd2, "events of its machine"),
    call(libc::SYS_epoll_create1, "the same"),
    call(libc::SYS_getpriority, "its vCPUs are of low priority"),
    call(libc::SYS_setpriority, "the same"),
    call(libc::SYS_mlock, "the pages of a vCPU"),
];

/// Number of a drill in this process.
pub type DrillId = u64;

/// What a drill tells the loop.
pub enum News {
    /// The machine is there: the moment may be given. From then on pages that change are to be kept first.
    Built(Arc<LazyCopy>),
    /// It is over; nothing: it was cut short.
    Ended(Option<Verdict>),
}

/// The moment that a drill begins from.
pub struct Moment {
    /// The committed states.
    pub states: Vec<StateBlob>,
    /// Of each replicated disk, in the order of the configuration.
    pub disks: Vec<MomentOfDisk>,
    /// For how long the loop stood still for it, in microseconds.
    pub standstill_us: u64,
}

/// A replicated disk at that moment.
pub struct MomentOfDisk {
    /// The last output that its image has then.
    pub applied: Option<u64>,
    /// Gets the layer over the image; nothing, if the image fails.
    pub overlay: Receiver<Arc<Overlay>>,
}

/// What wakes the thread of a drill.
enum Signal {
    Moment(Box<Moment>),
    Machine(MachineEvent),
    End,
}

/// What a drill is made with.
pub struct Plan {
    pub config: Arc<Config>,
    pub host: String,
    pub spec: MachineSpec,
    /// The committed memory.
    pub memory: Memory,
    /// How long the guest runs.
    pub time: Duration,
}

/// A drill that is under way.
pub struct Drill {
    signals: Sender<Signal>,
}

impl Drill {
    /// Starts its thread, which calls `tell`.
    pub fn start(plan: Plan, tell: impl Fn(News) + Send + 'static) -> anyhow::Result<Self> {
        let (signals, received) = channel();
        let machine_signals = signals.clone();
        thread::Builder::new()
            .name("drill".into())
            .spawn(move || {
                confine::thread(&CALLS);
                let verdict = run::drill(plan, machine_signals, &received, |copy| tell(News::Built(copy)));
                tell(News::Ended(verdict));
            })
            .context("cannot start the thread of a drill")?;
        Ok(Self { signals })
    }

    /// Gives it the moment.
    pub fn begin(&self, moment: Moment) {
        self.signal(Signal::Moment(Box::new(moment)));
    }

    /// Ends it, at once and without a verdict; this does not wait for it.
    pub fn end(&self) {
        self.signal(Signal::End);
    }

    fn signal(&self, signal: Signal) {
        // A thread that has ended needs none.
        let _ = self.signals.send(signal);
    }
}
