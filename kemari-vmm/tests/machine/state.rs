//! Saved state: saved, loaded and saved again it is equal; damaged it is refused, or loads without harm.

use std::thread;
use std::time::Duration;

use kemari_vmm::arch::vcpu::VcpuState;
use kemari_vmm::arch::vm::VmState;
use kemari_vmm::machine::Machine;
use kemari_vmm::state::{StateBlob, StateKind};

use crate::support::pair::copy_all;
use crate::support::random::Random;
use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Index of the time stamp counter among the MSRs, of its deadline, and of its offset.
const CLOCK_MSRS: [&str; 3] = ["(16, ", "(1760, ", "(59, "];

/// A machine stopped in the middle of its work, with requests held and captured, and its state.
fn busy_states(rig: &Rig, random: &mut Random) -> (Machine, Vec<StateBlob>) {
    let machine = rig.running();
    let load = Load::start(2);
    let worker = thread::spawn(|| {
        let mut client = Client::connect();
        (0..3).for_each(|_| client.ok("BLKTEST 100 32"));
    });
    thread::sleep(Duration::from_millis(50 + random.below(50)));
    machine.pause();
    machine.freeze().hold_output();
    machine.resume();
    // Work piles up behind the gate.
    thread::sleep(Duration::from_millis(20));
    machine.pause();
    machine.freeze().capture_output(1);
    machine.resume();
    thread::sleep(Duration::from_millis(5));
    machine.pause();
    let states = save(&machine);
    machine.open_gate();
    machine.resume();
    worker.join().expect("the guest answers");
    load.stop();
    machine.pause();
    (machine, states)
}

fn save(machine: &Machine) -> Vec<StateBlob> {
    let mut states = Vec::new();
    machine
        .freeze()
        .save_state(&mut states)
        .expect("the state is saved");
    states
}

fn blob(states: &[StateBlob], kind: StateKind, instance: u16) -> &StateBlob {
    states
        .iter()
        .find(|blob| (blob.kind, blob.instance) == (kind, instance))
        .expect("every machine has it")
}

/// A vCPU's state as text, without what goes on while it stands still.
fn without_time(blob: &StateBlob) -> String {
    let state: VcpuState = blob.decode().expect("a good state");
    let mut text = format!("{state:?}");
    for msr in CLOCK_MSRS {
        while let Some(at) = text.find(msr) {
            let end = at + text[at..].find(')').expect("a pair ends");
            text.replace_range(at..end, "(clock");
        }
    }
    // The local APIC's current count (register 0x390) runs with the clock.
    let at = text
        .find("regs: [")
        .map(|at| at + 7)
        .expect("the local APIC's page");
    let end = at + text[at..].find(']').expect("the page ends");
    let mut bytes: Vec<&str> = text[at..end].split(", ").collect();
    for byte in &mut bytes[0x390..0x394] {
        *byte = "count";
    }
    let page = bytes.join(", ");
    text.replace_range(at..end, &page);
    text
}

#[test]
fn what_is_loaded_is_what_was_saved() {
    let _watchdog = Watchdog::new("saved state", 120);
    let mut random = Random::new(31);
    let rig = Rig::new("", 64);
    let (machine, states) = busy_states(&rig, &mut random);
    let standby = rig.machine();
    standby
        .load(&states, false)
        .expect("the state of an equal machine");
    let again = save(&standby);
    assert_eq!(again.len(), states.len());
    for (one, other) in states.iter().zip(&again) {
        let name = format!("{:?} {}", one.kind, one.instance);
        assert_eq!(
            (one.kind, one.instance, one.version),
            (other.kind, other.instance, other.version)
        );
        match one.kind {
            // What was set last is compared; the rest of it is clocks.
            StateKind::Vcpu => assert_eq!(without_time(one), without_time(other), "{name}"),
            StateKind::Vm => {
                // Interrupt controllers are in the front part: two 8259s, then the I/O APIC.
                let chips = 2 * 16 + 216;
                assert_eq!(one.bytes[..chips], other.bytes[..chips], "{name}");
            }
            _ => assert!(one.bytes == other.bytes, "{name}"),
        }
    }
    // A second load into the same machine gives the same again.
    standby
        .load(&states, false)
        .expect("the state of an equal machine");
    assert!(blob(&save(&standby), StateKind::Virtio, 0) == blob(&states, StateKind::Virtio, 0));
    drop(machine);
}

#[test]
fn a_changed_part_that_could_not_be_loaded_is_refused_when_it_comes() {
    let _watchdog = Watchdog::new("damaged parts", 60);
    let rig = Rig::without_network("", 64);
    let states = save(&rig.machine());
    let standby = rig.machine();
    standby.try_on(&states).expect("the state of an equal machine");
    let refusal = |part: StateBlob| {
        let name = format!("{:?} {}", part.kind, part.instance);
        let result = standby.check_parts(&[part], &states);
        (result.err().map(|error| error.to_string()), name)
    };
    for part in &states {
        let (error, name) = refusal(part.clone());
        assert_eq!(error, None, "{name}");
        let mut torn = part.clone();
        torn.bytes.truncate(torn.bytes.len() - 1);
        let (error, name) = refusal(torn);
        assert!(error.is_some(), "{name} is cut off");
        let mut newer = part.clone();
        newer.version += 1;
        let (error, name) = refusal(newer);
        assert!(error.is_some_and(|error| error.contains("has version")), "{name}");
        let mut another = part.clone();
        another.instance += 40;
        let (error, name) = refusal(another);
        assert!(
            error.is_some_and(|error| error.contains("was not in it before")),
            "{name}"
        );
    }
    standby
        .load(&states, false)
        .expect("what was refused has left nothing behind");
}

