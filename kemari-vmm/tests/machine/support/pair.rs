//! A protected machine and its standby, in one process: captures, commits, releases and takeovers.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::machine::{DiskOperation, Machine};
use kemari_vmm::memory::{self, Memory, PAGE_BYTES};
use kemari_vmm::state::StateBlob;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::random::Random;
use super::rig::Rig;

const CHUNK_BYTES: usize = 1 << 20;

/// A machine under protection.
pub(crate) struct Pair<'r> {
    rig: &'r Rig,
    pub machine: Machine,
    standby: Machine,
    committed: Vec<StateBlob>,
    epoch: u64,
    /// Pages of captures that failed.
    owed: Vec<u64>,
}

/// What one capture took.
pub(crate) struct Captured {
    pub epoch: u64,
    pub pages: Vec<u64>,
    frames: Vec<u8>,
    states: Vec<StateBlob>,
}

impl<'r> Pair<'r> {
    /// Protects a machine: the first copy is made at a pause; from then on output is held.
    /// It runs when this returns.
    pub(crate) fn protect(rig: &'r Rig, machine: Machine) -> Self {
        let standby = rig.machine();
        machine.pause();
        machine.dirty().start().expect("the dirty log starts");
        let mut committed = Vec::new();
        let epoch = 1;
        {
            let frozen = machine.freeze();
            frozen.hold_output();
            frozen.capture_output(epoch);
            frozen.save_state(&mut committed).expect("the state is saved");
            frozen
                .collect_dirty(&mut Vec::new())
                .expect("the dirty log is read");
            copy_all(machine.memory(), standby.memory());
        }
        machine.release(epoch);
        machine.resume();
        Self {
            rig,
            machine,
            standby,
            committed,
            epoch,
            owed: Vec::new(),
        }
    }

    /// Captures; the machine stays paused.
    pub(crate) fn capture(&mut self) -> Captured {
        self.epoch += 1;
        self.machine.pause();
        let (mut states, mut pages) = (Vec::new(), std::mem::take(&mut self.owed));
        let frozen = self.machine.freeze();
        frozen.capture_output(self.epoch);
        frozen.save_state(&mut states).expect("the state is saved");
        frozen.collect_dirty(&mut pages).expect("the dirty log is read");
        let mut frames = vec![0; pages.len() * PAGE_BYTES];
        for (&page, frame) in pages.iter().zip(frames.chunks_exact_mut(PAGE_BYTES)) {
            memory::read_page(self.machine.memory(), page, frame).expect("dirty pages are the guest's");
        }
        drop(frozen);
        Captured {
            epoch: self.epoch,
            pages,
            frames,
            states,
        }
    }

    /// The standby takes the capture: it would go on from there.
    pub(crate) fn commit(&mut self, captured: &Captured) {
        for (&page, frame) in captured
            .pages
            .iter()
            .zip(captured.frames.chunks_exact(PAGE_BYTES))
        {
            memory::write_page(self.standby.memory(), page, frame).expect("machines are equal");
        }
        self.committed.clone_from(&captured.states);
    }

    /// The capture fails: its pages are owed to the next one.
    pub(crate) fn give_back(&mut self, captured: &Captured) {
        self.owed.extend(&captured.pages);
        self.machine.give_back(captured.epoch);
    }

    /// What the last commit asks of the disk beyond request `applied`.
    pub(crate) fn disk_operations(&self, applied: Option<u64>) -> Vec<DiskOperation> {
        self.standby
            .disk_operations(&self.committed, |_| applied)
            .expect("the state of an equal machine")
    }

    /// The machine dies; the standby goes on from the last commit. It is paused when this returns.
    pub(crate) fn take_over(self) -> Machine {
        let image = self.rig.image.path();
        self.take_over_with(image, None)
    }

    /// The same with another image, which has all outputs up to `applied` already.
    pub(crate) fn take_over_with(self, image: &Path, applied: Option<u64>) -> Machine {
        self.machine.halt();
        drop(self.machine);
        self.standby
            .load(&self.committed, true)
            .expect("the state of an equal machine");
        if let Some(applied) = applied {
            self.standby
                .note_applied("blk0", applied)
                .expect("there is such a disk");
        }
        self.rig.plug_with(&self.standby, image);
        self.standby.open_gate();
        self.standby.wake();
        self.standby
    }
}

/// One sync of some kind.
pub(crate) fn sync(pair: &mut Pair<'_>, random: &mut Random) {
    let begin = Instant::now();
    while !pair.machine.output_held() && begin.elapsed() < Duration::from_millis(3) {
        thread::sleep(Duration::from_micros(50));
    }
    let captured = pair.capture();
    match random.below(100) {
        // It fails: everything is owed to the next one.
        0..8 => pair.give_back(&captured),
        // Pipelined: the guest runs on before the ack.
        8..30 => {
            pair.machine.resume();
            thread::sleep(Duration::from_micros(random.below(2000)));
            pair.commit(&captured);
            pair.machine.release(captured.epoch);
        }
        // The same, and the ack never comes: the guest runs with output that belongs to no capture any more.
        30..36 => {
            pair.machine.resume();
            thread::sleep(Duration::from_micros(random.below(2000)));
            pair.give_back(&captured);
        }
        // Lockstep.
        _ => {
            pair.commit(&captured);
            pair.machine.release(captured.epoch);
        }
    }
    pair.machine.resume();
}

/// Copies all memory into memory that was never written.
pub(crate) fn copy_all(from: &Memory, to: &Memory) {
    for_each_chunk(from, |address, chunk| {
        if chunk.iter().any(|byte| *byte != 0) {
            to.write_slice(chunk, address).expect("machines are equal");
        }
    });
}

/// The first page in which two memories differ.
pub(crate) fn first_difference(one: &Memory, other: &Memory) -> Option<u64> {
    let mut found = None;
    let mut theirs = vec![0; CHUNK_BYTES];
    for_each_chunk(one, |address, ours| {
        let theirs = &mut theirs[..ours.len()];
        other.read_slice(theirs, address).expect("machines are equal");
        if found.is_none() && ours != theirs {
            let byte = ours
                .iter()
                .zip(&*theirs)
                .position(|(one, other)| one != other)
                .unwrap_or(0);
            found = Some((address.0 + byte as u64) / PAGE_BYTES as u64);
        }
    });
    found
}

fn for_each_chunk(memory: &Memory, mut function: impl FnMut(GuestAddress, &[u8])) {
    let mut bytes = vec![0; CHUNK_BYTES];
    for region in memory.iter() {
        for offset in (0..region.len()).step_by(CHUNK_BYTES) {
            let chunk = &mut bytes[..CHUNK_BYTES.min((region.len() - offset) as usize)];
            let address = GuestAddress(region.start_addr().0 + offset);
            memory
                .read_slice(chunk, address)
                .expect("the chunk lies in the region");
            function(address, chunk);
        }
    }
}
