//! The machine's disks: their images, who watches them, and what captured states ask of them.

use std::sync::Arc;

use super::parts::find;
use super::{Machine, MachineError};
use crate::devices::Device;
use crate::disk::{Disk, DiskConfig, DiskError, DiskWatch, Operation, Server};
use crate::state::{StateBlob, StateError};
use crate::virtio::block::Block;

/// What a captured state asks of a disk.
pub struct DiskOperation {
    /// Which disk, in the order of [`super::MachineSpec::disks`].
    pub disk: usize,
    /// Number of the request, rising over the life of the disk.
    pub id: u64,
    /// What is to be done; never a read.
    pub operation: Operation,
}

impl Machine {
    /// Opens a disk's image. See [`Block::attach`].
    pub fn attach_disk(&self, id: &str, config: &DiskConfig) -> Result<(), MachineError> {
        self.attach_open_disk(id, Disk::open(config)?)
    }

    /// The same with an image that is open already.
    pub fn attach_open_disk(&self, id: &str, disk: Disk) -> Result<(), MachineError> {
        Ok(find(&self.parts.disks, id)?.with_backend(|block| block.attach(disk))?)
    }

    /// See [`Block::mute`].
    pub fn mute_disk(&self, id: &str) -> Result<(), MachineError> {
        find(&self.parts.disks, id)?.with_backend(Block::mute);
        Ok(())
    }

    /// From the next [`Machine::attach_disk`] on, `watch` is told of all changes of the disk.
    pub fn watch_disk(&self, id: &str, watch: Arc<dyn DiskWatch>) -> Result<(), MachineError> {
        find(&self.parts.disks, id)?.with_backend(|block| block.set_watch(watch));
        Ok(())
    }

    /// The image that is attached already has all outputs up to request `request`, and durably. After a load:
    /// they are finished without I/O.
    pub fn note_applied(&self, id: &str, request: u64) -> Result<(), MachineError> {
        find(&self.parts.disks, id)?.with_backend(|block| block.note_applied(request));
        Ok(())
    }

    /// Tries again what the disks could not do; returns how many requests that were.
    pub fn retry_disks(&self) -> usize {
        self.servers().map(|server| server.retry()).sum()
    }

    /// From now on the guest is told of whatever its disks cannot do: nobody will try it again.
    pub fn report_all_disk_errors(&self) {
        self.servers().for_each(|server| server.set_always_reports(true));
    }

    /// Closes the images of these disks of a machine that was halted: when it returns, nothing here does
    /// anything to them any more. See [`Server::close`].
    ///
    /// # Errors
    /// If the kernel may yet write to one by itself.
    pub fn close_disks(&self, ids: &[String]) -> Result<(), MachineError> {
        for id in ids {
            let disk = find(&self.parts.disks, id)?;
            let Some(server) = disk.with_backend(|block| block.server().cloned()) else {
                continue;
            };
            server.close().map_err(|source| DiskError::Close {
                path: server.disk().path().to_owned(),
                source,
            })?;
            disk.with_backend(Block::detach);
        }
        Ok(())
    }

    fn servers(&self) -> impl Iterator<Item = Arc<Server>> + '_ {
        self.parts
            .disks
            .iter()
            .filter_map(|(_, disk)| disk.with_backend(|block| block.server().cloned()))
    }

    /// Looks which images have grown, and tells the guest. Returns the disks and their new sizes in bytes.
    ///
    /// # Errors
    /// If an image is smaller than the guest knows it, or cannot be looked at.
    pub fn look_at_disk_sizes(&self) -> Result<Vec<(String, u64)>, MachineError> {
        let mut grown = Vec::new();
        for (id, disk) in &self.parts.disks {
            let bytes = disk.with_backend(Block::look_at_size)?;
            grown.extend(bytes.map(|bytes| (id.clone(), bytes)));
        }
        Ok(grown)
    }

    /// A disk's image, once it is attached.
    pub fn disk_image(&self, id: &str) -> Result<Option<Arc<Disk>>, MachineError> {
        Ok(find(&self.parts.disks, id)?.with_backend(|block| block.image()))
    }

    /// What serves a disk, once its image is attached.
    pub fn disk_server(&self, id: &str) -> Result<Option<Arc<Server>>, MachineError> {
        Ok(find(&self.parts.disks, id)?.with_backend(|block| block.server().cloned()))
    }

    /// Waits until every released request of the disks is finished, and makes it durable. The machine must be
    /// paused: a running guest could go on making more of them.
    pub fn drain_disks(&self) {
        self.parts.disks.iter().for_each(|(_, disk)| disk.drain());
    }

    /// Whether a disk that was drained could not be flushed.
    pub fn disk_may_lack(&self, id: &str) -> Result<bool, MachineError> {
        Ok(find(&self.parts.disks, id)?.with_backend(|block| block.may_lack()))
    }

    /// The outputs that captured states list for the disks, in the order of each disk's list, with their
    /// bytes as they lie in this machine's memory. Of each disk those whose number is above what `applied`
    /// says.
    ///
    /// # Errors
    /// If the states do not fit this machine, or an output lies outside the disk or the memory.
    pub fn disk_operations(
        &self,
        states: &[StateBlob],
        applied: impl Fn(usize) -> Option<u64>,
    ) -> Result<Vec<DiskOperation>, MachineError> {
        let mut operations = Vec::new();
        for (index, (id, disk)) in self.parts.disks.iter().enumerate() {
            let blob = states
                .iter()
                .find(|blob| (blob.kind, blob.instance) == disk.identity())
                .ok_or_else(|| StateError::Mismatch(format!("the disk {id} is missing")))?;
            let (requests, state) = disk.saved_requests(blob)?;
            for request in requests {
                if applied(index).is_some_and(|applied| request.id() <= applied) {
                    continue;
                }
                let operation = state
                    .check(request.body(), self.memory())
                    .and_then(|()| Block::operation(request.body(), None, self.memory()))
                    .map_err(|fault| StateError::Mismatch(format!("{id}: {fault}")))?;
                if let Some(operation) = operation
                    && !matches!(operation, Operation::Read { .. })
                {
                    operations.push(DiskOperation {
                        disk: index,
                        id: request.id(),
                        operation,
                    });
                }
            }
        }
        Ok(operations)
    }
}
