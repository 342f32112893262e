//! Who waits for room in a device's budget, and who does not: with a back end that needs no image and no TAP.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::devices::Device;
use kemari_vmm::memory::Memory;
use kemari_vmm::virtio::budget::{BYTES_HELD_MAX, Cost};
use kemari_vmm::virtio::{
    Backend, Chain, Completions, GuestFault, Input, Nature, QueueRole, QueueSpec, Submission,
};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use crate::support::bench::{Bench, Found};
use crate::support::driver::{self, Ring, regs, write_register};
use crate::support::watchdog::Watchdog;

/// The queues, by number.
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const MORE_OUTPUT: usize = 2;
/// What is asked here is answered at once, and costs nothing.
const CONTROL: usize = 3;

const RING: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
/// So much is an output taken to cost for each byte of its buffer.
const COST_FACTOR: u64 = 1 << 10;
/// Buffers of outputs of which the smaller costs 1 MiB, and the larger all there is.
const SMALL: u32 = 1 << 10;
const LARGE: u32 = (BYTES_HELD_MAX / COST_FACTOR) as u32;

const PATIENCE: Duration = Duration::from_secs(20);

/// What the back end saw.
#[derive(Default)]
struct Seen {
    inputs: AtomicU32,
    /// Outputs that were submitted, and are not finished: number and queue.
    pending: Mutex<VecDeque<(u64, usize)>>,
    resets: AtomicU32,
    is_winding_up: AtomicBool,
}

struct Mock {
    seen: Arc<Seen>,
    /// Outputs are finished when they are submitted.
    is_fast: bool,
    /// For each request on the control queue another vCPU makes one more available.
    refills: bool,
}

impl Backend for Mock {
    type Request = (usize, u64);
    type State = ();

