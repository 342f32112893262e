//! Batches of pages: the body of `CopyPages` and `Pages` frames.
//!
//! `count: u32`, then per page `gfn: u64`, `encoding: u8` (0 zero, 1 raw, 2 delta) and, if raw, the page's
//! bytes; if a delta, `base: u32` (checksum of the page that it changes), `length: u16` and the runs (see
//! [`crate::is_delta`]).

use super::delta::{DELTA_BYTES_MAX, apply_delta, base_checksum, encode_delta, is_delta};

use super::frame::{FrameError, FrameHeader, FrameKind, HEADER_BYTES, close_frame, open_frame};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4_096;
/// Most pages of one frame.
pub const PAGES_PER_FRAME_MAX: usize = 256;

const COUNT_BYTES: usize = 4;
const ENTRY_BYTES: usize = 9;
pub(super) const PAGE_FRAME_BYTES_MAX: usize = COUNT_BYTES + PAGES_PER_FRAME_MAX * (ENTRY_BYTES + PAGE_BYTES);

const ENCODING_ZERO: u8 = 0;
const ENCODING_RAW: u8 = 1;
const ENCODING_DELTA: u8 = 2;
/// Bytes of a delta before its runs: checksum and length.
const DELTA_HEAD_BYTES: usize = 6;
const _: () = assert!(DELTA_HEAD_BYTES + DELTA_BYTES_MAX < PAGE_BYTES);

/// Builds one frame of pages at the end of a buffer, which a driver keeps and reuses.
pub struct PageBatchWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kind: FrameKind,
    pages: usize,
}

impl<'a> PageBatchWriter<'a> {
    /// Begins a frame. `copy`: of the first copy, else of a sync.
    pub fn new(copy: bool, out: &'a mut Vec<u8>) -> Self {
        let start = open_frame(out);
        out.extend_from_slice(&[0; COUNT_BYTES]);
        let kind = if copy {
            FrameKind::CopyPages
        } else {
            FrameKind::Pages
        };
        Self {
            out,
            start,
            kind,
            pages: 0,
        }
    }

    /// Pages so far.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Whether the frame takes no further page: finish it, and begin another.
    pub fn is_full(&self) -> bool {
        self.pages == PAGES_PER_FRAME_MAX
    }

    /// Adds a page in its shortest encoding. The bytes are read exactly once: what is sent is what is kept.
    pub fn push(&mut self, gfn: u64, bytes: &[u8; PAGE_BYTES]) {
        match is_zero(bytes) {
            true => self.push_zero(gfn),
            false => {
                self.entry(gfn, ENCODING_RAW);
                self.out.extend_from_slice(bytes);
            }
        }
    }

    /// Adds a page in its shortest encoding, given what the receiver has for certain; that becomes what the
    /// page is now. Returns false if it is the same: then there is nothing to add.
    pub fn push_delta(&mut self, gfn: u64, base: &mut [u8; PAGE_BYTES], bytes: &[u8; PAGE_BYTES]) -> bool {
        if is_zero(bytes) {
            let is_changed = !is_zero(base);
            if is_changed {
                base.fill(0);
                self.push_zero(gfn);
            }
            return is_changed;
        }
        let before = self.out.len();
        self.entry(gfn, ENCODING_DELTA);
        let head = self.out.len();
        self.out.extend_from_slice(&[0; DELTA_HEAD_BYTES]);
        let runs = self.out.len();
        if encode_delta(base, bytes, self.out) {
            if self.out.len() == runs {
                self.out.truncate(before);
                self.pages -= 1;
                return false;
            }
            let length = (self.out.len() - runs) as u16;
            self.out[head..head + 4].copy_from_slice(&base_checksum(base).to_le_bytes());
            self.out[head + 4..runs].copy_from_slice(&length.to_le_bytes());
            apply_delta(&self.out[runs..], |at, run| {
                base[at..at + run.len()].copy_from_slice(run);
            });
        } else {
            self.out.truncate(head);
            self.out[head - 1] = ENCODING_RAW;
            self.out.extend_from_slice(bytes);
            *base = *bytes;
        }
        true
    }

    /// Adds a page by letting `append` put its bytes behind the frame: from guest memory, without a copy
    /// between and without clearing their place before. A page that turns out to be all zero is sent as such.
    ///
    /// # Panics
    /// If anything but one page was appended.
    pub fn push_with(&mut self, gfn: u64, append: impl FnOnce(&mut Vec<u8>)) {
        self.entry(gfn, ENCODING_RAW);
        let at = self.out.len();
        append(self.out);
        let page: &[u8; PAGE_BYTES] = self.out[at..].try_into().expect("one page is appended");
        if is_zero(page) {
            self.out.truncate(at);
            self.out[at - 1] = ENCODING_ZERO;
        }
    }

    /// Adds a page known to be all zero.
    pub fn push_zero(&mut self, gfn: u64) {
        self.entry(gfn, ENCODING_ZERO);
    }

    fn entry(&mut self, gfn: u64, encoding: u8) {
        assert!(!self.is_full(), "a frame takes {PAGES_PER_FRAME_MAX} pages");
        self.pages += 1;
        self.out.extend_from_slice(&gfn.to_le_bytes());
        self.out.push(encoding);
    }

