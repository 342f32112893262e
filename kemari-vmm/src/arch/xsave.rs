//! The floating-point and vector state of a vCPU, as KVM's XSAVE area in standard format.

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::{ArchError, named};

/// Words in the part of the area that every KVM has.
const REGION_WORDS: usize = 1024;

/// An area as large as this VM's KVM needs it, used again at every save.
pub(crate) struct XsaveArea {
    area: Xsave,
    /// Whether KVM names the size itself (Linux 5.17 and later).
    has_xsave2: bool,
}

impl XsaveArea {
    pub(crate) fn new(vm: &VmFd) -> Result<Self, ArchError> {
        let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let extra_words = bytes
            .saturating_sub(size_of::<kvm_xsave>())
            .div_ceil(size_of::<u32>());
        let area = Xsave::new(extra_words)
            .map_err(|_| ArchError::Unfit(format!("KVM asks for {bytes} bytes of floating-point state")))?;
        Ok(Self {
            area,
            has_xsave2: bytes > 0,
        })
    }

    /// Reads the area into `words`, without the zeros at its end.
    pub(crate) fn read(&mut self, vcpu: &VcpuFd, words: &mut Vec<u32>) -> Result<(), ArchError> {
        words.clear();
        if self.has_xsave2 {
            // SAFETY: the area has as many bytes as KVM_CAP_XSAVE2 names for this VM, and no feature is
            // enabled for this process afterwards.
            unsafe { vcpu.get_xsave2(&mut self.area) }.map_err(named("KVM_GET_XSAVE2"))?;
            words.extend(self.area.as_fam_struct_ref().xsave.region);
            words.extend(self.area.as_slice());
        } else {
            words.extend(vcpu.get_xsave().map_err(named("KVM_GET_XSAVE"))?.region);
        }
        let used = words
            .iter()
            .rposition(|word| *word != 0)
            .map_or(0, |last| last + 1);
        words.truncate(used);
        Ok(())
    }

    /// Writes what [`XsaveArea::read`] has read, here or on another host.
    pub(crate) fn write(&mut self, vcpu: &VcpuFd, words: &[u32]) -> Result<(), ArchError> {
        let words_max = REGION_WORDS + self.area.as_slice().len();
        if words.len() > words_max {
            return Err(ArchError::Unfit(format!(
                "the floating-point state has {} bytes, its KVM takes {}",
                words.len() * 4,
                words_max * 4
            )));
        }
        let (head, tail) = words.split_at(words.len().min(REGION_WORDS));
        // SAFETY: only the contents are changed, not the length.
        let region = unsafe { &mut self.area.as_mut_fam_struct().xsave.region };
        fill(region, head);
        fill(self.area.as_mut_slice(), tail);
        // SAFETY: the area has the bytes that KVM reads: those of KVM_CAP_XSAVE2,
        // and at least the old structure's.
        unsafe { vcpu.set_xsave2(&self.area) }.map_err(named("KVM_SET_XSAVE"))
    }
}

/// Copies a prefix and clears the rest.
fn fill(target: &mut [u32], source: &[u32]) {
    let (head, tail) = target.split_at_mut(source.len());
    head.copy_from_slice(source);
    tail.fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_what_is_copied_nothing_is_left_of_before() {
        let mut target = [7; 4];
        fill(&mut target, &[1, 2]);
        assert_eq!(target, [1, 2, 0, 0]);
        fill(&mut target, &[]);
        assert_eq!(target, [0; 4]);
    }
}
