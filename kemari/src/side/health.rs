//! Watches what a host needs to run the VM: the guest's way out of it, and its own I/O.
//!
//! The watch has a thread of its own, so that it sees what holds up everybody else.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kemari_sync::Trouble;
use kemari_vmm::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES, STREAMS, call};
use kemari_vmm::machine::Machine;

use super::board::Board;
use super::cards::Cards;
use super::probe::Probe;
use crate::config::Config;
use crate::replica::Tracker;
use crate::sandbox::{CARDS, SOCKETS};

/// How often it looks, in milliseconds.
const LOOK_INTERVAL_MS: u64 = 200;

/// Where the progress of own I/O shows.
pub enum OwnIo {
    /// A primary: in its machine's requests. Of a replicated disk, a flush may wait for the secondary's disk.
    Of(Weak<Machine>, Vec<Arc<Tracker>>),
    /// A secondary, whose machine does no I/O yet: in reads of the disks, made for that.
    Probed(Probe),
}

impl OwnIo {
    /// A disk that makes no progress for `limit`, in words.
    fn trouble(&self, limit: Duration) -> Option<String> {
        match self {
            Self::Of(machine, trackers) => {
                let machine = machine.upgrade()?;
                let (id, age) = machine.oldest_disk_io()?;
                let is_peers = trackers
                    .iter()
                    .any(|tracker| tracker.image().disk() == id && tracker.waits_for_peer());
                (age > limit && !is_peers).then(|| stuck(id, limit))
            }
            Self::Probed(probe) => probe.trouble(limit),
        }
    }
}

/// The sentence about a disk that does not answer. It says the same as long as that lasts.
pub fn stuck(id: &str, limit: Duration) -> String {
    format!(
        "the disk {id} has not finished a request within {} ms",
        limit.as_millis()
    )
}

/// What is watched at present, and who is told.
struct Subject {
    io: OwnIo,
    tell: Box<dyn Fn(Option<Trouble>) + Send>,
    told: Option<Trouble>,
}

/// The watch of this process: it lasts longer than a role, so that no role waits for its thread.
pub struct HealthWatch {
    /// The thread ends when this is dropped.
    subjects: Sender<Option<Subject>>,
}

impl HealthWatch {
    /// Watches the host `host`, which is this one, as soon as a role wants it. On `board` it notes what a secondary's network
    /// cards are good for.
    pub fn start(config: Arc<Config>, host: String, board: &Board) -> anyhow::Result<Self> {
        let (subjects, wanted) = channel();
        let io_limit = config.protection.progress_timeout();
        let mut cards = Cards::new(config, host, board.findings().clone(), board.mtus().clone());
        let watch = move || {
            confine::thread(&CALLS);
            let mut subject: Option<Subject> = None;
            let interval = Duration::from_millis(LOOK_INTERVAL_MS);
            loop {
                match (wanted.recv_timeout(interval), &mut subject) {
                    (Ok(next), subject) => {
                        *subject = next;
                        cards.begin_role();
                    }
                    (Err(RecvTimeoutError::Timeout), Some(subject)) => subject.look(&mut cards, io_limit),
                    (Err(RecvTimeoutError::Timeout), None) => {}
                    (Err(RecvTimeoutError::Disconnected), _) => return,
                }
            }
        };
        let thread = thread::Builder::new().name("health".into());
        thread
            .spawn(watch)
            .context("cannot start the thread that watches this host")?;
        Ok(Self { subjects })
    }

    /// From here on this is what is watched, in place of what was; each change is told, and at first all is well.
    pub fn watch(&self, io: OwnIo, tell: impl Fn(Option<Trouble>) + Send + 'static) {
        self.turn_to(Some(Subject {
            io,
            tell: Box::new(tell),
            told: None,
        }));
    }

    /// The role has ended: nobody is told.
    pub fn rest(&self) {
        self.turn_to(None);
    }

    fn turn_to(&self, subject: Option<Subject>) {
        // The thread lives as long as this sender.
        let _ = self.subjects.send(subject);
    }
}

/// What the watching thread asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "health",
    parts: &[
        COMMON,
        DEVICES,
        OPEN_FILES,
        STREAMS,
        SOCKETS,
        CARDS,
        &[call(libc::SYS_openat, "TAPs")],
    ],
};

impl Subject {
    fn look(&mut self, cards: &mut Cards, io_limit: Duration) {
        let disk = self.io.trouble(io_limit).map(Trouble::Disk);
        let uplink = match &self.io {
            OwnIo::Of(machine, _) => cards.of_running(machine.upgrade().as_deref()),
            OwnIo::Probed(_) => cards.of_standby(),
        };
        let trouble = disk.or_else(|| uplink.map(Trouble::Uplink));
        if trouble != self.told {
            (self.tell)(trouble.clone());
            self.told = trouble;
        }
    }
}
