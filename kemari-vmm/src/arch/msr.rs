//! Model-specific registers by name (Intel SDM, volume 4; AMD APM, volume 2, appendix A; the kernel's
//! Documentation/virt/kvm/x86/msr.rst), and the list of those that are saved.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{ArchError, named};

pub(crate) const TSC: u32 = 0x10;
pub(crate) const KVM_WALL_CLOCK_OLD: u32 = 0x11;
pub(crate) const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
pub(crate) const TSC_ADJUST: u32 = 0x3b;
pub(crate) const SPEC_CTRL: u32 = 0x48;
pub(crate) const SYSENTER_CS: u32 = 0x174;
pub(crate) const SYSENTER_ESP: u32 = 0x175;
pub(crate) const SYSENTER_EIP: u32 = 0x176;
pub(crate) const MISC_ENABLE: u32 = 0x1a0;
pub(crate) const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
pub(crate) const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
pub(crate) const PAT: u32 = 0x277;
pub(crate) const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
pub(crate) const STAR: u32 = 0xc000_0081;
pub(crate) const LSTAR: u32 = 0xc000_0082;
pub(crate) const CSTAR: u32 = 0xc000_0083;
pub(crate) const SYSCALL_MASK: u32 = 0xc000_0084;
pub(crate) const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub(crate) const TSC_AUX: u32 = 0xc000_0103;
pub(crate) const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
pub(crate) const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
pub(crate) const KVM_ASYNC_PF: u32 = 0x4b56_4d02;
pub(crate) const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
pub(crate) const KVM_PV_EOI: u32 = 0x4b56_4d04;

pub(crate) const MISC_ENABLE_FAST_STRING: u64 = 1;
pub(crate) const MTRR_ENABLED: u64 = 1 << 11;
pub(crate) const MTRR_WRITE_BACK: u64 = 6;

/// Registers of Hyper-V's interface, which is not offered.
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// Registers that a trial leaves out: no value of theirs is refused, and writing them does more than setting
/// a register. KVM takes a TSC that is close to what it expects for an attempt to make several agree and
/// keeps its own, so that a later load would not get what it writes; a deadline starts a timer; the wall
/// clock's make KVM write into guest memory.
pub(crate) const NOT_TRIED: [u32; 4] = [TSC, TSC_DEADLINE, KVM_WALL_CLOCK, KVM_WALL_CLOCK_OLD];

/// Registers of nested virtualisation, which is not offered.
const VMX: std::ops::Range<u32> = 0x480..0x4a0;

/// The registers that are a vCPU's state on this KVM: those that it lists, and the memory types that it does
/// not list, as far as they can be read and take their own value back: one that does not is a property of the
/// host. The TSC comes first and its deadline last, as a restore needs them.
///
/// To be called once, on a vCPU that has not run.
pub(crate) fn saved(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Msrs, ArchError> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(named("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices: Vec<u32> = listed.as_slice().to_vec();
    indices.extend(MTRR_VARIABLE.chain(MTRR_FIXED).chain([MTRR_DEFAULT_TYPE, PAT]));
    indices.retain(|index| !HYPER_V.contains(index) && !VMX.contains(index));
    in_order(&mut indices);
    let mut entries = Vec::new();
    for index in indices {
        if is_state(vcpu, index)? {
            entries.push(entry(index, 0));
        }
    }
    list(&entries)
}

/// Each once, in the order in which they are restored.
fn in_order(indices: &mut Vec<u32>) {
    indices.sort_unstable_by_key(|index| (*index == TSC_DEADLINE, *index != TSC, *index));
    indices.dedup();
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, ArchError> {
    Msrs::from_entries(entries)
        .map_err(|_| ArchError::Unfit(format!("{} model-specific registers", entries.len())))
}

fn is_state(vcpu: &VcpuFd, index: u32) -> Result<bool, ArchError> {
    let mut msrs = list(&[entry(index, 0)])?;
    if vcpu.get_msrs(&mut msrs).map_err(named("KVM_GET_MSRS"))? == 0 {
        return Ok(false);
    }
    // Writing the TSC would move it.
    Ok(index == TSC || vcpu.set_msrs(&msrs).map_err(named("KVM_SET_MSRS"))? == 1)
}

/// Reads all of the list.
pub(crate) fn read(vcpu: &VcpuFd, msrs: &mut Msrs) -> Result<(), ArchError> {
    let done = vcpu.get_msrs(msrs).map_err(named("KVM_GET_MSRS"))?;
    complete("KVM_GET_MSRS", done, msrs)
}

/// Writes all of these (index, value).
pub(crate) fn write(vcpu: &VcpuFd, values: impl Iterator<Item = (u32, u64)>) -> Result<(), ArchError> {
    let msrs = list(&values.map(|(index, data)| entry(index, data)).collect::<Vec<_>>())?;
    let done = vcpu.set_msrs(&msrs).map_err(named("KVM_SET_MSRS"))?;
    complete("KVM_SET_MSRS", done, &msrs)
}

/// Writes those that this KVM has. It stops at one that it does not have: go on behind it.
pub(crate) fn write_existing(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), ArchError> {
    let mut rest = values;
    while !rest.is_empty() {
        let msrs = list(
            &rest
                .iter()
                .map(|&(index, data)| entry(index, data))
                .collect::<Vec<_>>(),
        )?;
        let done = vcpu.set_msrs(&msrs).map_err(named("KVM_SET_MSRS"))?;
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

fn complete(ioctl: &'static str, done: usize, msrs: &Msrs) -> Result<(), ArchError> {
    match msrs.as_slice().get(done) {
        None => Ok(()),
        Some(entry) => Err(ArchError::MsrsPartly {
            ioctl,
            done,
            count: msrs.as_slice().len(),
            msr: entry.index,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not every KVM has a deadline that it could be seen by.
    #[test]
    fn the_tsc_is_restored_first_and_its_deadline_last() {
        let mut indices = vec![LSTAR, TSC_DEADLINE, 1, STAR, TSC, PAT, TSC_DEADLINE, TSC, 1];
        in_order(&mut indices);
        assert_eq!(indices, [TSC, 1, PAT, STAR, LSTAR, TSC_DEADLINE]);
    }

    #[test]
    fn what_was_done_only_in_part_is_an_error_that_names_where_it_ended() {
        let msrs = list(&[entry(TSC, 0), entry(STAR, 0), entry(LSTAR, 0)]).unwrap();
        assert!(complete("KVM_SET_MSRS", 3, &msrs).is_ok());
        for (done, index) in [(0, TSC), (1, STAR), (2, LSTAR)] {
            let error = complete("KVM_SET_MSRS", done, &msrs).unwrap_err();
            let ArchError::MsrsPartly {
                done: said,
                count: 3,
                msr,
                ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((said, msr), (done, index));
        }
    }
}