    fn device_id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [QueueSpec] {
        const fn queue(suffix: &'static str, role: QueueRole) -> QueueSpec {
            QueueSpec {
                suffix,
                entries_max: 256,
                role,
            }
        }
        &const {
            [
                queue(".in", QueueRole::Supply),
                queue(".out", QueueRole::Requests),
                queue(".more", QueueRole::Requests),
                queue(".control", QueueRole::Requests),
            ]
        }
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn winding_up(&mut self, begins: bool) {
        self.seen.resets.fetch_add(u32::from(begins), Ordering::SeqCst);
        self.seen.is_winding_up.store(begins, Ordering::SeqCst);
    }

    fn parse(
        &mut self,
        queue: usize,
        chain: Chain<'_>,
        memory: &Memory,
    ) -> Result<((usize, u64), Nature), GuestFault> {
        let (readable, _) = chain.buffers(memory)?;
        Ok(match queue {
            CONTROL => ((queue, 0), Nature::Input),
            _ => ((queue, readable.len() * COST_FACTOR), Nature::Output),
        })
    }

    fn check(&self, _: &(usize, u64), _: &Memory) -> Result<(), GuestFault> {
        Ok(())
    }

    fn cost(&self, &(_, bytes): &(usize, u64)) -> Cost {
        Cost { segments: 1, bytes }
    }

    fn copy_aside(&self, _: &(usize, u64), _: &Memory) -> Result<Vec<u8>, GuestFault> {
        Ok(Vec::new())
    }

    fn submit(
        &mut self,
        id: u64,
        &(queue, _): &(usize, u64),
        _: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Submission, GuestFault> {
        if queue == CONTROL && self.refills {
            let index = GuestAddress(ring_at(CONTROL) + 0x1002);
            let available: u16 = memory.read_obj(index).expect("inside the memory");
            let put = memory.write_obj(available.wrapping_add(1), index);
            put.expect("inside the memory");
        }
        if queue == CONTROL || self.is_fast {
            return Ok(Submission::Done(0));
        }
        self.seen.pending.lock().unwrap().push_back((id, queue));
        Ok(Submission::Pending)
    }

    fn input(&mut self, _: &mut Queue, _: &Memory) -> Result<Input, GuestFault> {
        self.seen.inputs.fetch_add(1, Ordering::SeqCst);
        Ok(Input::default())
    }

    fn save(&self) {}

    fn load(&mut self, (): ()) -> Result<(), String> {
        Ok(())
    }
}

fn ring_at(queue: usize) -> u64 {
    RING + 0x1_0000 * queue as u64
}

struct Rig {
    bench: Bench<Mock>,
    rings: Vec<Ring>,
    seen: Arc<Seen>,
}

impl Rig {
    fn new(is_fast: bool, refills: bool) -> Self {
        let seen = Arc::new(Seen::default());
        let bench = Bench::new(Mock {
            seen: seen.clone(),
            is_fast,
            refills,
        });
        let features = driver::agree(&*bench.device, 0);
        // The resets with which a driver begins wait for nothing.
        seen.resets.store(0, Ordering::SeqCst);
        let ring = |queue| {
            let base = ring_at(queue);
            Ring::new(&*bench.device, bench.memory(), queue as u32, base, 256, features)
        };
        let rings = (INPUT..=CONTROL).map(ring).collect();
        driver::go(&*bench.device);
        Self { bench, rings, seen }
    }

    /// Offers a request with a buffer of so many bytes in each of these slots, and kicks.
    fn ask(&mut self, queue: usize, slots: std::ops::Range<u16>, bytes: u32) {
        let ring = &mut self.rings[queue];
        for slot in slots {
            let head = ring.request(slot, &[(DATA, bytes, false)]);
            ring.offer(head);
        }
        ring.kick_always(&*self.bench.device);
    }

    /// A driver retires a queue: on another vCPU, which waits for what it has under way.
    fn retire(&self, queue: usize) -> thread::JoinHandle<()> {
        let device = self.bench.device.clone();
        write_register(&*device, regs::QUEUE_SEL, queue as u32);
        let resets = self.seen.resets.load(Ordering::SeqCst);
        let retiring = thread::spawn(move || write_register(&*device, regs::QUEUE_READY, 0));
        until("a reset", || self.seen.resets.load(Ordering::SeqCst) > resets);
        retiring
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what} does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

/// It was the side's loop that never came back.
#[test]
fn a_guest_that_refills_a_ring_for_ever_holds_up_no_release() {
    let _watchdog = Watchdog::new("a release", 60);
    let mut rig = Rig::new(true, true);
    let device = rig.bench.device.clone();
    rig.bench.hub.hold_output(true);
    rig.ask(OUTPUT, 0..2, LARGE);
    rig.ask(CONTROL, 0..1, 1);
    device.capture(1);
    device.release(1);
    assert!(device.output_held(), "what waited is in the list");
    // Whoever else wants something has his turn all the same.
    device.capture(2);
    device.release(2);
    rig.ask(MORE_OUTPUT, 0..1, SMALL);
    until("the turn of another queue", || device.output_held());
    let worked = |rig: &mut Rig| rig.rings[CONTROL].used().is_some();
    assert!(worked(&mut rig) && !driver::needs_reset(&*device));
    // Nor is anybody kept from a reset.
    write_register(&*device, regs::STATUS, 0);
}

#[test]
fn input_waits_for_no_room() {
    let _watchdog = Watchdog::new("input", 60);
    let mut rig = Rig::new(true, false);
    rig.bench.hub.hold_output(true);
    rig.ask(OUTPUT, 0..2, LARGE);
    rig.bench.device.input_ready();
    assert_eq!(rig.seen.inputs.load(Ordering::SeqCst), 1);
    rig.rings[INPUT].kick_always(&*rig.bench.device);
    assert_eq!(rig.seen.inputs.load(Ordering::SeqCst), 2);
}

/// Each room that became free was taken by them.
#[test]
fn a_large_request_has_its_turn_beside_small_ones() {
    let _watchdog = Watchdog::new("a large request", 60);
    let mut rig = Rig::new(false, false);
    let at_a_time = BYTES_HELD_MAX / (u64::from(SMALL) * COST_FACTOR);
    rig.ask(OUTPUT, 0..60, SMALL);
    rig.ask(MORE_OUTPUT, 0..1, LARGE);
    let mut finished = 0;
    loop {
        let next = rig.seen.pending.lock().unwrap().pop_front();
        let (id, queue) = next.expect("something is under way");
        if queue == MORE_OUTPUT {
            break;
        }
        finished += 1;
        assert!(finished <= 2 * at_a_time, "it starves");
        rig.bench.device.complete(vec![(id, Ok(Vec::new()))]);
    }
    assert!(finished >= at_a_time, "there was no room before");
}

#[test]
fn the_end_of_one_reset_is_not_the_end_of_another() {
    let _watchdog = Watchdog::new("two resets", 60);
    let mut rig = Rig::new(true, false);
    let device = rig.bench.device.clone();
    rig.bench.hub.hold_output(true);
    rig.ask(OUTPUT, 0..1, SMALL);
    device.capture(1);
    rig.ask(MORE_OUTPUT, 0..1, SMALL);
    device.capture(2);
    let retiring = [OUTPUT, MORE_OUTPUT].map(|queue| rig.retire(queue));
    for (epoch, reset) in (1..).zip(retiring) {
        device.release(epoch);
        reset.join().expect("the reset ends");
        let is_winding_up = rig.seen.is_winding_up.load(Ordering::SeqCst);
        assert_eq!(is_winding_up, epoch == 1, "after the first {epoch}");
    }
}

/// Nobody kicks for what waited in another queue.
#[test]
fn output_that_a_reset_makes_room_for_is_told_to_the_taps() {
    let _watchdog = Watchdog::new("room by a reset", 60);
    let mut rig = Rig::new(true, false);
    let device = rig.bench.device.clone();
    rig.bench.hub.hold_output(true);
    rig.ask(OUTPUT, 0..1, LARGE);
    rig.ask(MORE_OUTPUT, 0..1, SMALL);
    let found = Found::by(&*device);
    rig.retire(OUTPUT).join().expect("the reset ends");
    assert!(device.output_held(), "what waited is in the list");
    assert_eq!(found.count(), 1);
}

/// A vCPU runs on for a moment after its machine was given up.
#[test]
fn nothing_leaves_a_device_that_was_abandoned() {
    let mut rig = Rig::new(false, false);
    rig.bench.device.abandon();
    rig.ask(OUTPUT, 0..1, SMALL);
    assert!(rig.seen.pending.lock().unwrap().is_empty());
}
