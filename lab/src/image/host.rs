//! The initial file system of an emulated host.

use std::path::{Path, PathBuf};

use super::{add_modules, base};
use crate::cache;
use crate::error::Result;
use crate::kernel::{Kernel, modules as modules_of};

/// What a host needs: its own devices, KVM, TAP devices and bridges.
const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "kvm_amd",
    "tun",
    "bridge",
];
/// What it takes to mount a file system over the network: inserted by `lab-nfs`,
/// since each costs time at the boot.
const NFS_MODULES: [&str; 1] = ["nfsv4"];
const INIT: &[u8] = include_bytes!("host-init.sh");
const FENCE: &[u8] = include_bytes!("host-fence.sh");
const NFS: &[u8] = include_bytes!("host-nfs.sh");

/// Makes the initial file system of a host around `agent`, a static program.
pub(crate) fn host_initramfs(kernel: &Kernel, agent: &Path) -> Result<PathBuf> {
    let modules = modules_of(kernel, &MODULES)?;
    let mut of_nfs = modules_of(kernel, &NFS_MODULES)?;
    of_nfs.retain(|module| !modules.iter().any(|other| other.name == module.name));
    let agent = cache::read(agent)?;
    let key = cache::key(&(&modules, &of_nfs, &agent, INIT, FENCE, NFS));
    cache::entry(&format!("host-{key}.cpio"), |path| {
        let mut archive = base(&modules)?;
        archive.program("/init", INIT);
        archive.program("/bin/lab-fence", FENCE);
        add_modules(&mut archive, &of_nfs, "nfs");
        archive.program("/bin/lab-nfs", NFS);
        archive.program("/bin/lab-agent", &agent);
        cache::write(path, &archive.finish())
    })
}
