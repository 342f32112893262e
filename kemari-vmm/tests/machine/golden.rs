//! The bytes of saved states: a peer of the same version, and an image's record,
//! must go on to understand them.

use std::sync::Arc;

use kemari_vmm::arch::layout::PM_CONTROL;
use kemari_vmm::arch::layout::abi::{KICK_PORT, POWER_OFF_VALUE, SLEEP_CONTROL_PORT};
use kemari_vmm::devices::Device;
use kemari_vmm::devices::fw_cfg::{DATA_PORT, FwCfg, Items, SELECTOR_PORT};
use kemari_vmm::devices::pm::Pm;
use kemari_vmm::devices::ports::Ports;
use kemari_vmm::devices::serial::Console;
use kemari_vmm::state::{StateBlob, StateKind};
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::rng::Rng;

use crate::support::asker::{Asker, DISCARD, FLUSH, WRITE};
use crate::support::bench::{self, Bench};
use crate::support::rig::Rig;
use crate::support::tiny_firmware;
use crate::support::watchdog::Watchdog;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("digits"), 16).expect("digits"))
        .collect()
}

/// A device saves these bytes, and one like it takes them and saves them again.
fn assert_saves(device: &dyn Device, other: &dyn Device, identity: (StateKind, u16, u16), expected: &str) {
    let saved = device.save();
    assert_eq!((saved.kind, saved.instance, saved.version), identity);
    assert_eq!(hex(&saved.bytes), expected, "{identity:?}");
    let (kind, instance, version) = identity;
    let blob = StateBlob {
        kind,
        instance,
        version,
        bytes: bytes(expected),
    };
    other.load(&blob).expect("a state of before loads");
    assert_eq!(other.save(), blob);
}

#[test]
fn a_power_off_in_each_stage() {
    let hub = Bench::new(Rng).hub;
    let ports = || Ports::new(hub.clone(), Box::new(|_| {}));
    let identity = (StateKind::Power, 0, 1);
    let (waiting, gone) = (ports(), ports());
    assert_saves(&*waiting, &*ports(), identity, "000000");
    gone.write(SLEEP_CONTROL_PORT.into(), &[POWER_OFF_VALUE]);
    assert_saves(&*gone, &*ports(), identity, "01020000");
    hub.hold_output(true);
    waiting.write(SLEEP_CONTROL_PORT.into(), &[POWER_OFF_VALUE]);
    assert_saves(&*waiting, &*ports(), identity, "01000000");
    waiting.capture(300);
    waiting.write(KICK_PORT.into(), &[0]);
    waiting.want_reset();
    assert_saves(&*waiting, &*ports(), identity, "0101ac02010100");
}

#[test]
fn console_output_that_two_captures_have() {
    let hub = Bench::new(Rng).hub;
    let console = || Console::new(hub.clone(), 4, Box::new(std::io::sink()));
    let write = |console: &Arc<Console>, text: &[u8]| text.iter().for_each(|byte| console.write(0, &[*byte]));
    let busy = console();
    hub.hold_output(true);
    write(&busy, b"abc");
    busy.capture(7);
    busy.release(7);
    write(&busy, b"de");
    busy.capture(8);
    write(&busy, b"f");
    busy.capture(300);
    write(&busy, b"g");
    let identity = (StateKind::Serial, 0, 1);
    let expected = "0c000001036008b00000046465666703020805ac0206";
    assert_saves(&*busy, &*console(), identity, expected);
}

#[test]
fn firmware_in_the_midst_of_a_file() {
    let device = || {
        let mut items = Items::default();
        items.file("etc/golden", vec![1; 400]);
        FwCfg::new(items)
    };
    let fw_cfg = device();
    let fw_cfg: &dyn Device = &*fw_cfg;
    let identity = (StateKind::FirmwareConfiguration, 0, 1);
    assert_saves(fw_cfg, &*device(), identity, "0000");
    fw_cfg.write(SELECTOR_PORT.into(), &0x20u16.to_le_bytes());
    fw_cfg.read(DATA_PORT.into(), &mut [0; 300]);
    assert_saves(fw_cfg, &*device(), identity, "20ac02");
    // One that this machine does not have.
    fw_cfg.write(SELECTOR_PORT.into(), &0x8003u16.to_le_bytes());
    assert_saves(fw_cfg, &*device(), identity, "83800200");
}

#[test]
fn fixed_registers_of_acpi() {
    let hub = Bench::new(Rng).hub;
    let device = || Pm::new(Ports::new(hub.clone(), Box::new(|_| {})));
    let pm = device();
    let pm: &dyn Device = &*pm;
    let identity = (StateKind::AcpiRegisters, 0, 1);
    assert_saves(pm, &*device(), identity, "0000");
    pm.write(2, &0x120u16.to_le_bytes());
    pm.write(PM_CONTROL.into(), &0x1401u16.to_le_bytes());
    assert_saves(pm, &*device(), identity, "a0028128");
}

#[test]
fn a_disk_with_requests_on_its_list() {
    let _watchdog = Watchdog::new("the bytes of a disk's state", 60);
    let image = bench::image();
    let spec = || BlockSpec::new("golden", false);
    let mut disk = Asker::new(spec(), bench::disk(image.path()));
    disk.bench.hub.hold_output(true);
    disk.ask((0, 0), WRITE, 3, &[7; 2048]);
    disk.ask((0, 1), FLUSH, 0, &[]);
    disk.kick(0);
    disk.bench.device.capture(1);
    disk.ask_zero((0, 2), DISCARD, 8, 16, 0);
    disk.kick(0);
    let other = Bench::with_memory(Block::new(spec()), bench::copy(disk.memory()));
    let identity = (StateKind::Virtio, 0, 2);
    let expected = "0f0101c4cc81801300000001030001400180800480a00480c0040300000001030280a0\
                    40800880a8408008809040010004020080f040020008040810010080d0410306676f6c64656e008004018004";
    assert_saves(&*disk.bench.device, &*other.device, identity, expected);
}

/// Kind, instance and version of each part of a rig's machine.
fn parts(rig: &Rig) -> Vec<(u16, u16, u16)> {
    let machine = rig.machine();
    machine.boot().expect("it boots");
    let mut states = Vec::new();
    let saved = machine.freeze().save_state(&mut states);
    saved.expect("the state is saved");
    states
        .iter()
        .map(|blob| (blob.kind as u16, blob.instance, blob.version))
        .collect()
}

/// Console and power, a disk, a card and random numbers.
const DEVICES: [(u16, u16, u16); 5] = [(4, 0, 1), (5, 0, 1), (6, 0, 2), (6, 1, 2), (6, 2, 2)];
/// A vCPU and the VM.
const OF_KVM: [(u16, u16, u16); 3] = [(3, 0, 1), (1, 0, 1), (2, 0, 1)];

#[test]
fn every_part_of_a_machine_has_its_kind_and_version() {
    let _watchdog = Watchdog::new("kinds of state", 60);
    let rig = Rig::without_network("", 64);
    assert_eq!(parts(&rig), [&DEVICES[..], &OF_KVM].concat());
}

#[test]
fn a_machine_with_firmware_has_two_more_parts() {
    let _watchdog = Watchdog::new("kinds of state with firmware", 60);
    let mut rig = Rig::without_network("", 64);
    rig.spec.kernel = tiny_firmware::kernel();
    let firmware = [(7, 0, 1), (8, 0, 1)];
    assert_eq!(parts(&rig), [&DEVICES[..], &firmware, &OF_KVM].concat());
}
