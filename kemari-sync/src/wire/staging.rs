//! Staging: where the secondary collects a sync until it is whole and checked.
//!
//! Bodies are kept in one block of memory, allocated before the secondary says that it is ready. What does
//! not fit is refused; the block does not grow.

use super::{
    Commit, FrameError, FrameHeader, FrameKind, PAGE_BYTES, Page, PageBatch, PageContent, StateFrame,
};
use crate::checksum::checksum_both;
use crate::record::Epoch;

/// Counts the frames of a sync on both sides, so that a lost, doubled or reordered one is noticed.
#[derive(Clone, Debug, Default)]
pub struct SyncTally {
    pages: u64,
    states: u32,
    digest: u32,
}

impl SyncTally {
    /// Adds a `Pages` frame with so many pages.
    pub fn add_pages(&mut self, header: &FrameHeader, pages: usize) {
        self.pages += pages as u64;
        self.add(header);
    }

    /// Adds a `State` frame.
    pub fn add_state(&mut self, header: &FrameHeader) {
        self.states += 1;
        self.add(header);
    }

    /// The message that closes the sync.
    pub fn commit(&self, epoch: Epoch, stop: bool) -> Commit {
        Commit {
            epoch,
            pages: self.pages,
            states: self.states,
            digest: self.digest,
            stop,
        }
    }

    fn add(&mut self, header: &FrameHeader) {
        // Each frame's checksum covers its kind, length and body: their sequence covers the sync.
        self.digest = checksum_both(self.digest.to_le_bytes(), &header.checksum.to_le_bytes());
    }
}

/// A sync that cannot be staged, or is not what its sender closed it with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StagingError {
    /// A frame is damaged or malformed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// More than the memory set aside.
    #[error(
        "sync {epoch} needs more than the {limit} bytes of staging; raise staging_bytes or lower max_dirty"
    )]
    Full {
        /// Which sync.
        epoch: Epoch,
        /// The limit in bytes.
        limit: usize,
    },
    /// A delta of something that is not here.
    #[error(
        "page frame {gfn:#x} of sync {epoch} came as a change of something else than what is here; nothing \
         of that sync is taken"
    )]
    Base {
        /// Which sync.
        epoch: Epoch,
        /// Which page.
        gfn: u64,
    },
    /// A frame outside of a sync, or of a kind that is not staged.
    #[error("a {0:?} frame came outside of a sync")]
    Unexpected(FrameKind),
    /// What was received is not what was sent.
    #[error("sync {epoch} is not whole: {found} was received, {sent} was sent")]
    NotWhole {
        /// Which sync.
        epoch: Epoch,
        /// The receiver's tally.
        found: String,
        /// The sender's tally.
        sent: String,
    },
}

/// The frames of one sync, in one block of memory.
pub struct Staging {
    /// Never shorter or longer; its first `used` bytes are the bodies.
    block: Vec<u8>,
    /// How much of it is for pages.
    pages_bytes_max: usize,
    used: usize,
    frames: Vec<(FrameKind, usize)>,
    tally: SyncTally,
    epoch: Option<Epoch>,
    /// The highest page number so far.
    last_page: Option<u64>,
}

/// Room for frames before their bookkeeping must grow.
const FRAMES_EXPECTED: usize = 1_024;

impl Staging {
    /// Sets `limit` bytes aside for pages, touched now so that memory is missing now and not in a sync.
    pub fn new(limit: usize) -> Self {
        Self::with_states(limit, 0)
    }

    /// The same, and room for states of so many bytes beside the pages.
    pub fn with_states(limit: usize, states_bytes_max: usize) -> Self {
        Self {
            block: vec![1; limit + states_bytes_max],
            pages_bytes_max: limit,
            used: 0,
            frames: Vec::with_capacity(FRAMES_EXPECTED),
            tally: SyncTally::default(),
            epoch: None,
            last_page: None,
        }
    }

    /// Where it collects: memory of a guest, which its owner may want to treat as such.
    pub fn block(&self) -> &[u8] {
        &self.block
    }

    /// Most pages of a sync that certainly fit, if they come in well-filled frames.
    pub fn pages_max(&self) -> u64 {
        // What is around each page is covered by taking an eighth off.
        (self.pages_bytes_max as u64 / PAGE_BYTES as u64) * 7 / 8
    }

    /// Throws away what is there and opens a sync.
    pub fn begin(&mut self, epoch: Epoch) {
        self.clear();
        self.epoch = Some(epoch);
    }

