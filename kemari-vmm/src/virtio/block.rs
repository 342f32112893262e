//! virtio-blk: a disk on a file or block device of the host (virtio 1.2, section 5.2).

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::device::check_range;
use super::segment::Segments;
use super::{Backend, Chain, Completion, Completions, GuestFault, Nature, QueueRole, QueueSpec, Submission};
use crate::disk::{Disk, DiskError, DiskJob, Operation};
use crate::memory::Memory;
use crate::watch::{DiskWatch, Watched};

/// Bytes of a sector, the unit of virtio-blk's addresses.
pub const SECTOR_BYTES: u64 = 512;

/// Most data buffers of one request: a full queue of descriptors less header and status.
const SEGMENTS_MAX: u32 = 254;

/// Most data of one request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// A disk.
pub struct Block {
    serial: String,
    read_only: bool,
    capacity_sectors: u64,
    completions: Option<Weak<dyn Completions>>,
    worker: Option<(Sender<DiskJob>, Arc<Disk>)>,
    watch: Option<Arc<dyn DiskWatch>>,
    /// Between the requests and the worker, if somebody watches.
    watched: Option<Arc<Watched>>,
    /// Outputs up to this number are on the image already: they were applied before this machine took over.
    applied: Option<u64>,
}

/// What a guest asks of its disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockRequest {
    kind: Kind,
    data: Segments,
    /// Guest physical address of the status byte.
    status: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Read {
        sector: u64,
    },
    Write {
        sector: u64,
    },
    Flush,
    GetId,
    /// Beyond the disk's end, a write to a read-only disk, or an unknown type: answered with this status.
    Refused(u8),
}

/// What of a disk is neither transport nor queue nor request.
#[derive(Serialize, Deserialize)]
pub struct BlockState {
    serial: String,
    read_only: bool,
    capacity_sectors: u64,
}

impl Block {
    /// A disk whose image is not opened yet. `serial` is cut to 20 bytes.
    pub fn new(serial: &str, read_only: bool) -> Self {
        Self {
            serial: serial.into(),
            read_only,
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

    fn kind_of(&self, request_type: u32, sector: u64, bytes: u64) -> Kind {
        let aligned = bytes.is_multiple_of(SECTOR_BYTES) && bytes <= REQUEST_BYTES_MAX;
        let end = sector.checked_add(bytes / SECTOR_BYTES);
        let fits = aligned && end.is_some_and(|end| end <= self.capacity_sectors);
        match request_type {
            VIRTIO_BLK_T_IN if fits => Kind::Read { sector },
            VIRTIO_BLK_T_OUT if fits && !self.read_only => Kind::Write { sector },
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Kind::Refused(VIRTIO_BLK_S_IOERR as u8),
            VIRTIO_BLK_T_FLUSH => Kind::Flush,
            VIRTIO_BLK_T_GET_ID => Kind::GetId,
            _ => Kind::Refused(VIRTIO_BLK_S_UNSUPP as u8),
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
        let read_only = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        read_only | 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE
    }

    fn queues(&self) -> &'static [QueueSpec] {
        &[QueueSpec {
            suffix: "",
            entries_max: 256,
            role: QueueRole::Requests,
        }]
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 24];
        config[..8].copy_from_slice(&self.capacity_sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
        config
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
        let (mut readable, mut writable) = Segments::of_chain(chain, memory)?;
        let header = readable
            .split_front(16)
            .ok_or_else(|| GuestFault("a disk request without header".into()))?;
        let header = header.read(memory)?;
        let status = writable
            .split_last_byte()
            .ok_or_else(|| GuestFault("a disk request without status byte".into()))?;
        let request_type = u32::from_le_bytes(header[..4].try_into().expect("the header has 16 bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("the header has 16 bytes"));
        let data = if request_type == VIRTIO_BLK_T_OUT {
            readable
        } else {
            writable
        };
        let kind = self.kind_of(request_type, sector, data.len());
        let nature = match kind {
            Kind::Write { .. } | Kind::Flush => Nature::Output,
            Kind::Read { .. } | Kind::GetId | Kind::Refused(_) => Nature::Input,
        };
        Ok((BlockRequest { kind, data, status }, nature))
    }

    fn check(&self, request: &BlockRequest, memory: &Memory) -> Result<(), GuestFault> {
        request.data.check(memory)?;
        check_range(memory, request.status, 1)?;
        let bytes = request.data.len();
        let is_possible = match request.kind {
            Kind::Read { sector } => self.kind_of(VIRTIO_BLK_T_IN, sector, bytes) == request.kind,
            Kind::Write { sector } => self.kind_of(VIRTIO_BLK_T_OUT, sector, bytes) == request.kind,
            Kind::Flush | Kind::GetId | Kind::Refused(_) => true,
        };
        is_possible
            .then_some(())
            .ok_or_else(|| GuestFault(format!("a {:?} beyond the disk's end", request.kind)))
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
                let mut id = self.serial.clone().into_bytes();
                id.resize(VIRTIO_BLK_ID_BYTES as usize, 0);
                request.data.write(&id, memory)?
            }
            Kind::Refused(status) => {
                return Self::answer(request, u32::from(status), 0, memory).map(Submission::Done);
            }
            Kind::Write { .. } | Kind::Flush if self.applied.is_some_and(|applied| id <= applied) => 0,
            Kind::Read { .. } | Kind::Write { .. } | Kind::Flush => {
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
                    self.serial
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
                self.serial
            );
        }
    }

    fn save(&self) -> BlockState {
        BlockState {
            serial: self.serial.clone(),
            read_only: self.read_only,
            capacity_sectors: self.capacity_sectors,
        }
    }

    fn load(&mut self, state: BlockState) -> Result<(), String> {
        if (&state.serial, state.read_only) != (&self.serial, self.read_only) {
            return Err("another serial number, or read-only on one host only".into());
        }
        self.capacity_sectors = state.capacity_sectors;
        Ok(())
    }
}
