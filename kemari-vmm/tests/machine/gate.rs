//! The gate: held output reaches nobody; an ack lets out exactly what its capture had, with its bytes.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{DiskWatch, Tell};
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::net::Net;
use kemari_vmm::virtio::tap::TapDevice;
use vm_memory::{Bytes, GuestAddress};

use crate::support::asker::{self, Asker};
use crate::support::bench::{self, Bench, SECTOR_BYTES};
use crate::support::driver::{self, Ring};
use crate::support::network::{self, Listener, TAP};
use crate::support::resp::Client;
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Long enough for anything that would leave to be seen.
const A_WHILE: Duration = Duration::from_millis(50);

const RING: u64 = 0x1_0000;
const BUFFERS: u64 = 0x8_0000;
/// Bytes of memory for each slot's buffers.
const SLOT_BYTES: u64 = 0x1000;
const HEADER_BYTES: u32 = 12;
const TRANSMIT: u32 = 1;

/// A frame that a stack ignores and a listener recognises.
fn frame(tag: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x88, 0xb5]);
    frame.resize(60, tag);
    frame
}

struct Card {
    bench: Bench<Net>,
    ring: Ring,
    listener: Listener,
}

impl Card {
    fn new() -> Self {
        network::enter();
        let listener = Listener::new();
        let bench = Bench::new(Net::new([0x52, 0x54, 0, 1, 1, 1], false));
        let tap = TapDevice::open(TAP).expect("the TAP is there");
        bench
            .device
            .with_backend(|net| net.attach(tap))
            .expect("it is watched");
        let features = driver::agree(&*bench.device, 0);
        let ring = Ring::new(&*bench.device, bench.memory(), TRANSMIT, RING, 256, features);
        driver::go(&*bench.device);
        Self {
            bench,
            ring,
            listener,
        }
    }

    fn put(&self, slot: u16, tag: u8) -> u64 {
        let at = BUFFERS + SLOT_BYTES * u64::from(slot);
        let bytes = [vec![0; HEADER_BYTES as usize], frame(tag)].concat();
        self.bench
            .memory()
            .write_slice(&bytes, GuestAddress(at))
            .expect("inside the memory");
        at
    }

    /// Sends one packet of this content.
    fn send(&mut self, slot: u16, tag: u8) {
        let at = self.put(slot, tag);
        let head = self.ring.request(
            slot,
            &[
                (at, HEADER_BYTES, false),
                (at + u64::from(HEADER_BYTES), 60, false),
            ],
        );
        self.ring.offer(head);
        self.ring.kick(&*self.bench.device);
    }

    /// The contents of what has left since the last look.
    fn left(&self) -> Vec<u8> {
        thread::sleep(A_WHILE);
        std::iter::from_fn(|| self.listener.frame())
            .filter(|f| f[12..14] == [0x88, 0xb5])
            .map(|f| f[20])
            .collect()
    }
}

#[test]
fn an_ack_lets_out_the_packets_of_its_capture_in_order_and_no_others() {
    let _watchdog = Watchdog::new("packets at the gate", 60);
    let mut card = Card::new();
    let device = card.bench.device.clone();
    card.send(0, 1);
    assert_eq!(card.left(), [1], "without a hold output leaves at once");
    assert!(card.ring.used().is_some());

    card.bench.hub.hold_output(true);
    card.send(1, 2);
    card.send(2, 3);
    assert!(device.output_held());
    assert_eq!(device.capture(1), 2);
    assert!(!device.output_held(), "nothing waits for a capture any more");
    card.send(3, 4);
    device.capture(2);
    card.send(4, 5);
    // What the guest writes after the capture is not what leaves.
    for slot in 1..=3 {
        card.put(slot, 99);
    }
    assert!(card.left().is_empty() && card.ring.used().is_none());
    device.release(0);
    assert!(card.left().is_empty(), "an older ack releases nothing");
    device.release(1);
    assert_eq!(card.left(), [2, 3]);
    device.release(1);
    assert!(card.left().is_empty(), "an ack releases once");

    // The capture of 4 fails: the next one takes its bytes anew.
    device.uncapture(2);
    device.release(2);
    assert!(card.left().is_empty() && device.output_held());
    device.capture(3);
    device.release(3);
    assert_eq!(card.left(), [99, 5]);
    let used: Vec<u16> = std::iter::from_fn(|| card.ring.used())
        .map(|(head, _)| head / driver::CHAIN_MAX)
        .collect();
    assert_eq!(used, [1, 2, 3, 4]);

    card.send(5, 6);
    card.bench.hub.hold_output(false);
    device.release_all();
    card.send(6, 7);
    assert_eq!(card.left(), [6, 7], "with the right to act alone all leaves");
}

