//! The initial file system of an emulated host.

use std::path::{Path, PathBuf};

use super::base;
use crate::cache;
use crate::error::Result;
use crate::kernel::{Kernel, modules};

/// What a host needs: its own devices, KVM, TAP devices and bridges.
const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "kvm_amd",
    "tun",
    "bridge",
];
const INIT: &[u8] = include_bytes!("host-init.sh");
const FENCE: &[u8] = include_bytes!("host-fence.sh");

/// Makes the initial file system of a host around `agent`, a static program.
pub(crate) fn host_initramfs(kernel: &Kernel, agent: &Path) -> Result<PathBuf> {
    let modules = modules(kernel, &MODULES)?;
    let agent = cache::read(agent)?;
    let key = cache::key(&(&modules, &agent, INIT, FENCE));
    cache::entry(&format!("host-{key}.cpio"), |path| {
        let mut archive = base(&modules)?;
        archive.program("/init", INIT);
        archive.program("/bin/lab-fence", FENCE);
        archive.program("/bin/lab-agent", &agent);
        cache::write(path, &archive.finish())
    })
}
