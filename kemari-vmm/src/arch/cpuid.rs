//! Which processor the guest sees: what KVM supports, less what could not be saved or would differ between
//! hosts.
//!
//! The template is the same for all vCPUs; [`for_vcpu`] adds what distinguishes one.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::{ArchError, named};

const LEAF_MAX_BASIC: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES_INTEL: u32 = 4;
const LEAF_PERFORMANCE_MONITORING: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_XSAVE: u32 = 0xd;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_POWER: u32 = 0x8000_0007;
const LEAF_SIZES: u32 = 0x8000_0008;
const LEAF_CACHES_AMD: u32 = 0x8000_001d;
const LEAF_TOPOLOGY_AMD: u32 = 0x8000_001e;
const LEAF_TOPOLOGY_AMD_V2: u32 = 0x8000_0026;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const OSXSAVE: u32 = 1 << 27;
const APIC: u32 = 1 << 9;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;
/// Leaf 0x8000_0007, EDX: with an invariant TSC Linux prefers it to kvm-clock, which alone survives a change
/// of host whatever its TSC does.
const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 0x4000_0001, EAX (the kernel's Documentation/virt/kvm/x86/cpuid.rst): both clocks, no I/O delay, EOI
/// without exit, kicking a halted vCPU, sending IPIs, stable clock.
///
/// Left out: asynchronous page faults and steal time. They write guest memory outside of the guest's
/// execution (at every vCPU ioctl in the case of steal time), and would do so after a capture.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 24;

/// The processor that guests see, without what distinguishes one vCPU from another.
///
/// # Errors
/// If KVM refuses to list what it supports.
pub(crate) fn template(kvm: &Kvm, vcpu_count: u8) -> Result<CpuId, ArchError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(named("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    Ok(from_supported(supported.as_slice(), vcpu_count, deadline))
}

fn from_supported(supported: &[kvm_cpuid_entry2], vcpu_count: u8, deadline: bool) -> CpuId {
    let count = u32::from(vcpu_count.max(1));
    let has_topology = supported
        .iter()
        .any(|entry| entry.function == LEAF_MAX_BASIC && entry.eax >= LEAF_TOPOLOGY);
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| {
            !matches!(
                entry.function,
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_TOPOLOGY_AMD_V2
            )
        })
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, count, deadline);
    }
    if has_topology {
        entries.extend(topology(count));
    }
    entries.truncate(KVM_MAX_CPUID_ENTRIES);
    CpuId::from_entries(&entries).expect("no more entries than KVM takes")
}

fn adjust(entry: &mut kvm_cpuid_entry2, count: u32, deadline: bool) {
    match entry.function {
        LEAF_FEATURES => {
            // The local APIC's id is each vCPU's own; KVM sets OSXSAVE as the guest sets CR4.
            entry.ebx = (entry.ebx & 0xffff) | count << 16;
            entry.ecx = (entry.ecx & !(VMX | OSXSAVE | TSC_DEADLINE)) | X2APIC | HYPERVISOR;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx = if count > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        }
        // One thread a core, all cores in one package; the first caches are a core's own, the last is shared.
        LEAF_CACHES_INTEL => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14 | (count - 1).min(63) << 26;
        }
        LEAF_CACHES_AMD => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14;
        }
        // Counters are not part of the saved state.
        LEAF_PERFORMANCE_MONITORING => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_KVM_FEATURES => {
            entry.eax &= KVM_FEATURES;
            entry.edx = 0;
        }
        // State of a nested guest is not part of the saved state.
        LEAF_EXTENDED_FEATURES => entry.ecx &= !SVM,
        LEAF_POWER => entry.edx &= !INVARIANT_TSC,
        LEAF_SIZES => entry.ecx = (entry.ecx & !0xf0ff) | id_bits(count) << 12 | (count - 1),
        // One thread a core, one node.
        LEAF_TOPOLOGY_AMD => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
        _ => {}
    }
}

