//! A second machine that goes on from a moment of a first one, in memory that is copied as it is touched.

use std::io::sink;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::machine::{Machine, MachineEvent};
use kemari_vmm::memory::{self, LazyCopy, PAGE_BYTES};
use kemari_vmm::state::StateBlob;

use crate::support::resp::Client;
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Longest wait for anything that takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

struct Second {
    machine: Machine,
    copy: LazyCopy,
    events: Receiver<MachineEvent>,
}

impl Second {
    /// Over the memory of a machine that stands still; its disk is there and never answers.
    fn of(rig: &Rig, first: &Machine, states: &[StateBlob]) -> Self {
        let (told, events) = channel();
        let events_sink = Arc::new(move |event| drop(told.send(event)));
        let machine = Machine::new(rig.spec.clone(), Box::new(sink()), events_sink).expect("a machine");
        let copy = LazyCopy::begin(first.memory(), machine.memory(), u64::MAX).expect("a copy");
        machine
            .load(states, false)
            .expect("the state of an equal machine");
        machine.mute_disk("blk0").expect("it has this disk");
        machine.open_gate();
        Self {
            machine,
            copy,
            events,
        }
    }
}

fn moment_of(machine: &Machine) -> Vec<StateBlob> {
    machine.pause();
    let mut states = Vec::new();
    machine.freeze().save_state(&mut states).expect("a state");
    states
}

#[test]
fn a_second_machine_runs_from_a_moment_of_the_first_which_knows_nothing_of_it() {
    let _watchdog = Watchdog::new("a second machine", 60);
    let rig = Rig::new("", 64);
    let first = rig.running();
    Client::connect().ok("CHECK");
    let states = moment_of(&first);
    let second = Second::of(&rig, &first, &states);
    let due = second
        .machine
        .vcpus_due(&states)
        .expect("they are its own states");
    assert!(due.len() == 1 && due[0].started, "{due:?}");
    let watch = second.machine.watch_vcpus().expect("this KVM counts");
    let before = watch.counts().expect("the counts");
    second.machine.wake();
    second.machine.resume();
    let begin = Instant::now();
    loop {
        let now = watch.counts().expect("the counts");
        if now[0].exits > before[0].exits && now[0].interrupts > before[0].interrupts {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "it does not run: {before:?}, {now:?}");
        thread::sleep(Duration::from_millis(1));
    }
    second.machine.halt();
    assert_eq!(second.machine.shut_downs(), 0);
    assert!(second.machine.broken_devices().is_empty());
    assert!(second.events.try_recv().is_err(), "it has something to tell");
    let copied_bytes = second.copy.copied_bytes();
    assert!(copied_bytes > 0 && !second.copy.has_failed());
    assert!(copied_bytes < rig.spec.memory_bytes / 2, "nearly all was copied");
    drop(second);
    first.resume();
    Client::connect().ok("CHECK");
}

#[test]
fn a_guest_whose_memory_is_gone_shuts_its_processor_down() {
    let _watchdog = Watchdog::new("a guest without memory", 60);
    let rig = Rig::new("", 64);
    let first = rig.running();
    let states = moment_of(&first);
    let second = Second::of(&rig, &first, &states);
    for gfn in memory::all_pages(second.machine.memory()) {
        memory::write_page(second.machine.memory(), gfn, &[0; PAGE_BYTES]).expect("a page of the guest");
    }
    second.machine.resume();
    let event = second
        .events
        .recv_timeout(PATIENCE)
        .expect("it has something to tell");
    let is_seen = match &event {
        MachineEvent::Reset => second.machine.shut_downs() == 1,
        MachineEvent::GuestFailed(_) => true,
        _ => false,
    };
    assert!(
        is_seen,
        "{event:?}, {} times shut down",
        second.machine.shut_downs()
    );
    second.machine.halt();
    drop(second);
    first.resume();
    Client::connect().ok("CHECK");
}
