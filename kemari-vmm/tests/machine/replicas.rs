//! What commits ask of a disk, carried out on an image of its own: whoever goes on from there finds the disk
//! that the guest knows.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kemari_vmm::disk::{Disk, DiskConfig, Operation};
use kemari_vmm::machine::Machine;
use kemari_vmm::state::{StateBlob, StateKind};
use tempfile::NamedTempFile;

use crate::support::pair::Pair;
use crate::support::random::Random;
use crate::support::resp::Client;
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Syncs before the death, at least.
const SYNCS: u64 = 40;
/// Outputs that the replica has by then, at least.
const OUTPUTS_MIN: u64 = 100;
/// Outputs on the list that is damaged, at least.
const LISTED_MIN: usize = 4;
/// Damaged lists that are tried.
const DAMAGED: usize = 3000;

/// The image of the other host, and what it has.
struct Replica {
    image: NamedTempFile,
    applied: Option<u64>,
}

impl Replica {
    /// A copy of the rig's image, on which nothing may be under way.
    fn of(rig: &Rig) -> Self {
        let image = NamedTempFile::new().expect("a temporary file");
        fs::copy(rig.image.path(), image.path()).expect("a copy");
        Self { image, applied: None }
    }

    /// Carries out what the last commit asks for.
    fn apply(&mut self, pair: &Pair<'_>) {
        let disk = Disk::open(&DiskConfig::new(self.image.path())).expect("the image opens");
        let mut last = self.applied;
        for operation in pair.disk_operations(self.applied) {
            assert_eq!(operation.disk, 0);
            assert!(last < Some(operation.id), "they come in order, and once");
            last = Some(operation.id);
            disk.carry_out(&operation.operation).expect("it is carried out");
        }
        self.applied = last;
    }
}

fn worker(stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut client = Client::connect();
        let mut tests = 0;
        while !stop.load(Ordering::SeqCst) {
            client.ok("BLKTEST 200 32");
            client.ok("CHECK");
            tests += 1;
        }
        tests
    })
}

#[test]
fn a_takeover_with_the_replica_finds_the_disk_that_the_guest_knows() {
    let _watchdog = Watchdog::new("a replica made of commits", 120);
    let mut random = Random::new(77);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    // It stands still, so that the copy is of one moment.
    machine.pause();
    machine.drain_disks();
    let mut replica = Replica::of(&rig);
    let mut pair = Pair::protect(&rig, machine);
    let stop = Arc::new(AtomicBool::new(false));
    let tests = worker(stop.clone());
    let mut syncs = 0;
    while syncs < SYNCS || replica.applied < Some(OUTPUTS_MIN) {
        syncs += 1;
        thread::sleep(Duration::from_micros(random.below(3000)));
        let captured = pair.capture();
        match random.below(4) {
            // It fails, and nothing of it reaches the other host.
            0 => pair.give_back(&captured),
            _ => {
                pair.commit(&captured);
                replica.apply(&pair);
                pair.machine.release(captured.epoch);
            }
        }
        pair.machine.resume();
    }
    // The last commit is captured and applied, and was never released: the other host alone has it.
    let captured = pair.capture();
    pair.commit(&captured);
    replica.apply(&pair);
    let machine = pair.take_over_with(replica.image.path(), replica.applied);
    machine.resume();
    thread::sleep(Duration::from_millis(50));
    stop.store(true, Ordering::SeqCst);
    assert!(tests.join().expect("the tests of the disk go well") > 0);
    Client::connect().ok("CHECK");
}

/// A machine that stands still with outputs on its disk's list, and its state.
fn with_a_list(rig: &Rig) -> (Machine, Vec<StateBlob>, thread::JoinHandle<u64>, Arc<AtomicBool>) {
    let machine = rig.running();
    let stop = Arc::new(AtomicBool::new(false));
    let tests = worker(stop.clone());
    machine.pause();
    machine.freeze().hold_output();
    let mut states = Vec::new();
    for epoch in 1.. {
        machine.resume();
        thread::sleep(Duration::from_millis(2));
        machine.pause();
        let frozen = machine.freeze();
        frozen.capture_output(epoch);
        states.clear();
        frozen.save_state(&mut states).expect("the state is saved");
        drop(frozen);
        let listed = machine.disk_operations(&states, |_| None).expect("its own state");
        if listed.len() >= LISTED_MIN {
            break;
        }
        // What it waits for may be an answer to a client.
        machine.release(epoch);
    }
    (machine, states, tests, stop)
}

#[test]
fn a_damaged_list_asks_for_nothing_outside_the_disk_and_the_memory() {
    let _watchdog = Watchdog::new("damaged lists", 120);
    let mut random = Random::new(78);
    let rig = Rig::new("", 64);
    let (machine, states, tests, stop) = with_a_list(&rig);
    let disk_bytes = rig.image.as_file().metadata().expect("it is there").len();
    let whole = machine.disk_operations(&states, |_| None).expect("its own state");
    let last = whole.iter().map(|operation| operation.id).max();
    assert!(
        machine
            .disk_operations(&states, |_| last)
            .expect("its own state")
            .is_empty(),
        "what is applied is not asked for again"
    );
    // The capacity stands at the end of a disk's state, 7 bits a byte. With one of a single sector nothing of
    // the list can have been asked for.
    let mut small = states.clone();
    let end = &mut disk_of(&mut small).bytes;
    let length = end.len();
    assert_eq!(end[length - 3..], [0x80, 0x80, 0x01], "8 MiB are 16,384 sectors");
    end[length - 3..].copy_from_slice(&[0x81, 0x80, 0x00]);
    let error = machine.disk_operations(&small, |_| None).err();
    let error = error.expect("requests lie beyond the end").to_string();
    assert!(error.contains("cannot have been asked for"), "{error}");
    let capacity_of = |states: &mut [StateBlob]| {
        let bytes = &disk_of(states).bytes;
        bytes[bytes.len().saturating_sub(4)..].to_vec()
    };
    let capacity = capacity_of(&mut states.clone());
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..DAMAGED {
        let mut damaged = states.clone();
        let blob = disk_of(&mut damaged);
        let place = random.below(blob.bytes.len() as u64) as usize;
        match random.below(3) {
            0 => blob.bytes[place] ^= 1 << random.below(8),
            1 => blob.bytes[place] = random.next() as u8,
            _ => blob.bytes.truncate(place),
        }
        let Ok(operations) = machine.disk_operations(&damaged, |_| None) else {
            refused += 1;
            continue;
        };
        taken += 1;
        for operation in operations {
            let Some(range) = operation.operation.changes() else {
                assert!(matches!(operation.operation, Operation::Flush));
                continue;
            };
            assert!(
                range.end <= disk_bytes || capacity != capacity_of(&mut damaged),
                "{range:?} of {disk_bytes} bytes"
            );
        }
    }
    assert!(
        refused > DAMAGED / 10 && taken > 0,
        "{refused} refused, {taken} taken"
    );
    machine.open_gate();
    machine.resume();
    stop.store(true, Ordering::SeqCst);
    tests.join().expect("the guest goes on");
}

/// The state of the disk, which is the first device.
fn disk_of(states: &mut [StateBlob]) -> &mut StateBlob {
    states
        .iter_mut()
        .find(|blob| (blob.kind, blob.instance) == (StateKind::Virtio, 0))
        .expect("the disk is the first device")
}
