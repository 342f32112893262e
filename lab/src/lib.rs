//! The lab: places where hosts lose their power and their links on command, for tests and for the demo.
//!
//! There are two flavours, with the same three networks ([`Network`]) and the same address plan:
//!
//! * [`LocalNet`]: every host is a network namespace on this machine; programs started in them use this
//!   machine's KVM. Up in some tens of milliseconds; for the bare guest.
//! * [`Lab`]: every host is an emulated x86 server with a KVM of its own (QEMU's TCG with nested AMD-V), that
//!   boots Debian's kernel; for Linux guests where this machine's KVM cannot run one. Killing its QEMU is a
//!   power cut.
//!
//! Both need root. Nothing of them outlives the process that made them, however it ends: namespaces are held
//! by file descriptors, not by names, and every process carries a parent-death signal.

pub mod agent;
pub mod build;
mod cache;
mod control_group;
mod descriptors;
mod emulated;
mod error;
mod etcd;
mod fence;
mod host;
mod image;
mod kernel;
mod localnet;
mod netns;
mod network;
mod nfs;
mod packages;
mod process;
mod qmp;
mod scratch;
mod tsc;
mod volatile;

pub use control_group::{LittleMemory, Tasks};
pub use descriptors::{Descriptors, TICKS_PER_S, processor_ticks};
pub use emulated::{CLOCK_STEP, Lab, LabConfig};
pub use error::{Error, Result};
pub use etcd::Etcd;
pub use host::{Host, Output};
pub use image::{BootDisk, DiskCopy, GuestImage, GuestRoot, Service, boot_disk, guest_image, make_ext4};
pub use kernel::{Kernel, cloud_kernel};
pub use localnet::{LocalHost, LocalNet};
pub use netns::Netns;
pub use network::{
    NETMASK_BITS, Network, OUTSIDE_CONTROL, OUTSIDE_GUESTS, control_address, guest_address,
    replication_address,
};
pub use nfs::Nfs;
pub use packages::ensure_packages;
pub use process::Process;
pub use scratch::scratch_dir;
pub use volatile::{Behaviour, Loss, VolatileDisk};
