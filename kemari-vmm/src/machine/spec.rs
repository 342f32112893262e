//! What a machine is made of, and what it tells whoever runs it.

use std::sync::Arc;

use crate::boot::Kernel;
use crate::dirty::DirtySource;
use crate::release::CONSOLE_BYTES_MAX;
use crate::virtio::block::BlockSpec;
use crate::virtio::budget::DEVICE_STATE_BYTES_MAX;
use crate::virtio::rate::RateSpec;

/// Most vCPUs of a machine.
pub(crate) const VCPUS_MAX: u8 = 8;

/// A network card of a machine.
#[derive(Clone, Debug)]
pub struct NetSpec {
    /// Names the card and its event channels, as `net0`.
    pub id: String,
    /// Its address.
    pub mac: [u8; 6],
    /// Whether checksums and segmentation are offered to the guest.
    pub offload: bool,
    /// What it may receive, and what it may transmit. The guest sees nothing of it.
    pub rate: RateSpec,
}

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Names the disk and its event channels, as `blk0`.
    pub id: String,
    /// What the guest sees of it.
    pub block: BlockSpec,
    /// What it carries out at most. The guest sees nothing of it.
    pub rate: RateSpec,
}

/// What a machine is made of. Both hosts' machines are made from equal ones.
#[derive(Clone)]
pub struct MachineSpec {
    /// Guest memory in bytes, in whole MiB.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// What is booted, now and after each reset.
    pub kernel: Arc<Kernel>,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest sees them.
    pub nets: Vec<NetSpec>,
    /// Whether there is an entropy device.
    pub rng: bool,
    /// How KVM tells which pages the guest has written. The guest sees nothing of it.
    pub dirty_source: DirtySource,
}

/// Longest states of what is not a virtio device, in bytes: with room to spare for their encoding.
const CONSOLE_STATE_BYTES_MAX: usize = CONSOLE_BYTES_MAX + (4 << 10);
const VM_STATE_BYTES_MAX: usize = 16 << 10;
const VCPU_STATE_BYTES_MAX: usize = 64 << 10;

impl MachineSpec {
    /// Most bytes that the states of all components take together, whatever the guest does.
    pub fn state_bytes_max(&self) -> usize {
        let devices = self.disks.len() + self.nets.len() + usize::from(self.rng);
        devices * DEVICE_STATE_BYTES_MAX
            + usize::from(self.vcpus) * VCPU_STATE_BYTES_MAX
            + CONSOLE_STATE_BYTES_MAX
            + VM_STATE_BYTES_MAX
    }
}

/// Something that whoever runs the machine must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest's power-off leaves now: the machine is to be stopped.
    PowerOff,
    /// The guest wants a reset: call [`Machine::reset`] when no capture waits for its ack.
    Reset,
    /// A disk could not do something: the machine is to be paused until [`super::Machine::retry_disks`].
    DiskTrouble {
        /// The disk.
        disk: String,
        /// What failed and why.
        reason: String,
        /// Whether another host should go on, if one can.
        fail_over: bool,
    },
    /// The guest has dirtied as many pages at once as KVM keeps account of:
    /// the dirty log should be looked at.
    MuchDirty,
    /// The guest has done something after which it cannot go on, on this host or another: it is at its end.
    GuestFailed(String),
    /// KVM failed: this host cannot go on with the machine.
    Failed(String),
}

/// Takes the machine's events; it must not block, and it may be called by any thread.
pub(crate) type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;