struct Disk {
    bench: Bench<Block>,
    ring: Ring,
    image: tempfile::NamedTempFile,
}

impl Disk {
    fn new() -> Self {
        let image = bench::image();
        let bench = bench::block_bench(&image);
        let features = driver::agree(&*bench.device, 0);
        let ring = Ring::new(&*bench.device, bench.memory(), 0, RING, 256, features);
        driver::go(&*bench.device);
        Self { bench, ring, image }
    }

    fn fill(&self, slot: u16, value: u8) -> u64 {
        let at = BUFFERS + SLOT_BYTES * u64::from(slot);
        let data = [value; SECTOR_BYTES];
        self.bench
            .memory()
            .write_slice(&data, GuestAddress(at + 16))
            .expect("inside the memory");
        at
    }

    /// Asks for a read (0) or write (1) of the slot's own sector.
    fn ask(&mut self, slot: u16, kind: u32, value: u8) {
        let at = self.fill(slot, value);
        let header = [u64::from(kind).to_le_bytes(), u64::from(slot).to_le_bytes()].concat();
        self.bench
            .memory()
            .write_slice(&header, GuestAddress(at))
            .expect("inside the memory");
        let buffers = [
            (at, 16, false),
            (at + 16, SECTOR_BYTES as u32, kind == 0),
            (at + 0x800, 1, true),
        ];
        let head = self.ring.request(slot, &buffers);
        self.ring.offer(head);
        self.ring.kick(&*self.bench.device);
    }

    fn on_image(&self, slot: usize) -> u8 {
        fs::read(self.image.path()).expect("the image")[slot * SECTOR_BYTES]
    }

    fn slot_used(&mut self) -> u16 {
        self.ring.wait_used().0 / driver::CHAIN_MAX
    }
}

#[test]
fn a_write_reaches_the_disk_after_its_ack_with_the_bytes_of_its_capture() {
    let _watchdog = Watchdog::new("writes at the gate", 60);
    let mut disk = Disk::new();
    let device = disk.bench.device.clone();
    disk.bench.hub.hold_output(true);
    disk.ask(1, 1, 7);
    disk.ask(2, 0, 0);
    assert_eq!(disk.slot_used(), 2, "the read is served past the held write");
    device.capture(1);
    disk.fill(1, 8);
    disk.ask(3, 1, 9);
    thread::sleep(A_WHILE);
    assert!(disk.ring.used().is_none());
    assert_eq!((disk.on_image(1), disk.on_image(3)), (0, 0));
    device.release(1);
    assert_eq!(disk.slot_used(), 1);
    thread::sleep(A_WHILE);
    assert_eq!((disk.on_image(1), disk.on_image(3)), (7, 0));
    device.capture(2);
    device.uncapture(2);
    disk.fill(3, 10);
    device.capture(3);
    device.release(3);
    assert_eq!(disk.slot_used(), 3);
    assert_eq!(
        disk.on_image(3),
        10,
        "the bytes are those of the capture that was acked"
    );
}

/// Lets a disk change as it likes; its flushes are output.
struct Shadowed;