/// Bits of a local APIC id that number the vCPUs.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// Leaf 0xb: threads in a core (one), cores in the package, end.
fn topology(count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
        function: LEAF_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx,
        ..Default::default()
    };
    [
        level(0, 0, 1, 1 << 8),
        level(1, id_bits(count), count, 2 << 8 | 1),
        level(2, 0, 0, 2),
    ]
}

/// The template with the identity of one vCPU.
pub(crate) fn for_vcpu(template: &CpuId, index: u8) -> CpuId {
    let mut cpuid = template.clone();
    let id = u32::from(index);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => entry.ebx = (entry.ebx & 0xff_ffff) | id << 24,
            LEAF_TOPOLOGY => entry.edx = id,
            LEAF_TOPOLOGY_AMD => {
                entry.eax = id;
                entry.ebx = id & 0xff;
            }
            _ => {}
        }
    }
    cpuid
}

/// The bits of XCR0 that the processor supports; 0 if it says nothing about them.
pub(crate) fn supported_xcr0(template: &CpuId) -> u64 {
    let mut leaves = template.as_slice().iter();
    let leaf = leaves.find(|entry| entry.function == LEAF_XSAVE && entry.index == 0);
    leaf.map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
}

/// What KVM shows the guest of a vCPU; empty if the vCPU was not set up.
///
/// # Errors
/// If `KVM_GET_CPUID2` fails.
pub(crate) fn shown(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, ArchError> {
    let shown = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(named("KVM_GET_CPUID2"))?;
    // Older KVMs (Linux 6.1) do not say how many entries they wrote: the rest is zero.
    let none = kvm_cpuid_entry2::default();
    Ok(shown
        .as_slice()
        .iter()
        .filter(|entry| **entry != none)
        .copied()
        .collect())
}

/// Which features `theirs` has and `ours` lacks, as words for a message: leaf, register, bits.
pub(crate) fn missing(ours: &[kvm_cpuid_entry2], theirs: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for their in theirs {
        let our = ours
            .iter()
            .find(|our| our.function == their.function && our.index == their.index);
        for (register, mask, theirs, ours) in feature_words(their, our) {
            let lacking = theirs & mask & !ours;
            if lacking != 0 {
                missing.push(format!(
                    "leaf {:#x}.{} {register} bits {lacking:#x}",
                    their.function, their.index
                ));
            }
        }
    }
    missing
}

type FeatureWord = (&'static str, u32, u32, u32);

/// The registers of a leaf that are sets of features: name, mask, theirs, ours.
fn feature_words(their: &kvm_cpuid_entry2, our: Option<&kvm_cpuid_entry2>) -> Vec<FeatureWord> {
    let our = our.copied().unwrap_or_default();
    let eax = ("eax", u32::MAX, their.eax, our.eax);
    let ebx = ("ebx", u32::MAX, their.ebx, our.ebx);
    let ecx = ("ecx", u32::MAX, their.ecx, our.ecx);
    let edx = ("edx", u32::MAX, their.edx, our.edx);
    match (their.function, their.index) {
        // OSXSAVE follows the guest's CR4, and what is shown of the local APIC, which each vCPU has,
        // its base register.
        (LEAF_FEATURES, _) => vec![
            ("ecx", !OSXSAVE, their.ecx, our.ecx),
            ("edx", !APIC, their.edx, our.edx),
        ],
        (7, 0) => vec![ebx, ("ecx", !(1 << 4), their.ecx, our.ecx), edx],
        (7, 1) => vec![eax, edx],
        (LEAF_XSAVE, 0) => vec![eax, edx],
        (LEAF_XSAVE, 1) => vec![eax],
        (LEAF_KVM_FEATURES, _) => vec![eax],
        (LEAF_EXTENDED_FEATURES, _) => vec![ecx, edx],
        (LEAF_SIZES, _) => vec![ebx],
        _ => vec![],
    }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