#[test]
fn a_state_of_another_kind_version_or_machine_is_refused_with_the_reason() {
    let _watchdog = Watchdog::new("foreign state", 60);
    let rig = Rig::without_network("", 64);
    let states = save(&rig.machine());
    let standby = rig.machine();
    standby.try_on(&states).expect("the state of an equal machine");
    let refused = |change: &dyn Fn(&mut Vec<StateBlob>), sentence: &str| {
        let mut changed = states.clone();
        change(&mut changed);
        for result in [standby.try_on(&changed), standby.load(&changed, false)] {
            match result {
                Ok(()) if sentence.is_empty() => {}
                Ok(()) => panic!("loaded, instead of: {sentence}"),
                Err(error) => {
                    assert!(
                        !sentence.is_empty() && error.to_string().contains(sentence),
                        "{error} / {sentence}"
                    );
                }
            }
        }
    };
    refused(&|_| {}, "");
    for index in 0..states.len() {
        // A device's version is found when it is loaded.
        let mut changed = states.clone();
        changed[index].version += 1;
        let found = changed[index].version;
        let (kind, instance) = (states[index].kind, states[index].instance);
        for result in [standby.try_on(&changed), standby.load(&changed, false)] {
            let error = result.expect_err("another version").to_string();
            assert!(
                error.contains(&format!("the state of {kind:?} {instance} has version {found}")),
                "{error}"
            );
        }
        refused(&|states| states[index].instance += 40, "is missing");
        refused(&|states| drop(states.remove(index)), "is missing");
        let other = if kind == StateKind::Serial {
            StateKind::Power
        } else {
            StateKind::Serial
        };
        let mut changed = states.clone();
        changed[index].kind = other;
        assert!(
            standby.load(&changed, false).is_err(),
            "{kind:?} {instance} as {other:?}"
        );
    }
    refused(&|states| states.push(states[0].clone()), "parts instead of");

    // Another machine: a serial number, a card, the number of devices.
    let mut other = Rig::without_network("", 64);
    other.spec.disks[0].block.serial = "another".into();
    let error = other
        .machine()
        .load(&states, false)
        .expect_err("another serial number")
        .to_string();
    assert!(
        error.contains("blk0: another serial number") && error.contains("[[disk]]"),
        "{error}"
    );
    let mut other = Rig::without_network("", 64);
    other.spec.nets[0].mac[5] ^= 1;
    let error = other
        .machine()
        .load(&states, false)
        .expect_err("another address")
        .to_string();
    assert!(error.contains("another MAC address"), "{error}");
    let mut other = Rig::without_network("", 64);
    other.spec.rng = false;
    let error = other
        .machine()
        .load(&states, false)
        .expect_err("more devices")
        .to_string();
    assert!(error.contains("parts instead of"), "{error}");
}

/// A peer that sends rubbish inside a good frame.
#[test]
fn a_damaged_state_is_refused_or_does_no_harm() {
    const SEED: u64 = 32;
    const DAMAGES: usize = 1_000;
    let _watchdog = Watchdog::new("damaged state", 120);
    let mut random = Random::new(SEED);
    let rig = Rig::new("", 64);
    let (machine, states) = busy_states(&rig, &mut random);
    let mut loaded = 0;
    let mut standby = rig.machine();
    for _ in 0..DAMAGES {
        let mut damaged = states.clone();
        let index = random.below(damaged.len() as u64) as usize;
        let bytes = &mut damaged[index].bytes;
        if bytes.is_empty() {
            continue;
        }
        match random.below(4) {
            0 => bytes.truncate(random.below(bytes.len() as u64) as usize),
            1 => bytes.extend_from_slice(&random.next().to_le_bytes()),
            // Near the front are the lengths and the stages.
            2 => {
                let at = random.below(bytes.len().min(48) as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            _ => {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        let is_loaded = standby.load(&damaged, random.percent(50)).is_ok();
        loaded += usize::from(is_loaded);
        if is_loaded && random.percent(10) {
            // It is believed: what a takeover would do with it, without an image and a cable. It is not run.
            copy_all(machine.memory(), standby.memory());
            standby.open_gate();
            standby.wake();
            standby.halt();
            standby = rig.machine();
        } else if damaged[index].kind == StateKind::VcpuIdentity {
            // It now shows another processor, and must not be used again.
            standby = rig.machine();
        }
    }
    eprintln!("{loaded} of {DAMAGES} damaged states were loaded");
    assert!(loaded > 100 && loaded < DAMAGES);
    // The machine they came from, and one that has seen them all, are as good as before.
    let fresh = rig.machine();
    fresh.load(&states, false).expect("the good state still loads");
}

/// The guest's clock, as KVM has it.
fn clock_ns(states: &[StateBlob]) -> u64 {
    let vm: VmState = blob(states, StateKind::Vm, 0).decode().expect("its own state");
    let text = format!("{vm:?}");
    let (_, rest) = text.split_once("clock_ns: ").expect("it has a clock");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[test]
fn the_guests_clock_goes_on_by_the_time_that_has_passed() {
    let _watchdog = Watchdog::new("a clock that goes on", 120);
    let rig = Rig::without_network("", 64);
    let machine = rig.machine();
    machine.boot().expect("the bare guest boots");
    let states = save(&machine);
    let passed = Duration::from_millis(500);
    thread::sleep(passed);
    let next = rig.machine();
    next.load(&states, true).expect("a state of such a machine");
    let advanced_ns = clock_ns(&save(&next)) - clock_ns(&states);
    assert!(u128::from(advanced_ns) >= passed.as_nanos(), "{advanced_ns} ns");
}
