//! SeaBIOS (Debian's package `seabios`) from the reset vector on, and what it boots. Where KVM emulates
//! kernel code, it emulates this too: a boot takes some seconds there.

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
use crate::support::tiny_firmware;
use crate::support::watchdog::Watchdog;

const SEABIOS: &str = "/usr/share/seabios/bios-microvm.bin";
/// How long a boot may take: some seconds where nobody else wants the processors.
const BOOT_TIME_MAX: Duration = Duration::from_secs(120);
/// How many takeovers there are, ...
const TAKEOVERS: usize = 8;
/// ... and how long it goes on at most between two of them.
const TAKEOVER_AFTER_MAX: Duration = Duration::from_millis(1500);

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

/// Waits until it has; how long that took.
fn wait_until_said(rig: &Rig, text: &str, count: usize) -> Duration {
    let begin = Instant::now();
    while said(rig, text) < count {
        assert!(begin.elapsed() < BOOT_TIME_MAX, "{}", rig.console.text());
        thread::sleep(Duration::from_millis(1));
    }
    eprintln!("{text:?}: after {:?}", begin.elapsed());
    begin.elapsed()
}

fn boot_again(machine: &Machine) {
    machine.pause();
    machine.reset().expect("firmware begins again");
    machine.resume();
}

fn type_in(machine: &Machine, byte: u8) {
    while machine.type_in(&[byte]) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn firmware_boots_a_disk_and_again_when_the_guest_reboots() {
    let _watchdog = Watchdog::new("a boot from the disk", 450);
    let rig = bootable_rig(2);
    let machine = rig.running();
    wait_until_said(&rig, &boot_sector::said(), 1);
    type_in(&machine, b'r');
    assert_eq!(rig.event_within(BOOT_TIME_MAX), Some(MachineEvent::Reset));
    boot_again(&machine);
    wait_until_said(&rig, &boot_sector::said(), 2);
    assert_eq!(said(&rig, "SeaBIOS"), 2, "{}", rig.console.text());
}

#[test]
fn takeovers_in_the_midst_of_firmware_and_boot_sector() {
    let _watchdog = Watchdog::new("takeovers of firmware", 500);
    let mut random = Random::new(181);
    let rig = bootable_rig(1);
    let mut machine = rig.running();
    let boot = wait_until_said(&rig, &boot_sector::said(), 1).min(TAKEOVER_AFTER_MAX);
    let mut heard = 0;
    for _ in 0..TAKEOVERS {
        // Where it has booted meanwhile it begins anew: on a fast host too takeovers are in the midst of
        // that.
        let now = said(&rig, &boot_sector::said());
        if now > heard {
            heard = now;
            boot_again(&machine);
        }
        thread::sleep(boot.mul_f64(random.below(100) as f64 / 100.0));
        let mut pair = Pair::protect(&rig, machine);
        for _ in 0..1 + random.below(4) {
            sync(&mut pair, &mut random);
        }
        machine = pair.take_over();
        machine.resume();
    }
    // It may have said all before the last takeover, so it is asked again.
    let before = said(&rig, &boot_sector::said());
    let begin = Instant::now();
    while said(&rig, &boot_sector::said()) == before {
        assert!(begin.elapsed() < BOOT_TIME_MAX, "{}", rig.console.text());
        // While firmware begins nobody takes it.
        machine.type_in(b"a");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn nobody_writes_firmware_below_4_gib_and_a_guest_that_below_1_mib() {
    let _watchdog = Watchdog::new("tiny firmware", 60);
    let mut rig = rig(1);
    rig.spec.kernel = tiny_firmware::kernel();
    let _machine = rig.running();
    let begin = Instant::now();
    while rig.console.text().len() < tiny_firmware::SAID.len() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{}",
            rig.console.text()
        );
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rig.console.text(), tiny_firmware::SAID);
}

#[test]
fn a_disk_without_a_boot_loader_is_told_at_the_console() {
    let _watchdog = Watchdog::new("a disk that boots nothing", 200);
    let rig = rig(1);
    let _machine = rig.running();
    // Its last character, a full stop, may come minutes later (see the boot sector).
    wait_until_said(&rig, "No bootable device", 1);
    assert_eq!(rig.event_within(Duration::ZERO), None);
}
