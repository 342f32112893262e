//! virtio-blk: a disk on a file or block device of the host (virtio 1.2, section 5.2).

mod config;
mod request;

use std::sync::{Arc, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};

use super::budget::{BYTES_HELD_MAX, Cost};
use super::rate::{self, Limiter, RateSpec};
use super::{Backend, Chain, Completion, Completions, GuestFault, Nature, QueueSpec, Submission};
use crate::disk::{
    Disk, DiskError, DiskJob, DiskWatch, EndSink, GuestBuffers, Operation, SECTOR_BYTES, Server, TroubleSink,
    whole_blocks,
};
use crate::memory::{Memory, Segments};

pub(crate) use super::budget::QUEUES_MAX;
pub use config::BlockSpec;
use config::QUEUES;
pub(crate) use request::BlockRequest;
pub use request::Kind;
use request::Limits;

/// Most data buffers of one request: a full queue of descriptors less header and status.
const SEGMENTS_MAX: u32 = 254;

/// Most data of one request, in bytes: what a disk may hold at a time.
const REQUEST_BYTES_MAX: u64 = BYTES_HELD_MAX;

/// Most sectors of one discard or write-zeroes, which has one range.
const ZERO_SECTORS_MAX: u32 = ((64 << 20) / SECTOR_BYTES) as u32;

/// Zeros that count as one byte of data: storage that knows no order for them writes each of them.
pub const ZEROS_A_BYTE: u64 = 16;

/// A disk.
pub struct Block {
    spec: BlockSpec,
    capacity_sectors: u64,
    completions: Option<Weak<dyn Completions>>,
    server: Option<Arc<Server>>,
    trouble: TroubleSink,
    watch: Option<Arc<dyn DiskWatch>>,
    /// The guest knows no flush: whatever is finished must be durable.
    write_through: bool,
    /// The capacity changed, and the driver was not told yet.
    config_changed: bool,
    /// Outputs up to this number are on the image already: they were applied before this machine took over.
    applied: Option<u64>,
    /// The flush at the end has failed.
    may_lack: bool,
    /// What it is asked for waits, since nobody may touch its image.
    mute: bool,
    /// What it may be asked for, if that is limited.
    rate: Option<Limiter>,
}

/// What of a disk is neither transport nor queue nor request.
#[derive(Serialize, Deserialize)]
pub struct BlockState {
    spec: BlockSpec,
    capacity_sectors: u64,
}

impl BlockState {
    /// Checks that a disk in this state can have been asked for a request.
    pub(crate) fn check(&self, request: &BlockRequest, memory: &Memory) -> Result<(), GuestFault> {
        let limits = Limits {
            read_only: self.spec.read_only,
            block_bytes: self.spec.block_bytes,
            capacity_sectors: self.capacity_sectors,
        };
        request.check(memory, limits)
    }
}

impl Block {
    /// A disk whose image is not opened yet.
    pub fn new(spec: BlockSpec) -> Self {
        Self {
            spec,
            capacity_sectors: 0,
            completions: None,
            server: None,
            trouble: Arc::new(|trouble| tracing::error!("a disk fails: {}", trouble.reason)),
            watch: None,
            write_through: false,
            config_changed: false,
            applied: None,
            may_lack: false,
            mute: false,
            rate: None,
        }
    }

    /// Limits what it carries out to this rate.
    pub fn set_rate(&mut self, rate: RateSpec) {
        self.rate = (!rate.is_unlimited()).then(|| Limiter::new(rate, Instant::now()));
    }

    /// From the next [`Block::attach`] on, `watch` is told of all changes.
    pub fn set_watch(&mut self, watch: Arc<dyn DiskWatch>) {
        self.watch = Some(watch);
    }

    /// The image has all outputs up to request `id` already, and durably: they are finished without I/O.
    pub fn note_applied(&mut self, id: u64) {
        self.applied = Some(id);
    }

    /// There is an image, but it must not be touched: what the guest asks of it is never finished.
    pub fn mute(&mut self) {
        self.mute = true;
    }

    /// Whether the image may lack durably what the guest has written, although the disk was drained: it could
    /// not be flushed.
    pub fn may_lack(&self) -> bool {
        self.may_lack
    }

    /// The image, once it is attached.
    pub fn image(&self) -> Option<Arc<Disk>> {
        self.server.as_ref().map(|server| server.disk().clone())
    }

    /// From the next [`Block::attach`] on, `sink` is told of trouble with the image.
    pub fn set_trouble_sink(&mut self, sink: TroubleSink) {
        self.trouble = sink;
    }

    /// What serves the requests, once an image is attached.
    pub fn server(&self) -> Option<&Arc<Server>> {
        self.server.as_ref()
    }

