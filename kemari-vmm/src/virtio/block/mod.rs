//! virtio-blk: a disk on a file or block device of the host (virtio 1.2, section 5.2).

mod config;
mod request;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};

use super::segment::Segments;
use super::{Backend, Chain, Completion, Completions, GuestFault, Nature, QueueRole, QueueSpec, Submission};
use crate::disk::{Disk, DiskError, DiskJob, Operation};
use crate::memory::Memory;
use crate::watch::{DiskWatch, Watched};

use request::Limits;
pub use request::{BlockRequest, Kind};

/// Bytes of a sector, the unit of virtio-blk's addresses.
pub const SECTOR_BYTES: u64 = 512;

/// Most data buffers of one request: a full queue of descriptors less header and status.
const SEGMENTS_MAX: u32 = 254;

/// Most data of one request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// Most sectors of one discard or write-zeroes, which has one range.
const ZERO_SECTORS_MAX: u32 = (REQUEST_BYTES_MAX / SECTOR_BYTES) as u32;

/// Most queues of a disk: one for each vCPU that a machine may have.
pub const QUEUES_MAX: u16 = 8;

/// The queues by number, with their names behind the disk's.
static QUEUES: [QueueSpec; QUEUES_MAX as usize] = [
    queue(""),
    queue(".1"),
    queue(".2"),
    queue(".3"),
    queue(".4"),
    queue(".5"),
    queue(".6"),
    queue(".7"),
];

const fn queue(suffix: &'static str) -> QueueSpec {
    QueueSpec {
        suffix,
        entries_max: 256,
        role: QueueRole::Requests,
    }
}

/// What of a disk the guest sees, the same on every host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// Serial number; the guest sees the first 20 bytes.
    pub serial: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Bytes of a logical block: 512 or 4096. Requests are whole blocks.
    pub block_bytes: u32,
    /// Number of queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
}

impl BlockSpec {
    /// A disk with one queue and blocks of a sector.
    pub fn new(serial: &str, read_only: bool) -> Self {
        Self {
            serial: serial.into(),
            read_only,
            block_bytes: SECTOR_BYTES as u32,
            queues: 1,
        }
    }
}

/// A disk.
pub struct Block {
    spec: BlockSpec,
    capacity_sectors: u64,
    completions: Option<Weak<dyn Completions>>,
    worker: Option<(Sender<DiskJob>, Arc<Disk>)>,
    watch: Option<Arc<dyn DiskWatch>>,
    /// Between the requests and the worker, if somebody watches.
    watched: Option<Arc<Watched>>,
    /// Outputs up to this number are on the image already: they were applied before this machine took over.
    applied: Option<u64>,
}

/// What of a disk is neither transport nor queue nor request.
#[derive(Serialize, Deserialize)]
pub struct BlockState {
    spec: BlockSpec,
    capacity_sectors: u64,
}

impl Block {
    /// A disk whose image is not opened yet.
    pub fn new(spec: BlockSpec) -> Self {
        Self {
            spec,
            capacity_sectors: 0,
            completions: None,
            worker: None,
            watch: None,
            watched: None,
            applied: None,
        }
    }

    /// From the next [`Block::attach`] on, `watch` is told of all changes.
    pub fn set_watch(&mut self, watch: Arc<dyn DiskWatch>) {
        self.watch = Some(watch);
    }

    /// The image has all outputs up to request `id` already, and durably: they are finished without I/O.
    pub fn note_applied(&mut self, id: u64) {
        self.applied = Some(id);
    }

    /// The image, once it is attached.
    pub fn image(&self) -> Option<Arc<Disk>> {
        self.worker.as_ref().map(|(_, disk)| disk.clone())
    }

    /// Opens the image behind the disk: `disk` from here on serves the requests. The capacity must be the one that the
    /// guest already knows, if it knows one.
    pub fn attach(&mut self, disk: Disk) -> Result<(), DiskError> {
        let sectors = disk.bytes() / SECTOR_BYTES;
        if self.capacity_sectors != 0 && self.capacity_sectors != sectors {
            return Err(DiskError::Size {
                path: disk.path().into(),
                found_bytes: sectors * SECTOR_BYTES,
                expected_bytes: self.capacity_sectors * SECTOR_BYTES,
            });
        }
        self.capacity_sectors = sectors;
        let (sender, receiver) = channel();
        let disk = Arc::new(disk);
        if let Some(completions) = &self.completions {
            let completions = match &self.watch {
                Some(watch) => {
                    let (worker, path) = (sender.clone(), disk.path().to_owned());
                    let forward = Box::new(move |job| worker.send(job).is_ok());
                    let watched = Watched::start(watch.clone(), completions.clone(), forward)
                        .map_err(|source| DiskError::Open { path, source })?;
                    let between: Weak<Watched> = Arc::downgrade(&watched);
                    self.watched = Some(watched);
                    between
                }
                None => completions.clone(),
            };
            disk.clone().serve(receiver, completions)?;
        }
        self.worker = Some((sender, disk));
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            read_only: self.spec.read_only,
            block_bytes: self.spec.block_bytes,
            capacity_sectors: self.capacity_sectors,
        }
    }

    /// What of a request is to be done with the image; none if it does not concern the image.
    ///
    /// # Errors
    /// If its data do not lie in the guest's memory.
    pub fn operation(
        request: &BlockRequest,
        data: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Option<Operation>, GuestFault> {
        Ok(Some(match request.kind {
            Kind::Read { sector } => Operation::Read {
                offset: sector * SECTOR_BYTES,
                bytes: request.data.len() as usize,
            },
            Kind::Write { sector } => Operation::Write {
                offset: sector * SECTOR_BYTES,
                data: data.map_or_else(|| request.data.read(memory), Ok)?,
            },
            Kind::Zero {
                sector,
                sectors,
                unmap,
            } => Operation::Zero {
                offset: sector * SECTOR_BYTES,
                bytes: u64::from(sectors) * SECTOR_BYTES,
                unmap,
            },
            Kind::Flush => Operation::Flush,
            Kind::GetId | Kind::Refused(_) => return Ok(None),
        }))
    }

    fn send(&self, job: DiskJob) -> bool {
        match (&self.watched, &self.worker) {
            (Some(watched), _) => watched.submit(job),
            (None, Some((worker, _))) => worker.send(job).is_ok(),
            (None, None) => false,
        }
    }

    fn answer(request: &BlockRequest, status: u32, written: u32, memory: &Memory) -> Result<u32, GuestFault> {
        Segments::at(request.status, 1).write(&[status as u8], memory)?;
        Ok(written + 1)
    }
}

