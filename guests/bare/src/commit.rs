//! Group commit: writes that arrive together are written together, made durable by one flush, and only then
//! acknowledged and visible. What is visible has never to be taken back.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::store::{Index, Superblock, encode_record};
use crate::virtio::block::{Disk, Finished, Operation, Request, SECTOR_BYTES};
use crate::virtio::memory::Dma;

/// Most writes in a group.
pub const GROUP_MAX: usize = 32;

/// Whose a request to the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The boot: the superblock.
    Superblock,
    /// The boot: slots, from this one on.
    Slots(usize),
    /// A group commit.
    Commit,
    /// A test of the disk, in this block of its area.
    Test(usize),
    /// The probe of a reset, in this block of its area.
    Probe(usize),
    /// A load of the disk.
    Load,
}

/// Who asked for something: a connection, and which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Number of the connection.
    pub connection: usize,
    /// Its life.
    pub generation: u64,
}

/// The outcome of a `SET`.
pub struct Outcome {
    /// Who asked.
    pub client: Client,
    /// What became of it.
    pub result: Result<(), &'static str>,
}

struct Set {
    client: Client,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// A `SET` in a group: its slot and sequence number, unless there was no room.
struct Member {
    set: Set,
    place: Option<(usize, u64)>,
}

enum Stage {
    /// So many writes are in flight.
    Writing(usize),
    /// The flush is in flight.
    Flushing,
    /// It is durable, as far as it did not fail.
    Done,
}

struct Group {
    members: Vec<Member>,
    stage: Stage,
    failed_sectors: Vec<u64>,
    flush_failed: bool,
}

/// The store with its commits.
pub struct Storage {
    index: Index,
    layout: Option<Superblock>,
    unusable: Option<String>,
    waiting: VecDeque<Set>,
    group: Option<Group>,
    /// Memory for writes, used again and again so that few pages get dirty.
    buffers: Vec<Dma>,
}

impl Storage {
    /// A store in memory only, with so many slots.
    pub fn in_memory(slots: usize) -> Storage {
        Storage {
            index: Index::new(slots),
            layout: None,
            unusable: None,
            waiting: VecDeque::new(),
            group: None,
            buffers: Vec::new(),
        }
    }

    /// A store on a disk, with what was read from it.
    pub fn on_disk(layout: Superblock, index: Index) -> Storage {
        Storage {
            index,
            layout: Some(layout),
            ..Storage::in_memory(1)
        }
    }

    /// A store that refuses everything, and says why.
    pub fn unusable(reason: String) -> Storage {
        Storage {
            unusable: Some(reason),
            ..Storage::in_memory(1)
        }
    }

    /// Why nothing can be stored, if so.
    pub fn refusal(&self) -> Option<&str> {
        self.unusable.as_deref()
    }

    /// The records.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Layout of the disk; `None` if there is none, and memory is all.
    pub fn layout(&self) -> Option<&Superblock> {
        self.layout.as_ref()
    }

    /// Takes a `SET`; its outcome comes from [`Storage::step`], in the order of the requests.
    pub fn set(&mut self, client: Client, key: Vec<u8>, value: Vec<u8>) {
        self.waiting.push_back(Set { client, key, value });
    }

    /// A request of [`Owner::Commit`] has finished.
    pub fn finished(&mut self, finished: Finished<Owner>) {
        self.buffers.extend(finished.request.data);
        let Some(group) = &mut self.group else { return };
        if let Stage::Writing(left) = &mut group.stage {
            *left -= 1;
            if !finished.ok {
                group.failed_sectors.push(finished.request.sector);
            }
        } else {
            group.flush_failed = !finished.ok;
            group.stage = Stage::Done;
        }
    }

    /// Goes on: flushes what is written, applies what is durable, begins the next group. Appends outcomes.
    pub fn step(&mut self, disk: Option<&mut Disk<Owner>>, outcomes: &mut Vec<Outcome>) {
        let Some((disk, layout)) = disk.zip(self.layout) else {
            while let Some(set) = self.waiting.pop_front() {
                outcomes.push(self.set_in_memory(set));
            }
            return;
        };
        if let Some(mut group) = self.group.take() {
            if matches!(group.stage, Stage::Writing(0)) {
                group.stage = Stage::Done;
                if disk.needs_flush() {
                    group.stage = Stage::Flushing;
                    let (operation, owner) = (Operation::Flush, Owner::Commit);
                    disk.submit(Request {
                        operation,
                        sector: 0,
                        data: None,
                        lane: 0,
                        owner,
                    });
                }
            }
            match group.stage {
                Stage::Done => self.conclude(group, &layout, outcomes),
                _ => self.group = Some(group),
            }
        }
        if self.group.is_none() && !self.waiting.is_empty() {
            self.begin(disk, &layout);
        }
    }

    fn set_in_memory(&mut self, set: Set) -> Outcome {
        let result = match self.index.reserve(&set.key) {
            Some(slot) => {
                let sequence = self.index.next_sequence();
                self.index.apply(slot, sequence, set.key, set.value);
                Ok(())
            }
            None => Err("the store is full"),
        };
        Outcome {
            client: set.client,
            result,
        }
    }

    /// Submits the writes of the next group. Of several values for one key only the last one is written:
    /// nothing orders writes in flight.
    fn begin(&mut self, disk: &mut Disk<Owner>, layout: &Superblock) {
        let mut members: Vec<Member> = Vec::new();
        while members.len() < GROUP_MAX
            && let Some(set) = self.waiting.pop_front()
        {
            let sequence = self.index.next_sequence();
            let same_key = members.iter().find(|member| member.set.key == set.key);
            let slot = match same_key.and_then(|member| member.place) {
                Some((slot, _)) => Some(slot),
                None => self.index.reserve(&set.key),
            };
            members.push(Member {
                set,
                place: slot.map(|slot| (slot, sequence)),
            });
        }
        let mut writes = 0;
        for (i, member) in members.iter().enumerate() {
            let Some((slot, sequence)) = member.place else {
                continue;
            };
            if members[i + 1..]
                .iter()
                .any(|later| later.set.key == member.set.key)
            {
                continue;
            }
            let mut data = self
                .buffers
                .pop()
                .unwrap_or_else(|| Dma::new(layout.slot_bytes, layout.slot_bytes));
            encode_record(data.bytes_mut(), sequence, &member.set.key, &member.set.value);
            let sector = layout.slot_offset(slot) / SECTOR_BYTES as u64;
            disk.submit(Request {
                operation: Operation::Write,
                sector,
                data: Some(data),
                lane: 0,
                owner: Owner::Commit,
            });
            writes += 1;
        }
        let stage = Stage::Writing(writes);
        self.group = Some(Group {
            members,
            stage,
            failed_sectors: Vec::new(),
            flush_failed: false,
        });
    }

    /// Makes visible what is durable.
    fn conclude(&mut self, group: Group, layout: &Superblock, outcomes: &mut Vec<Outcome>) {
        for Member { set, place } in group.members {
            let result = match place {
                None => Err("the store is full"),
                Some((slot, sequence)) => {
                    let sector = layout.slot_offset(slot) / SECTOR_BYTES as u64;
                    if group.flush_failed || group.failed_sectors.contains(&sector) {
                        self.index.release(slot, &set.key);
                        Err("the disk failed to store the value; it may be there after a reboot")
                    } else {
                        self.index.apply(slot, sequence, set.key, set.value);
                        Ok(())
                    }
                }
            };
            outcomes.push(Outcome {
                client: set.client,
                result,
            });
        }
    }
}
