//! SeaBIOS (Debian's package `seabios`) from the reset vector on, and what it boots. Where KVM emulates kernel code, it
//! emulates this too: a boot takes some seconds there.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::boot::Kernel;
use kemari_vmm::machine::{Machine, MachineEvent};

use crate::support::boot_sector;
use crate::support::pair::{Pair, sync};
use crate::support::random::Random;
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

const SEABIOS: &str = "/usr/share/seabios/bios-microvm.bin";
/// How long a boot may take: some seconds where nobody else wants the processors.
const BOOT_TIME_MAX: Duration = Duration::from_secs(300);
/// How many takeovers there are in the course of one.
const TAKEOVERS: usize = 8;

/// A rig whose machines boot their disk.
fn rig(vcpus: u8) -> Rig {
    let mut rig = Rig::new("", 64);
    let firmware = Kernel::open_firmware(Path::new(SEABIOS)).expect("SeaBIOS is firmware");
    rig.spec.kernel = Arc::new(firmware);
    rig.spec.vcpus = vcpus;
    rig
}

fn bootable_rig(vcpus: u8) -> Rig {
    let rig = rig(vcpus);
    boot_sector::write_to(rig.image.as_file());
    rig
}

/// How often the guest has said this.
fn said(rig: &Rig, text: &str) -> usize {
    rig.console.text().matches(text).count()
}

fn wait_until_said(rig: &Rig, text: &str, count: usize) {
    let begin = Instant::now();
    while said(rig, text) < count {
        assert!(begin.elapsed() < BOOT_TIME_MAX, "{}", rig.console.text());
        thread::sleep(Duration::from_millis(1));
    }
    eprintln!("{text:?}: after {:?}", begin.elapsed());
}

fn type_in(machine: &Machine, byte: u8) {
    while machine.type_in(&[byte]) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn firmware_boots_a_disk_and_again_when_the_guest_reboots() {
    let _watchdog = Watchdog::new("a boot from the disk", 700);
    let rig = bootable_rig(2);
    let machine = rig.running();
    wait_until_said(&rig, &boot_sector::said(), 1);
    type_in(&machine, b'r');
    assert_eq!(rig.event(), MachineEvent::Reset);
    machine.pause();
    machine.reset().expect("firmware begins again");
    machine.resume();
    wait_until_said(&rig, &boot_sector::said(), 2);
    assert_eq!(said(&rig, "SeaBIOS"), 2, "{}", rig.console.text());
}

#[test]
fn takeovers_in_the_midst_of_firmware_and_boot_sector() {
    let _watchdog = Watchdog::new("takeovers of firmware", 500);
    let mut random = Random::new(181);
    let rig = bootable_rig(1);
    let mut machine = rig.running();
    for _ in 0..TAKEOVERS {
        thread::sleep(Duration::from_millis(random.below(1500)));
        let mut pair = Pair::protect(&rig, machine);
        for _ in 0..1 + random.below(4) {
            sync(&mut pair, &mut random);
        }
        machine = pair.take_over();
        machine.resume();
    }
    // What the console has said at a takeover it may have said twice, so it is asked again.
    let begin = Instant::now();
    while said(&rig, &boot_sector::said()) == 0 {
        assert!(begin.elapsed() < BOOT_TIME_MAX, "{}", rig.console.text());
        type_in(&machine, b'a');
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_disk_without_a_boot_loader_is_told_at_the_console() {
    let _watchdog = Watchdog::new("a disk that boots nothing", 400);
    let rig = rig(1);
    let _machine = rig.running();
    wait_until_said(&rig, "No bootable device.", 1);
    assert_eq!(rig.event_within(Duration::ZERO), None);
}