impl DiskWatch for Shadowed {
    fn may_change(&self, _: &Range<u64>) -> bool {
        true
    }
    fn grown(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn prepare(&self, _: &[Range<u64>]) -> io::Result<()> {
        Ok(())
    }
    fn changed(&self, _: u64, _: &Range<u64>, _: bool) {}
    fn flush_is_output(&self) -> bool {
        true
    }
    fn flush_begins(&self, _: u64, _: Option<u64>) {}
    fn flushed(&self, _: u64, tell: Tell) {
        tell();
    }
}

/// A disk whose output is held, and what it asks for.
fn held_disk(image: &tempfile::NamedTempFile, watch: Option<Arc<dyn DiskWatch>>) -> Asker {
    let spec = BlockSpec::new("disk", false);
    let bench = Bench::new(Block::new(spec));
    let asker = Asker::on(bench, 1, 0, |block| {
        watch.into_iter().for_each(|watch| block.set_watch(watch));
        block.attach(bench::disk(image.path()))
    });
    asker.bench.hub.hold_output(true);
    asker
}

fn ask(asker: &mut Asker, slot: u16, kind: u32) {
    let data: &[u8] = if kind == asker::WRITE {
        &[7; SECTOR_BYTES]
    } else {
        &[]
    };
    asker.ask((0, slot), kind, 0, data);
    asker.kick(0);
}

fn none_is_finished(asker: &mut Asker) -> bool {
    thread::sleep(A_WHILE);
    asker.finished(0).is_none()
}

#[test]
fn a_flush_waits_for_no_ack_unless_output_before_it_does() {
    let _watchdog = Watchdog::new("flushes at the gate", 60);
    let image = bench::image();
    let mut asker = held_disk(&image, None);
    let device = asker.bench.device.clone();
    ask(&mut asker, 0, asker::FLUSH);
    assert_eq!(asker.wait(0), ((0, 0), asker::OK));
    assert!(!device.output_held(), "it asks for no sync");

    ask(&mut asker, 1, asker::WRITE);
    ask(&mut asker, 2, asker::FLUSH);
    assert!(
        none_is_finished(&mut asker),
        "the write waits, and the flush behind it"
    );
    device.capture(1);
    ask(&mut asker, 3, asker::FLUSH);
    assert!(none_is_finished(&mut asker) && device.output_held());
    device.release(1);
    let mut slots = [asker.wait(0), asker.wait(0)].map(|((_, slot), status)| (slot, status));
    slots.sort_unstable();
    assert_eq!(slots, [(1, asker::OK), (2, asker::OK)]);
    assert!(none_is_finished(&mut asker), "it came after the capture");
    device.capture(2);
    device.release(2);
    assert_eq!(asker.wait(0), ((0, 3), asker::OK));
}

#[test]
fn a_flush_that_a_watch_takes_for_output_waits_for_an_ack() {
    let _watchdog = Watchdog::new("watched flushes at the gate", 60);
    let image = bench::image();
    let mut asker = held_disk(&image, Some(Arc::new(Shadowed)));
    let device = asker.bench.device.clone();
    ask(&mut asker, 0, asker::FLUSH);
    assert!(none_is_finished(&mut asker) && device.output_held());
    device.capture(1);
    device.release(1);
    assert_eq!(asker.wait(0), ((0, 0), asker::OK));
}

#[test]
fn nothing_of_a_guest_leaves_while_its_output_is_held() {
    let _watchdog = Watchdog::new("a guest behind the gate", 60);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let listener = Listener::new();
    let mut client = Client::connect();
    client.ok("SET before 1");
    machine.pause();
    machine.dirty().start().expect("the dirty log starts");
    machine.freeze().hold_output();
    machine.resume();
    // What was released before the hold may still be under way.
    thread::sleep(A_WHILE);
    listener.count();
    let image = fs::read(rig.image.path()).expect("the image");
    let console = rig.console.text();

    client.send(&["SET", "held", "2"]).expect("the TAP takes it");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(400) {
        thread::sleep(Duration::from_millis(10));
        assert_eq!(listener.count(), 0, "a packet left the guest");
    }
    assert!(machine.output_held());
    assert!(
        fs::read(rig.image.path()).expect("the image") == image,
        "a write left the guest"
    );
    assert_eq!(rig.console.text(), console);

    // Let it out, sync by sync.
    let mut answer = None;
    for epoch in 1..2000 {
        machine.pause();
        machine.freeze().capture_output(epoch);
        machine.release(epoch);
        machine.resume();
        thread::sleep(Duration::from_millis(1));
        if !machine.output_held() && listener.count() > 0 && answer.is_none() {
            answer = Some(epoch);
        }
        if answer.is_some_and(|first| epoch > first + 20) {
            break;
        }
    }
    machine.pause();
    machine.open_gate();
    machine.resume();
    assert_eq!(client.receive().expect("the answer"), "+OK");
    client.ok("CHECK");
}