    /// Throws away what is there: rollback, or after it was applied.
    pub fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
        self.tally = SyncTally::default();
        (self.epoch, self.last_page) = (None, None);
    }

    /// Bytes in it.
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Where the body of this frame can be received, so that it need not be copied: behind what was accepted.
    /// Until [`Self::accept_received`] the place may be handed out again.
    pub fn room(&mut self, header: &FrameHeader) -> Result<&mut [u8], StagingError> {
        let epoch = self.epoch.ok_or(StagingError::Unexpected(header.kind))?;
        let limit = self.block.len();
        self.block
            .get_mut(self.used..self.used + header.length)
            .ok_or(StagingError::Full { epoch, limit })
    }

    /// Takes a copy of the body of a frame, if all is right with it; see [`Self::accept_received`].
    pub fn accept(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        is_ram: impl Fn(u64) -> bool,
        checksum: impl Fn(u64) -> u32,
    ) -> Result<(), StagingError> {
        if body.len() != header.length {
            return Err(FrameError::Checksum(header.kind).into());
        }
        self.room(header)?.copy_from_slice(body);
        self.accept_received(header, is_ram, checksum)
    }

    /// Checks the body of a frame that lies in its [`Self::room`], and keeps it. `is_ram` says which page
    /// frames exist, `checksum` what [`super::base_checksum`] says of one as last committed.
    ///
    /// A delta is a change of the last commit. It must therefore be the first and only word of its sync on
    /// that page so far: its number must be higher than all before it.
    pub fn accept_received(
        &mut self,
        header: &FrameHeader,
        is_ram: impl Fn(u64) -> bool,
        checksum: impl Fn(u64) -> u32,
    ) -> Result<(), StagingError> {
        let epoch = self.epoch.ok_or(StagingError::Unexpected(header.kind))?;
        self.room(header)?;
        let body = &self.block[self.used..self.used + header.length];
        header.check(body)?;
        match header.kind {
            FrameKind::Pages => {
                let batch = PageBatch::parse(header.kind, body, is_ram)?;
                let mut last_page = self.last_page;
                for Page { gfn, content } in batch {
                    let is_next = last_page.is_none_or(|last| gfn > last);
                    if let PageContent::Delta { base, .. } = content
                        && !(is_next && checksum(gfn) == base)
                    {
                        return Err(StagingError::Base { epoch, gfn });
                    }
                    last_page = last_page.max(Some(gfn));
                }
                let pages = batch.len();
                self.last_page = last_page;
                self.tally.add_pages(header, pages);
            }
            FrameKind::State => {
                StateFrame::parse(body)?;
                self.tally.add_state(header);
            }
            kind => return Err(StagingError::Unexpected(kind)),
        }
        self.frames.push((header.kind, self.used));
        self.used += header.length;
        Ok(())
    }

    /// Whether what is here is exactly what the sender closed with `commit`.
    pub fn check(&self, commit: &Commit) -> Result<(), StagingError> {
        let epoch = self.epoch.ok_or(StagingError::Unexpected(FrameKind::Commit))?;
        let found = self.tally.commit(epoch, commit.stop);
        match found == *commit {
            true => Ok(()),
            false => Err(StagingError::NotWhole {
                epoch,
                found: summary(&found),
                sent: summary(commit),
            }),
        }
    }

    /// All staged pages, in the order of their arrival.
    pub fn pages(&self) -> impl Iterator<Item = Page<'_>> {
        self.bodies(FrameKind::Pages)
            .flat_map(|body| PageBatch::parsed(body).into_iter())
    }

    /// All staged states, in the order of their arrival.
    pub fn states(&self) -> impl Iterator<Item = StateFrame<'_>> {
        self.bodies(FrameKind::State)
            .filter_map(|body| StateFrame::parse(body).ok())
    }

    fn bodies(&self, wanted: FrameKind) -> impl Iterator<Item = &[u8]> {
        let ends = self.frames.iter().skip(1).map(|&(_, at)| at).chain([self.used]);
        let frames = self.frames.iter().zip(ends);
        frames
            .filter(move |((kind, _), _)| *kind == wanted)
            .map(|(&(_, at), end)| &self.block[at..end])
    }
}

fn summary(commit: &Commit) -> String {
    format!(
        "sync {} with {} pages and {} states (digest {:08x})",
        commit.epoch, commit.pages, commit.states, commit.digest
    )
}