impl Backend for Block {
    type Request = BlockRequest;
    type State = BlockState;

    fn device_id(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        config::features(&self.spec)
    }

    fn queues(&self) -> &'static [QueueSpec] {
        &QUEUES[..usize::from(self.spec.queues)]
    }

    fn config(&self) -> Vec<u8> {
        config::space(&self.spec, self.capacity_sectors)
    }

    fn connect(&mut self, completions: Weak<dyn Completions>) {
        self.completions = Some(completions);
    }

    fn parse(
        &mut self,
        _: usize,
        chain: Chain<'_>,
        memory: &Memory,
    ) -> Result<(BlockRequest, Nature), GuestFault> {
        let request = BlockRequest::parse(chain, memory, self.limits())?;
        let nature = request.kind.nature();
        Ok((request, nature))
    }

    fn check(&self, request: &BlockRequest, memory: &Memory) -> Result<(), GuestFault> {
        request.check(memory, self.limits())
    }

    fn copy_aside(&self, request: &BlockRequest, memory: &Memory) -> Result<Vec<u8>, GuestFault> {
        match request.kind {
            Kind::Write { .. } => request.data.read(memory),
            _ => Ok(Vec::new()),
        }
    }

    fn submit(
        &mut self,
        id: u64,
        request: &BlockRequest,
        data: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Submission, GuestFault> {
        let written = match request.kind {
            Kind::GetId => {
                let mut id = self.spec.serial.clone().into_bytes();
                id.resize(VIRTIO_BLK_ID_BYTES as usize, 0);
                request.data.write(&id, memory)?
            }
            Kind::Refused(status) => {
                return Self::answer(request, u32::from(status), 0, memory).map(Submission::Done);
            }
            Kind::Write { .. } | Kind::Zero { .. } | Kind::Flush
                if self.applied.is_some_and(|applied| id <= applied) =>
            {
                0
            }
            Kind::Read { .. } | Kind::Write { .. } | Kind::Zero { .. } | Kind::Flush => {
                let operation = Self::operation(request, data, memory)?;
                if operation.is_some_and(|operation| self.send(DiskJob { id, operation })) {
                    return Ok(Submission::Pending);
                }
                return Self::answer(request, VIRTIO_BLK_S_IOERR, 0, memory).map(Submission::Done);
            }
        };
        Self::answer(request, VIRTIO_BLK_S_OK, written, memory).map(Submission::Done)
    }

    fn finish(
        &mut self,
        request: &BlockRequest,
        completion: Completion,
        memory: &Memory,
    ) -> Result<u32, GuestFault> {
        match completion {
            Ok(bytes) => {
                let written = request.data.write(&bytes, memory)?;
                Self::answer(request, VIRTIO_BLK_S_OK, written, memory)
            }
            Err(error) => {
                tracing::error!(
                    "a {:?} of the disk {:?} failed: {error}",
                    request.kind,
                    self.spec.serial
                );
                Self::answer(request, VIRTIO_BLK_S_IOERR, 0, memory)
            }
        }
    }

    fn flush(&mut self) {
        if let Some((_, disk)) = &self.worker
            && let Err(error) = disk.flush()
        {
            tracing::error!(
                "the disk {:?} could not be flushed at the end: {error}",
                self.spec.serial
            );
        }
    }

    fn save(&self) -> BlockState {
        BlockState {
            spec: self.spec.clone(),
            capacity_sectors: self.capacity_sectors,
        }
    }

    fn load(&mut self, state: BlockState) -> Result<(), String> {
        if state.spec != self.spec {
            return Err(
                "another serial number, block size or number of queues, or read-only on one host only".into(),
            );
        }
        self.capacity_sectors = state.capacity_sectors;
        Ok(())
    }
}
