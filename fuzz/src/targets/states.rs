//! A machine's state from a peer, loaded, and gone on with: a device with its rings,
//! or a part that only KVM takes.
//!
//! A byte for the device, 16 bits for the length of its state, the state; then what a driver does, see
//! [`Driver::play`]. Bytes in memory may be written before the state is loaded: the first byte of the rest
//! says how often.

use kemari_vmm::arch::vcpu::{VcpuIdentity, VcpuState};
use kemari_vmm::arch::vm::VmState;
use kemari_vmm::state::{State, StateBlob};

use super::support::bench::{Bench, Kind};
use super::support::driver::Driver;
use super::support::tape::Tape;

/// From this one on the first byte means a state that is only decoded.
const DECODED_FROM: u8 = 0xf0;

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape::new(bytes);
    let which = tape.u8();
    let length = usize::from(tape.u16());
    let state = tape.bytes(length).to_vec();
    if which >= DECODED_FROM {
        return decode(which, state);
    }
    let bench = Bench::new(Kind::from_byte(which));
    let (kind, instance) = bench.device.identity();
    let version = bench.device.save().version;
    let blob = StateBlob {
        kind,
        instance,
        version,
        bytes: state,
    };
    let mut driver = Driver::new(bench);
    for _ in 0..tape.u8() % 8 {
        driver.write_memory(&mut tape);
    }
    if driver.bench.device.load(&blob).is_ok() {
        driver.move_on(false);
        driver.go_on();
        driver.play(&mut tape);
        driver.move_on(true);
    }
    // Refused or not: the device is there for the next one.
    driver.begin_well(0);
    assert!(!driver.bench.device.is_broken(), "a reset mends everything");
    driver.end();
}

fn decode(which: u8, bytes: Vec<u8>) {
    match which % 3 {
        0 => decode_as::<VcpuState>(bytes),
        1 => decode_as::<VmState>(bytes),
        _ => decode_as::<VcpuIdentity>(bytes),
    }
}

fn decode_as<T: State>(bytes: Vec<u8>) {
    let blob = StateBlob {
        kind: T::KIND,
        instance: 0,
        version: T::VERSION,
        bytes,
    };
    drop(blob.decode::<T>());
}

/// What each device saves in the midst of what its seeds do.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for seed in super::devices::seeds() {
        let mut tape = Tape::new(&seed);
        let which = tape.u8();
        let mut driver = Driver::new(Bench::new(Kind::from_byte(which)));
        driver.begin_well(0);
        driver.play(&mut tape);
        let state = driver.save().bytes;
        driver.end();
        if let Ok(length) = u16::try_from(state.len()) {
            let after = [0, 10, 0, 15, 16, 1];
            seeds.push([&[which][..], &length.to_le_bytes(), &state, &after].concat());
        }
    }
    seeds
}
