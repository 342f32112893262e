//! On the primary: compares the images with those of the secondary, chunk by chunk, and sends what differs,
//! while the guest runs.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kemari_sync::wire::{BlockFrame, CHUNK_BYTES, FrameKind, encode_blocks};
use kemari_vmm::confine::{self, COMMON, Calls, OPEN_FILES};
use kemari_vmm::disk::{Disk, Server};

use super::chunk::{chunk_sum, read_chunk};
use super::record::EXTENT_BYTES;
use super::tracker::Tracker;

/// What the copying thread asks of the kernel.
pub(crate) const CALLS: Calls = Calls {
    of: "disk copy",
    parts: &[COMMON, OPEN_FILES],
};

/// Chunks of an extent.
const EXTENT_CHUNKS: u64 = EXTENT_BYTES / CHUNK_BYTES;
/// Extents whose comparison may be under way at a time.
const WINDOW_MAX: usize = 8;
/// Bytes of frames that wait for the link.
const FRAMES_BYTES_MAX: usize = 4 << 20;
/// So many changed chunks may be left for the first sync, during which the guest stands still: 4 MiB.
const LEFT_CHUNKS: usize = 64;
/// Rounds over what has changed, after which it must do.
const ROUNDS_MAX: u32 = 30;
/// So many changed chunks may be left after that, at most: 64 MiB.
const LEFT_CHUNKS_MAX: usize = 1024;

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CopyProgress {
    /// Bytes to be compared, of all disks.
    pub total_bytes: u64,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes of blocks that were sent.
    pub(crate) sent_bytes: u64,
}

/// One disk of a copy.
#[derive(Clone)]
pub(crate) struct CopiedDisk {
    /// Its watch.
    pub(crate) tracker: Arc<Tracker>,
    /// What serves its image: to read from, and to flush.
    pub server: Arc<Server>,
}

impl CopiedDisk {
    fn image(&self) -> &Arc<Disk> {
        self.server.disk()
    }
}

/// A copy under way.
pub(crate) struct Copier {
    disks: Vec<CopiedDisk>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the loop that takes the frames.
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Vec<u8>>,
    frames_bytes: usize,
    /// What the secondary wants: disk, first chunk, bits.
    wanted: VecDeque<(u16, u64, Vec<u8>)>,
    /// Frames of the copy that are durable on the secondary, of each disk.
    stored: BTreeMap<u16, u64>,
    progress: CopyProgress,
    /// Another round over what has changed is asked for.
    go_on: bool,
    /// Few changed chunks are left, and all else was handed over.
    converged: bool,
    failed: Option<String>,
    over: bool,
}

impl Copier {
    /// Begins the copy on a thread of its own. `bytes_per_s_max`: so much is read of the images in a second;
    /// 0: as much as can be. `wake` is called when there is something to take.
    pub(crate) fn start(
        disks: Vec<CopiedDisk>,
        bytes_per_s_max: u64,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: Box::new(wake),
        });
        let worker = Worker {
            copies: disks.iter().map(|disk| disk.tracker.begin_copy()).collect(),
            frames: vec![0; disks.len()],
            disks: disks.clone(),
            shared: shared.clone(),
            bytes_per_s_max,
            begun: Instant::now(),
            read_bytes: 0,
            complete: BTreeMap::new(),
        };
        // Without a thread it is over at once.
        let copier = Self { disks, shared };
        thread::Builder::new()
            .name("disk copy".into())
            .spawn(move || worker.run())?;
        Ok(copier)
    }

    /// The next frame for the link.
    pub(crate) fn take_frame(&self) -> Option<Vec<u8>> {
        let mut state = self.shared.lock();
        let frame = state.frames.pop_front()?;
        state.frames_bytes -= frame.len();
        self.shared.changed.notify_all();
        Some(frame)
    }

    /// The secondary's answer to a comparison.
    pub(crate) fn wanted(&self, frame: &BlockFrame<'_>) {
        let mut state = self.shared.lock();
        // It answers no more than it was asked: the window bounds this.
        if state.wanted.len() <= WINDOW_MAX {
            state
                .wanted
                .push_back((frame.disk, frame.place, frame.bytes.to_vec()));
        }
        self.shared.changed.notify_all();
    }

    /// So many frames of a disk are durable on the secondary.
    pub(crate) fn stored(&self, frame: &BlockFrame<'_>) {
        let mut state = self.shared.lock();
        if usize::from(frame.disk) < self.disks.len() {
            state.stored.insert(frame.disk, frame.place);
        }
        self.shared.changed.notify_all();
    }

    /// Whether few changed blocks are left, and everything else was taken.
    pub(crate) fn is_converged(&self) -> bool {
        let state = self.shared.lock();
        state.converged && state.frames.is_empty()
    }

    /// Whether many blocks have changed since it converged: then it goes on.
    pub(crate) fn go_on_if_needed(&self) -> bool {
        let changed: usize = self.disks.iter().map(|disk| disk.tracker.changed_chunks()).sum();
        if changed <= LEFT_CHUNKS {
            return false;
        }
        let mut state = self.shared.lock();
        (state.go_on, state.converged) = (true, false);
        self.shared.changed.notify_all();
        true
    }

    /// Why it cannot go on, if it cannot.
    pub(crate) fn failure(&self) -> Option<String> {
        self.shared.lock().failed.clone()
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> CopyProgress {
        self.shared.lock().progress
    }

    /// The rest, as frames: to be taken when the guest stands still and none of its writes is under way. The
    /// copy is over then.
    pub(crate) fn take_rest(self) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            for chunk in disk.tracker.take_changed(usize::MAX) {
                let data = read_chunk(disk.image(), chunk)?;
                frames.push(blocks_frame(index as u16, chunk, &data));
            }
        }
        Ok(frames)
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        self.disks.iter().for_each(|disk| disk.tracker.end_copy());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The copy was given up.
struct Over;

