//! Who runs the VM next knows everything that the shared disk knows.

use crate::sim::vm::{PAGES, Vm};

pub(in crate::sim) fn knows_disk(disk: &[(u64, u64); PAGES], vm: &Vm) -> Result<(), String> {
    match disk.iter().position(|(seq, _)| *seq > vm.seq) {
        None => Ok(()),
        Some(block) => Err(format!(
            "block {block} has write {}, but the VM runs from {}",
            disk[block].0, vm.seq
        )),
    }
}
