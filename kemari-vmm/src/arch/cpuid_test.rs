use super::*;

fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut found = cpuid
        .as_slice()
        .iter()
        .filter(|entry| entry.function == function && entry.index == index);
    let entry = *found.next().expect("leaf");
    assert!(found.next().is_none(), "leaf {function:#x} twice");
    entry
}

fn supported() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0, 0xd, 0, 0, 0),
        leaf(1, 0x800f12, 0x0702_0800, VMX | OSXSAVE | 1, HTT | 1),
        leaf(0xa, 1, 2, 3, 4),
        leaf(0xb, 1, 2, 0x100, 7),
        leaf(LEAF_KVM_FEATURES, u32::MAX, 0, 0, 0xffff),
        leaf(LEAF_EXTENDED_FEATURES, 0, 0, SVM | 1, 3),
        leaf(LEAF_POWER, 0, 0, 0, INVARIANT_TSC),
        leaf(LEAF_SIZES, 0x3028, 0, 0x7007, 0),
    ]
}

#[test]
fn what_cannot_be_saved_is_hidden() {
    let cpuid = from_supported(&supported(), 1, true);
    let features = find(&cpuid, 1, 0);
    assert_eq!(features.ecx, 1 | X2APIC | TSC_DEADLINE | HYPERVISOR);
    assert_eq!(features.edx, 1);
    assert_eq!(find(&cpuid, LEAF_EXTENDED_FEATURES, 0).ecx, 1);
    assert_eq!(find(&cpuid, LEAF_POWER, 0).edx, 0);
    assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
    let kvm = find(&cpuid, LEAF_KVM_FEATURES, 0);
    assert_eq!(
        (kvm.eax & (1 << 5 | 1 << 4), kvm.edx),
        (0, 0),
        "steal time and asynchronous faults"
    );
    assert_ne!(kvm.eax & (1 << 3), 0, "kvm-clock");
}

#[test]
fn without_a_deadline_timer_none_is_offered() {
    let cpuid = from_supported(&supported(), 1, false);
    assert_eq!(find(&cpuid, 1, 0).ecx & TSC_DEADLINE, 0);
}

#[test]
fn every_vcpu_has_its_own_id_in_one_package() {
    let template = from_supported(&supported(), 3, true);
    let cpuid = for_vcpu(&template, 2);
    let features = find(&cpuid, 1, 0);
    assert_eq!(features.ebx >> 24, 2);
    assert_eq!((features.ebx >> 16) & 0xff, 3);
    assert_ne!(features.edx & HTT, 0);
    let cores = find(&cpuid, 0xb, 1);
    assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
    assert_eq!(find(&cpuid, 0xb, 0).ebx, 1);
    assert_eq!(find(&cpuid, LEAF_SIZES, 0).ecx, 2 << 12 | 2);
}

#[test]
fn missing_features_are_named() {
    let ours = from_supported(&supported(), 1, true);
    assert_eq!(missing(ours.as_slice(), ours.as_slice()), Vec::<String>::new());
    let mut theirs = ours.as_slice().to_vec();
    theirs[1].edx |= 1 << 25 | APIC;
    theirs[1].ecx |= OSXSAVE;
    assert_eq!(
        missing(ours.as_slice(), &theirs),
        ["leaf 0x1.0 edx bits 0x2000000"]
    );
    theirs.push(leaf(7, 0, 1 << 5, 0, 0));
    assert_eq!(missing(ours.as_slice(), &theirs).len(), 2);
}

#[test]
fn the_supported_vector_state_is_found() {
    let mut entries = supported();
    assert_eq!(supported_xcr0(&from_supported(&entries, 1, true)), 0);
    entries.push(leaf(LEAF_XSAVE, 0xe7, 0x340, 0x988, 1));
    assert_eq!(supported_xcr0(&from_supported(&entries, 1, true)), 1 << 32 | 0xe7);
}
