//! What this host's KVM can do for the VM, found by measuring.

use kemari_vmm::arch::preflight::{self, KvmAbility, Preflight};

use super::Finding;
use crate::config::Config;
use crate::side::kernel;

/// Looks at KVM and at the kernel to boot.
pub fn kvm(config: &Config) -> Vec<Finding> {
    let kernel = kernel(&config.machine);
    let (what, name) = match config.machine.firmware {
        Some(_) => (
            "firmware",
            "name a PC's BIOS of at most 256 KiB in [machine], or install the package seabios",
        ),
        None => (
            "kernel",
            "name a bzImage, a vmlinux with a PVH note or a bare guest in [machine]",
        ),
    };
    let mut findings = Vec::new();
    let needs_ring0 = match &kernel {
        Ok(kernel) => {
            findings.push(Finding::ok(format!(
                "the {what} {} can be booted",
                config.machine.begins_with().display()
            )));
            !kernel.is_bare()
        }
        Err(error) => {
            findings.push(Finding::error(sentence(error), name));
            false
        }
    };
    let measured = preflight::open().and_then(|kvm| preflight::measure(&kvm));
    findings.push(match measured {
        Err(error) => Finding::error(sentence(&error), "see what /dev/kvm is on this host"),
        Ok(measured) if measured.ability == KvmAbility::Full => {
            Finding::ok(format!("KVM runs any guest ({})", speed(&measured)))
        }
        Ok(measured) if needs_ring0 => Finding::error(
            format!(
                "this KVM emulates kernel code, so that Linux does not run in it ({})",
                speed(&measured)
            ),
            "use a host with VT-x or AMD-V, or boot the bare guest",
        ),
        Ok(measured) => Finding::ok(format!(
            "this KVM emulates kernel code, but runs bare guests natively ({})",
            speed(&measured)
        )),
    });
    findings
}

fn speed(measured: &Preflight) -> String {
    let millions = measured.ring0_instructions_per_second as f64 / 1e6;
    format!("{millions:.1} million privileged-mode instructions a second")
}

fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