    /// Opens the image behind the disk: `disk` from here on serves the requests. It must have room for the
    /// capacity that the guest knows already, if it knows one; the guest is told if it is larger.
    pub fn attach(&mut self, disk: Disk) -> Result<(), DiskError> {
        disk.note_grown(whole_blocks(disk.bytes(), self.spec.block_bytes));
        let sectors = disk.bytes() / SECTOR_BYTES;
        if sectors < self.capacity_sectors {
            return Err(DiskError::Size {
                path: disk.path().into(),
                found_bytes: disk.bytes(),
                expected_bytes: self.capacity_sectors * SECTOR_BYTES,
            });
        }
        let disk = Arc::new(disk);
        let Some(device) = self.completions.clone() else {
            return Ok(());
        };
        let ends: EndSink = Arc::new(move |ended| {
            if let Some(device) = device.upgrade() {
                device.complete(ended);
            }
        });
        let server = Server::start(disk, self.watch.clone(), ends, self.trouble.clone())?;
        server.set_write_through(self.write_through);
        self.server = Some(server);
        self.set_capacity(sectors);
        Ok(())
    }

    /// Lets go of the image. Nothing of it may be under way.
    pub fn detach(&mut self) {
        self.server = None;
    }

    /// Looks whether the image has grown, and tells the guest if so. Returns the new size in bytes.
    ///
    /// # Errors
    /// If it is smaller than the guest knows it, or cannot be looked at.
    pub fn look_at_size(&mut self) -> Result<Option<u64>, DiskError> {
        let Some(server) = &self.server else {
            return Ok(None);
        };
        let disk = server.disk();
        let path = disk.path().to_owned();
        let found_bytes = disk.bytes_now().map_err(|source| DiskError::Open {
            path: path.clone(),
            source,
        })?;
        let expected_bytes = self.capacity_sectors * SECTOR_BYTES;
        let usable_bytes = whole_blocks(found_bytes, self.spec.block_bytes);
        if usable_bytes < expected_bytes {
            return Err(DiskError::Size {
                path,
                found_bytes,
                expected_bytes,
            });
        }
        if usable_bytes > expected_bytes
            && let Some(watch) = &self.watch
        {
            watch
                .grown(usable_bytes)
                .map_err(|source| DiskError::Grow { path, source })?;
        }
        disk.note_grown(usable_bytes);
        self.set_capacity(usable_bytes / SECTOR_BYTES);
        Ok((usable_bytes > expected_bytes).then_some(usable_bytes))
    }

    fn set_capacity(&mut self, sectors: u64) {
        self.config_changed |= self.capacity_sectors != 0 && self.capacity_sectors != sectors;
        self.capacity_sectors = sectors;
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

    /// What of a request is to be done with the image: with the guest's memory itself where nobody else needs
    /// the same bytes.
    fn own_operation(
        &self,
        request: &BlockRequest,
        data: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Option<Operation>, GuestFault> {
        let buffers = || GuestBuffers {
            memory: memory.clone(),
            segments: request.data.clone(),
        };
        Ok(match request.kind {
            Kind::Read { sector } => Some(Operation::ReadInto {
                offset: sector * SECTOR_BYTES,
                target: buffers(),
            }),
            Kind::Write { sector } if data.is_none() && self.watch.is_none() => Some(Operation::WriteFrom {
                offset: sector * SECTOR_BYTES,
                source: buffers(),
            }),
            _ => Self::operation(request, data, memory)?,
        })
    }

    fn send(&self, job: DiskJob) -> bool {
        match &self.server {
            Some(server) => {
                server.submit(job);
                true
            }
            None => self.mute,
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

    fn activate(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        if let Some(server) = &self.server {
            server.set_write_through(self.write_through);
        }
    }

    fn waits_for_operator(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.has_failed())
    }

    fn winding_up(&mut self, begins: bool) {
        self.server
            .iter()
            .for_each(|server| server.set_always_reports(begins));
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn batch_begins(&mut self) {
        self.server.iter().for_each(|server| server.batch_begins());
    }

    fn batch_ends(&mut self) {
        self.server.iter().for_each(|server| server.batch_ends());
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
        let nature = match request.kind {
            Kind::Flush if self.watch.as_ref().is_some_and(|watch| watch.flush_is_output()) => Nature::Output,
            kind => kind.nature(),
        };
        Ok((request, nature))
    }

    fn check(&self, request: &BlockRequest, memory: &Memory) -> Result<(), GuestFault> {
        request.check(memory, self.limits())
    }

    fn cost(&self, request: &BlockRequest) -> Cost {
        Cost {
            segments: request.data.count(),
            bytes: request.data.len() + request.kind.zero_bytes() / ZEROS_A_BYTE,
        }
    }

    fn admit(&mut self, request: &BlockRequest) -> Result<(), Instant> {
        rate::admit(self.rate.as_mut(), request.data.len())
    }

    fn copy_aside(&self, request: &BlockRequest, memory: &Memory) -> Result<Vec<u8>, GuestFault> {
        match request.kind {
            Kind::Write { .. } => Ok(request.data.read(memory)?),
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
                let operation = self.own_operation(request, data, memory)?;
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
        let mut written = 0;
        if matches!(request.kind, Kind::Read { .. }) {
            // Also after a failure: a part may have come.
            request.data.mark_dirty(memory)?;
            written = request.data.len() as u32;
        }
        match completion {
            Ok(_) => Self::answer(request, VIRTIO_BLK_S_OK, written, memory),
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
        let flushed = self.server.as_ref().map_or(Ok(()), |server| server.flush());
        self.may_lack = flushed.is_err();
        if let Err(error) = flushed {
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
