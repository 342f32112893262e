//! A state that is tried is not loaded: what passes the trial loads, and the trial leaves nothing behind.

use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::arch::preflight;
use kemari_vmm::arch::vcpu::VcpuState;
use kemari_vmm::machine::Machine;
use kemari_vmm::memory::{self, PAGE_BYTES};
use kemari_vmm::state::{StateBlob, StateKind};

use crate::support::pair::copy_all;
use crate::support::random::Random;
use crate::support::resp::Client;
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// A machine in the middle of its life, stopped, and its state.
fn working(rig: &Rig) -> (Machine, Vec<StateBlob>) {
    let machine = rig.running();
    Client::connect().ok("BLKTEST 20 8");
    machine.pause();
    let states = save(&machine);
    (machine, states)
}

fn save(machine: &Machine) -> Vec<StateBlob> {
    let mut states = Vec::new();
    let frozen = machine.freeze();
    frozen.save_state(&mut states).expect("the state is saved");
    states
}

fn vcpu(states: &mut [StateBlob]) -> &mut StateBlob {
    let is_vcpu = |blob: &&mut StateBlob| blob.kind == StateKind::Vcpu;
    states.iter_mut().find(is_vcpu).expect("there is a processor")
}

/// The time stamp counter in a processor's state.
fn tsc(states: &mut [StateBlob]) -> u64 {
    let state: VcpuState = vcpu(states).decode().expect("a good state");
    let text = format!("{state:?}");
    let at = text.find("msrs: [(16, ").expect("it is the first register") + 12;
    let digits: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[test]
fn a_flipped_bit_that_passes_the_trial_loads() {
    const FLIPS: usize = 400;
    let _watchdog = Watchdog::new("flipped bits", 120);
    let mut random = Random::new(45);
    let rig = Rig::new("", 64);
    let (_machine, states) = working(&rig);
    let standby = rig.machine();
    standby.try_on(&states).expect("a good state");
    let (mut decoded, mut refused) = (0, 0);
    for _ in 0..FLIPS {
        let mut flipped = states.clone();
        let bytes = &mut vcpu(&mut flipped).bytes;
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        let part = vcpu(&mut flipped).clone();
        if standby.check_parts(&[part], &states).is_err() {
            continue;
        }
        decoded += 1;
        match standby.try_on(&flipped) {
            Ok(()) => standby.load(&flipped, false).expect("it has passed the trial"),
            Err(_) => {
                refused += 1;
                standby.load(&flipped, false).expect_err("it was refused");
            }
        }
    }
    eprintln!("{decoded} of {FLIPS} decode, {refused} of them do not load");
    assert!(refused > 0 && refused < decoded);
    // What was refused has left nothing behind.
    standby.try_on(&states).expect("a good state");
    standby.load(&states, false).expect("a good state");
}

/// `number` as postcard encodes it.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Writing the register by which a guest asks for the wall clock makes KVM write it into the guest's memory.
#[test]
fn a_trial_writes_no_wall_clock_into_the_guests_memory() {
    const WALL_CLOCK: u64 = 0x4b56_4d00;
    const PLACE: u64 = 0x20_0000;
    let _watchdog = Watchdog::new("a wall clock", 120);
    let rig = Rig::without_network("", 64);
    let mut states = save(&rig.machine());
    // In the list of registers: its index, and its value, which is none.
    let none = [varint(WALL_CLOCK), vec![0]].concat();
    let wanted = [varint(WALL_CLOCK), varint(PLACE)].concat();
    let bytes = &mut vcpu(&mut states).bytes;
    let at = bytes.windows(none.len()).position(|bytes| bytes == none);
    let at = at.expect("this KVM has such a register, and it is none");
    bytes.splice(at..at + none.len(), wanted);
    let standby = rig.machine();
    let is_written = || {
        let mut page = [0; PAGE_BYTES];
        memory::read_page(standby.memory(), PLACE / PAGE_BYTES as u64, &mut page).expect("a page");
        page != [0; PAGE_BYTES]
    };
    standby.try_on(&states).expect("a good state");
    assert!(!is_written(), "the trial has written");
    standby.load(&states, false).expect("a good state");
    assert!(is_written(), "a load writes it");
}

#[test]
fn a_trial_moves_no_time_and_writes_no_memory() {
    let _watchdog = Watchdog::new("a trial", 120);
    let rig = Rig::new("", 64);
    let (machine, mut states) = working(&rig);
    let before = tsc(&mut states);
    let standby = rig.machine();
    copy_all(machine.memory(), standby.memory());
    let memory = || -> Vec<[u8; PAGE_BYTES]> {
        let page = |gfn| {
            let mut page = [0; PAGE_BYTES];
            memory::read_page(standby.memory(), gfn, &mut page).expect("a page of the guest");
            page
        };
        (0..(64 << 20) / PAGE_BYTES as u64).map(page).collect()
    };
    let copied = memory();
    standby.try_on(&states).expect("a good state");
    assert!(memory() == copied, "the trial has written");
    drop(standby);
    // Had the trial set the counter, it would have gone on from there. A look that took long says nothing.
    const GAP: Duration = Duration::from_millis(700);
    const LOOKS: u32 = 3;
    let kvm = preflight::open().expect("a usable /dev/kvm");
    let found = preflight::measure(&kvm).expect("it can be measured");
    let gap_ticks = u64::from(found.tsc_khz) * GAP.as_millis() as u64;
    let ticks = |standby: &Machine| {
        let begin = Instant::now();
        standby.load(&states, false).expect("a good state");
        let mut again = save(standby);
        (tsc(&mut again).wrapping_sub(before), begin.elapsed())
    };
    for _ in 0..LOOKS {
        let (never_tried, standby) = (rig.machine(), rig.machine());
        standby.try_on(&states).expect("a good state");
        thread::sleep(GAP);
        let ((fresh, one_look), (tried, other_look)) = (ticks(&never_tried), ticks(&standby));
        eprintln!("{fresh} ticks in {one_look:?}, {tried} after a trial in {other_look:?}");
        if one_look.max(other_look) < GAP / 4 {
            assert!(tried < fresh + gap_ticks / 2, "it went on during the gap");
            return;
        }
    }
    panic!("this host is too busy to look at a counter");
}

#[test]
fn a_machine_goes_on_from_a_state_that_was_tried_again_and_again() {
    let _watchdog = Watchdog::new("trials", 120);
    let rig = Rig::new("", 64);
    let (machine, first) = working(&rig);
    let standby = rig.machine();
    standby.try_on(&first).expect("a good state");
    let mut client = {
        machine.resume();
        Client::connect()
    };
    for _ in 0..20 {
        client.ok("BLKTEST 5 8");
        machine.pause();
        standby.try_on(&save(&machine)).expect("a good state");
        machine.resume();
    }
    machine.pause();
    let last = save(&machine);
    copy_all(machine.memory(), standby.memory());
    let begin = Instant::now();
    const TRIALS: u32 = 100;
    for _ in 0..TRIALS {
        standby.try_on(&last).expect("a good state");
    }
    eprintln!("a trial takes {:?}", begin.elapsed() / TRIALS);
    machine.halt();
    drop(machine);
    standby.load(&last, false).expect("a good state");
    rig.plug(&standby);
    standby.open_gate();
    standby.wake();
    standby.resume();
    client.ok("CHECK");
    client.ok("BLKTEST 10 8");
}