enum Stop {
    Over,
    Failed(String),
}

impl From<Over> for Stop {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("an image cannot be read or flushed: {error}"))
    }
}

struct Worker {
    disks: Vec<CopiedDisk>,
    /// The number of this copy, of each disk.
    copies: Vec<u64>,
    shared: Arc<Shared>,
    bytes_per_s_max: u64,
    begun: Instant,
    read_bytes: u64,
    /// Frames of the copy so far, of each disk.
    frames: Vec<u64>,
    /// Extents that were compared and sent, and the frame after which the secondary has them: disk, extent.
    complete: BTreeMap<(u16, u64), u64>,
}

impl Worker {
    fn run(mut self) {
        confine::thread(&CALLS);
        match self.copy() {
            Ok(()) | Err(Stop::Over) => {}
            Err(Stop::Failed(reason)) => {
                self.shared.lock().failed = Some(reason);
                (self.shared.wake)();
            }
        }
    }

    fn copy(&mut self) -> Result<(), Stop> {
        // No mark goes before the image here has durably what the other one is given.
        for (disk, copy) in self.disks.iter().zip(&self.copies) {
            disk.server.flush()?;
            disk.tracker.note_flushed(*copy);
        }
        let mut todo: VecDeque<(u16, u64)> = VecDeque::new();
        for (index, disk) in self.disks.iter().enumerate() {
            todo.extend(
                disk.tracker
                    .image()
                    .map()
                    .iter()
                    .map(|extent| (index as u16, extent)),
            );
        }
        self.shared.lock().progress.total_bytes = todo.len() as u64 * EXTENT_BYTES;
        let mut under_way = 0;
        while !todo.is_empty() || under_way > 0 {
            if under_way < WINDOW_MAX
                && let Some((disk, extent)) = todo.pop_front()
            {
                self.send_sums(disk, extent)?;
                under_way += 1;
            }
            let must_wait = under_way >= WINDOW_MAX || todo.is_empty();
            while let Some((disk, first, bits)) = self.next_wanted(must_wait && under_way > 0)? {
                self.send_wanted(disk, first, &bits)?;
                under_way = under_way.saturating_sub(1);
                if under_way < WINDOW_MAX {
                    break;
                }
            }
            self.clear_stored();
        }
        loop {
            self.send_changed()?;
            self.clear_stored();
            let mut state = self.shared.lock();
            (state.converged, state.go_on) = (true, false);
            (self.shared.wake)();
            while !state.go_on && !state.over {
                state = self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.over {
                return Ok(());
            }
        }
    }

    fn send_sums(&mut self, disk: u16, extent: u64) -> Result<(), Stop> {
        let image = self.disks[usize::from(disk)].image().clone();
        let first = extent * EXTENT_CHUNKS;
        let chunks = image
            .bytes()
            .div_ceil(CHUNK_BYTES)
            .saturating_sub(first)
            .min(EXTENT_CHUNKS);
        let mut sums = Vec::new();
        for chunk in first..first + chunks {
            let (sum, read_bytes) = chunk_sum(&image, chunk)?;
            self.note_read(read_bytes)?;
            sums.extend_from_slice(&sum);
        }
        let frame = BlockFrame {
            disk,
            count: chunks as u32,
            place: first,
            bytes: &sums,
        };
        let mut out = Vec::new();
        encode_blocks(FrameKind::DiskSums, &frame, &mut out);
        self.push(disk, out)?;
        self.shared.lock().progress.compared_bytes += EXTENT_BYTES;
        Ok(())
    }

    /// The next answer of the secondary.
    fn next_wanted(&self, wait: bool) -> Result<Option<(u16, u64, Vec<u8>)>, Over> {
        let mut state = self.shared.lock();
        loop {
            if state.over {
                return Err(Over);
            }
            let wanted = state.wanted.pop_front();
            if wanted.is_some() || !wait {
                return Ok(wanted);
            }
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send_wanted(&mut self, disk: u16, first: u64, bits: &[u8]) -> Result<(), Stop> {
        let Some(copied) = self.disks.get(usize::from(disk)) else {
            return Err(Stop::Failed(format!("the secondary wants blocks of disk {disk}")));
        };
        let image = copied.image().clone();
        for index in 0..(bits.len() as u64 * 8).min(EXTENT_CHUNKS) {
            let chunk = first.saturating_add(index);
            if bits[(index / 8) as usize] & 1 << (index % 8) != 0
                && chunk < image.bytes().div_ceil(CHUNK_BYTES)
            {
                self.send_chunk(disk, &image, chunk)?;
            }
        }
        let frames = self.frames[usize::from(disk)];
        self.complete.insert((disk, first / EXTENT_CHUNKS), frames);
        Ok(())
    }

    fn send_chunk(&mut self, disk: u16, image: &Disk, chunk: u64) -> Result<(), Stop> {
        let data = read_chunk(image, chunk)?;
        self.note_read(data.len())?;
        self.push(disk, blocks_frame(disk, chunk, &data))?;
        self.shared.lock().progress.sent_bytes += data.len() as u64;
        Ok(())
    }

    /// Sends what has changed, round by round, until little is left. Nothing of it is compared: in the order
    /// of the frames it comes after what was sent of it before.
    fn send_changed(&mut self) -> Result<(), Stop> {
        for _ in 0..ROUNDS_MAX {
            for index in 0..self.disks.len() {
                let disk = self.disks[index].clone();
                for chunk in disk.tracker.take_changed(usize::MAX) {
                    self.send_chunk(index as u16, disk.image(), chunk)?;
                }
            }
            if self.left() <= LEFT_CHUNKS {
                return Ok(());
            }
        }
        match self.left() {
            left if left <= LEFT_CHUNKS_MAX => Ok(()),
            left => Err(Stop::Failed(format!(
                "the copy of the disks does not converge: {} MiB have changed after {ROUNDS_MAX} rounds",
                (left as u64 * CHUNK_BYTES) >> 20
            ))),
        }
    }

    fn left(&self) -> usize {
        self.disks.iter().map(|disk| disk.tracker.changed_chunks()).sum()
    }

    /// Hands a frame over, as soon as there is room.
    fn push(&mut self, disk: u16, frame: Vec<u8>) -> Result<(), Over> {
        let mut state = self.shared.lock();
        while state.frames_bytes > FRAMES_BYTES_MAX && !state.over {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.over {
            return Err(Over);
        }
        let is_first = state.frames.is_empty();
        state.frames_bytes += frame.len();
        state.frames.push_back(frame);
        drop(state);
        self.frames[usize::from(disk)] += 1;
        if is_first {
            (self.shared.wake)();
        }
        Ok(())
    }

    /// What is durable on both images is not marked any more, unless it has changed meanwhile.
    fn clear_stored(&mut self) {
        let stored = self.shared.lock().stored.clone();
        let mut done: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
        self.complete.retain(|(disk, extent), frame| {
            let is_stored = stored.get(disk).is_some_and(|stored| *frame <= *stored);
            if is_stored {
                done.entry(*disk).or_default().push(*extent);
            }
            !is_stored
        });
        for (disk, extents) in done {
            let (disk, copy) = (&self.disks[usize::from(disk)], self.copies[usize::from(disk)]);
            disk.tracker.clear_copied(copy, &extents);
        }
    }

    /// Keeps to the limit of what is read in a second.
    fn note_read(&mut self, bytes: usize) -> Result<(), Over> {
        self.read_bytes += bytes as u64;
        if self.bytes_per_s_max == 0 {
            return Ok(());
        }
        let due = self.begun + Duration::from_secs_f64(self.read_bytes as f64 / self.bytes_per_s_max as f64);
        let mut state = self.shared.lock();
        while let Some(rest) = due.checked_duration_since(Instant::now())
            && !rest.is_zero()
            && !state.over
        {
            let waited = self.shared.changed.wait_timeout(state, rest);
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        if state.over { Err(Over) } else { Ok(()) }
    }
}

fn blocks_frame(disk: u16, chunk: u64, data: &[u8]) -> Vec<u8> {
    let is_zero = data.iter().all(|byte| *byte == 0);
    let mut out = Vec::new();
    let frame = BlockFrame {
        disk,
        count: data.len() as u32,
        place: chunk * CHUNK_BYTES,
        bytes: if is_zero { &[] } else { data },
    };
    encode_blocks(FrameKind::DiskBlocks, &frame, &mut out);
    out
}