    /// Completes the frame: the buffer now ends with it. Returns its header and how many pages it has;
    /// `None`, and the buffer is as it was, if there are none.
    pub fn finish(self) -> Option<(FrameHeader, usize)> {
        if self.pages == 0 {
            self.out.truncate(self.start);
            return None;
        }
        let count = self.start + HEADER_BYTES;
        self.out[count..count + COUNT_BYTES].copy_from_slice(&(self.pages as u32).to_le_bytes());
        let header = close_frame(self.out, self.start, self.kind);
        Some((header, self.pages))
    }
}

fn is_zero(bytes: &[u8; PAGE_BYTES]) -> bool {
    // Most pages differ from zero early: look at whole cache lines in turn.
    bytes
        .chunks_exact(64)
        .all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageContent<'a> {
    /// All zero.
    Zero,
    /// These bytes.
    Raw(&'a [u8; PAGE_BYTES]),
    /// What the receiver has, changed.
    Delta {
        /// Checksum of what the receiver must have.
        base: u32,
        /// The changes: see [`crate::apply_delta`].
        runs: &'a [u8],
    },
}

/// One page of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Guest frame number: guest physical address divided by [`PAGE_BYTES`].
    pub gfn: u64,
    /// Its bytes.
    pub content: PageContent<'a>,
}

/// A batch whose every field was checked.
#[derive(Clone, Copy, Debug)]
pub struct PageBatch<'a> {
    pages: u32,
    entries: &'a [u8],
}

impl<'a> PageBatch<'a> {
    /// Checks a body from end to end. `is_ram` says which guest frames exist.
    pub fn parse(kind: FrameKind, body: &'a [u8], is_ram: impl Fn(u64) -> bool) -> Result<Self, FrameError> {
        let refuse = |reason: String| Err(FrameError::body(kind, reason));
        let Some((count, entries)) = body.split_first_chunk::<COUNT_BYTES>() else {
            return refuse(format!("{} bytes hold no page count", body.len()));
        };
        let pages = u32::from_le_bytes(*count);
        if pages == 0 || pages as usize > PAGES_PER_FRAME_MAX {
            return refuse(format!("{pages} pages, expected 1 to {PAGES_PER_FRAME_MAX}"));
        }
        let mut rest = entries;
        for index in 0..pages {
            let Some((page, after)) = next_page(rest) else {
                return refuse(format!(
                    "page {index} of {pages} is cut off or has an unknown encoding"
                ));
            };
            if !is_ram(page.gfn) {
                return refuse(format!("page frame {:#x} is no memory of this machine", page.gfn));
            }
            if let PageContent::Delta { runs, .. } = page.content {
                if kind != FrameKind::Pages {
                    return refuse(format!(
                        "page frame {:#x} is a delta, and nothing was synced yet",
                        page.gfn
                    ));
                }
                if !is_delta(runs) {
                    return refuse(format!("the delta of page frame {:#x} leaves the page", page.gfn));
                }
            }
            rest = after;
        }
        match rest.is_empty() {
            true => Ok(Self { pages, entries }),
            false => refuse(format!("{} bytes follow the last page", rest.len())),
        }
    }

    /// Reads again what [`Self::parse`] accepted before.
    pub(crate) fn parsed(body: &'a [u8]) -> Self {
        let (count, entries) = body.split_first_chunk::<COUNT_BYTES>().expect("parsed before");
        Self {
            pages: u32::from_le_bytes(*count),
            entries,
        }
    }

    /// Pages in it.
    pub fn len(&self) -> usize {
        self.pages as usize
    }

    /// Never true: a batch without pages is refused.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// The pages, in order; a later one of the same frame number replaces an earlier.
    pub fn iter(&self) -> Pages<'a> {
        Pages { rest: self.entries }
    }
}

impl<'a> IntoIterator for PageBatch<'a> {
    type Item = Page<'a>;
    type IntoIter = Pages<'a>;

    fn into_iter(self) -> Pages<'a> {
        self.iter()
    }
}

/// The pages of a batch.
#[derive(Clone, Debug)]
pub struct Pages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Pages<'a> {
    type Item = Page<'a>;

    fn next(&mut self) -> Option<Page<'a>> {
        let (page, rest) = next_page(self.rest)?;
        self.rest = rest;
        Some(page)
    }
}

fn next_page(bytes: &[u8]) -> Option<(Page<'_>, &[u8])> {
    let (gfn, bytes) = bytes.split_first_chunk::<8>()?;
    let (encoding, bytes) = bytes.split_first()?;
    let gfn = u64::from_le_bytes(*gfn);
    match *encoding {
        ENCODING_ZERO => Some((
            Page {
                gfn,
                content: PageContent::Zero,
            },
            bytes,
        )),
        ENCODING_RAW => {
            let (page, bytes) = bytes.split_first_chunk::<PAGE_BYTES>()?;
            Some((
                Page {
                    gfn,
                    content: PageContent::Raw(page),
                },
                bytes,
            ))
        }
        ENCODING_DELTA => {
            let (base, bytes) = bytes.split_first_chunk::<4>()?;
            let (length, bytes) = bytes.split_first_chunk::<2>()?;
            let (runs, bytes) = bytes.split_at_checked(u16::from_le_bytes(*length).into())?;
            let base = u32::from_le_bytes(*base);
            let content = PageContent::Delta { base, runs };
            Some((Page { gfn, content }, bytes))
        }
        _ => None,
    }
}
