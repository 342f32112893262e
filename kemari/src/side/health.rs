//! Watches what a host needs to run the VM: the guest's way out of it, and its own I/O.
//!
//! The watch has a thread of its own, so that it sees what holds up everybody else.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kemari_sync::Trouble;
use kemari_vmm::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES, STREAMS};
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
                overdue(machine.oldest_disk_io()?, limit, |id| {
                    let mut of_disk = trackers.iter().filter(|tracker| tracker.image().disk() == id);
                    of_disk.any(|tracker| tracker.waits_for_peer())
                })
            }
            Self::Probed(probe) => probe.trouble(limit),
        }
    }
}

/// That a disk's oldest request is too old, in words: not if it waits for the other host's disk.
fn overdue(
    (id, age): (&str, Duration),
    limit: Duration,
    waits_for_peer: impl Fn(&str) -> bool,
) -> Option<String> {
    (age > limit && !waits_for_peer(id)).then(|| stuck(id, limit))
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
    /// Watches the host `host`, which is this one, as soon as a role wants it. On `board` it notes what a
    /// secondary's network cards are good for.
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

    /// From here on this is what is watched, in place of what was; each change is told,
    /// and at first all is well.
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
    parts: &[COMMON, DEVICES, OPEN_FILES, STREAMS, SOCKETS, CARDS],
};

impl Subject {
    fn look(&mut self, cards: &mut Cards, io_limit: Duration) {
        let disk = self.io.trouble(io_limit).map(Trouble::Disk);
        let uplink = match &self.io {
            OwnIo::Of(machine, _) => cards.of_running(machine.upgrade().as_deref()),
            OwnIo::Probed(_) => cards.of_standby(),
        };
        self.note(disk.or_else(|| uplink.map(Trouble::Uplink)));
    }

    /// Tells what is found, if it is something else than before.
    fn note(&mut self, trouble: Option<Trouble>) {
        if trouble != self.told {
            (self.tell)(trouble.clone());
            self.told = trouble;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    #[test]
    fn a_request_is_overdue_after_its_limit_unless_it_waits_for_the_other_host() {
        let late = ("blk0", LIMIT + Duration::from_millis(1));
        assert_eq!(overdue(("blk0", LIMIT), LIMIT, |_| false), None);
        assert_eq!(overdue(late, LIMIT, |_| false), Some(stuck("blk0", LIMIT)));
        assert_eq!(overdue(late, LIMIT, |id| id == "blk0"), None);
        assert_eq!(overdue(("blk0", LIMIT), LIMIT, |_| true), None);
    }

    #[test]
    fn each_change_is_told_once_its_end_too() {
        let (said, told) = channel();
        let mut subject = Subject {
            io: OwnIo::Of(Weak::new(), Vec::new()),
            tell: Box::new(move |trouble| said.send(trouble).expect("it is listened to")),
            told: None,
        };
        let (one, other) = (
            Some(Trouble::Disk("late".into())),
            Some(Trouble::Uplink("cut".into())),
        );
        for found in [&None, &one, &one, &other, &None, &None, &one] {
            subject.note(found.clone());
        }
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(told, [one.clone(), other, None, one]);
    }
}
