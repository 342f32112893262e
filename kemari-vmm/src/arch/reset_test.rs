//! That time begins anew with the guest.

use std::io::{self, Write};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::*;
use crate::arch::preflight;

const HZ: i128 = 2_600_000_000;

/// KVM's rule (`kvm_synchronize_tsc`): the last value written, when, and the offset that it led to.
struct KvmsRule {
    last: (i128, i128),
    offset: i128,
}

impl KvmsRule {
    /// The offset of a vCPU's TSC, to which this is written now.
    fn write(&mut self, now: i128, ticks: i128) -> i128 {
        let (written, at) = self.last;
        let expected = written + now - at;
        if ticks != 0 && (ticks - expected).abs() >= HZ {
            self.offset = ticks - now;
        }
        self.last = (ticks, now);
        self.offset
    }
}

#[test]
fn the_tsc_of_each_vcpu_begins_near_zero_and_all_agree() {
    // Right after the machine was made, within a second, and after a long life; each vCPU follows the
    // one before at once, or only after two seconds.
    for life in [0, HZ / 2, 1000 * HZ] {
        for pause in [0, HZ / 2, 2 * HZ] {
            let mut now = 12_345 * HZ;
            let mut kvm = KvmsRule {
                last: (0, now),
                offset: -now,
            };
            now += life;
            // Two reboots, one right after the other.
            for _ in 0..2 {
                let begin = now;
                let offsets: Vec<i128> = (0..3)
                    .map(|index| {
                        now += pause;
                        let values = tsc_begins(index).iter();
                        let offsets = values.map(|&ticks| kvm.write(now, ticks.into()));
                        offsets.last().expect("something is written")
                    })
                    .collect();
                assert_eq!(offsets, [offsets[0]; 3]);
                assert!((-2 * HZ..=1).contains(&(begin + offsets[0])), "{life} {pause}");
            }
        }
    }
}

#[test]
fn on_kvm_the_tsc_of_all_vcpus_begins_anew_with_the_guest() {
    /// As if the guest had lived for some minutes.
    const AHEAD: u64 = 1 << 40;
    /// Some seconds.
    const TICKS_MAX: u64 = 1 << 36;
    let kvm = preflight::open().expect("this test needs a usable /dev/kvm; skip it with `--skip on_kvm`");
    let template = cpuid::template(&kvm, 2).expect("CPUID");
    let vm = create_vm(&kvm).expect("a VM");
    create_irqchip(&vm).expect("interrupt controllers");
    let vcpus = [0, 1].map(|index| vm.create_vcpu(index).expect("a vCPU"));
    for (index, vcpu) in (0..).zip(&vcpus) {
        setup_vcpu(vcpu, &template, index, None).expect("as after power-on");
        msr::write(vcpu, [(msr::TSC, AHEAD)].into_iter()).expect("a TSC");
    }
    let tsc = |vcpu: &VcpuFd| {
        let entry = kvm_msr_entry {
            index: msr::TSC,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).unwrap();
        msr::read(vcpu, &mut msrs).expect("it is there");
        msrs.as_slice()[0].data
    };
    if !(AHEAD..AHEAD + TICKS_MAX).contains(&tsc(&vcpus[0])) {
        let _ = writeln!(
            io::stderr(),
            "NOT RUN: a TSC that begins anew; this KVM shows its guests the host's"
        );
        return;
    }
    // Twice within a second, too.
    for _ in 0..2 {
        for (index, vcpu) in (0..).zip(&vcpus) {
            setup_vcpu(vcpu, &template, index, Some(&Entry::ResetVector)).expect("an entry");
        }
        let found = [0, 1, 0].map(|index| tsc(&vcpus[index]));
        assert!(found.is_sorted() && found[2] < TICKS_MAX, "{found:?}");
    }
}
