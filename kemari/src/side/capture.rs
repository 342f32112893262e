//! A capture: the frames of one sync, taken at a pause and kept until the ack.

use std::time::{Duration, Instant};

use kemari_sync::wire::{Begin, DeltaCache, Message, StateFrame, SyncTally, encode, encode_state};
use kemari_sync::{Debt, Opening, SessionId, changed_states};
use kemari_vmm::machine::{Frozen, Machine, MachineError};
use kemari_vmm::memory;
use kemari_vmm::state::StateBlob;

use super::ahead::Ahead;
use super::frames::{Encoding, PAGES_PER_FRAME, push_frame};
use crate::link::Outgoing;

// Whatever a guest does, the states of its machine can be sent.
const _: () = assert!(kemari_vmm::state::STATE_BYTES_MAX <= kemari_sync::wire::STATE_BYTES_MAX);

/// One sync, captured.
pub struct Capture {
    /// Number of the sync.
    pub epoch: u64,
    /// How many dirty pages it has, without those that went ahead and have not changed since.
    pub pages: u64,
    /// How many of them were found to be what the secondary has, and are not sent.
    unchanged: u64,
    /// What went ahead of it.
    ahead: Option<Ahead>,
    /// How many pages went ahead of it.
    pub pages_ahead: u64,
    /// The states of all components.
    pub states: Vec<StateBlob>,
    /// Its pages, and those of its states that have changed, as frames. Empty once handed to the link.
    pub frames: Vec<u8>,
    /// What of the frames was sent while the rest was captured.
    at_once: Option<SentAtOnce>,
    /// How many outputs it lets go.
    pub outputs: u64,
    /// Counts the frames.
    tally: SyncTally,
    /// What took how long.
    pub took: Took,
    /// Whether the guest has powered itself off in it.
    pub stop: bool,
}

/// How the time of a capture was spent.
#[derive(Default)]
pub struct Took {
    /// On the states of the machine.
    pub states: Duration,
    /// On looking for dirty pages.
    pub dirty: Duration,
    /// On copying and encoding pages.
    pub encode: Duration,
    /// On sending what was sent at once.
    pub send: Duration,
}

/// Frames that were sent before all of their sync was captured.
struct SentAtOnce {
    session: SessionId,
    /// Bytes of the frames before the first page: what opens the sync.
    opening_bytes: usize,
    /// Bytes of the frames that were sent.
    sent_bytes: usize,
}

/// What the secondary has for certain.
pub struct Known<'a> {
    /// The states.
    pub states: &'a [StateBlob],
    /// Of its pages, those that are kept, if they are to be used.
    pub deltas: Option<&'a mut DeltaCache>,
}

/// Where a sync's pages go while the rest of it is captured.
pub struct AtOnce<'a> {
    /// In which session, and how it begins.
    pub opening: Opening,
    /// Takes whole frames, or says that it cannot now.
    pub send: &'a mut dyn FnMut(&[u8]) -> bool,
}

impl Capture {
    /// Pauses the machine, holds its output from here on if `hold`, and takes state, output and dirty pages;
    /// `ahead` went ahead of them. The frames are built in `buffer`, and sent while they are built if
    /// `at_once` says where. The machine stays paused.
    ///
    /// # Errors
    /// The pages are captured in `debt` all the same, and the output in the machine: both are to be given
    /// back.
    pub fn take(
        machine: &Machine,
        (epoch, hold): (u64, bool),
        (debt, ahead): (&mut Debt, Option<Ahead>),
        known: Known<'_>,
        at_once: Option<AtOnce<'_>>,
        mut buffer: Vec<u8>,
    ) -> anyhow::Result<Self> {
        buffer.clear();
        let mut lap = Lap::begin();
        machine.pause();
        let frozen = machine.freeze();
        if hold {
            frozen.hold_output();
        }
        debt.capture(epoch);
        let mut capture = Self {
            epoch,
            pages: 0,
            unchanged: 0,
            pages_ahead: debt.pages_ahead() as u64,
            states: Vec::new(),
            frames: buffer,
            at_once: None,
            outputs: frozen.capture_output(epoch),
            tally: ahead.as_ref().map(|sent| sent.tally.clone()).unwrap_or_default(),
            ahead,
            took: Took::default(),
            stop: false,
        };
        lap.end(&mut capture.took.states);
        capture.build(machine, &frozen, debt, known, at_once, &mut lap)?;
        capture.stop = machine.power_off_wanted();
        Ok(capture)
    }

    fn build(
        &mut self,
        machine: &Machine,
        frozen: &Frozen<'_>,
        debt: &mut Debt,
        Known { states, mut deltas }: Known<'_>,
        at_once: Option<AtOnce<'_>>,
        lap: &mut Lap,
    ) -> anyhow::Result<()> {
        if let Some(deltas) = &mut deltas {
            deltas.begin(self.epoch);
        }
        match at_once {
            Some(at_once) => {
                let pages = self.collect(frozen, debt, lap)?;
                self.open(&at_once.opening);
                // More than the secondary may take: how many of them have changed is known only when all were
                // looked at.
                let at_once = Some(at_once).filter(|it| self.pages_sent() <= it.opening.pages_max);
                self.push_changes(pages, machine, deltas.as_deref_mut(), at_once, lap)?;
                frozen.save_state(&mut self.states)?;
                lap.end(&mut self.took.states);
                // Saving state may have written memory.
                let pages = debt.find_captured(|pages| frozen.collect_more_dirty(pages))?;
                self.pages += pages.len() as u64;
                lap.end(&mut self.took.dirty);
                let again = deltas.map_or(Encoding::Whole, Encoding::Again);
                self.push_pages(pages, machine, again, None, lap)?;
            }
            None => {
                frozen.save_state(&mut self.states)?;
                lap.end(&mut self.took.states);
                // Last: saving state may have written memory.
                let pages = self.collect(frozen, debt, lap)?;
                self.push_changes(pages, machine, deltas, None, lap)?;
            }
        }
        self.push_states(states)?;
        lap.end(&mut self.took.encode);
        Ok(())
    }

    /// In order, and each once: a delta must be the only word on its page.
    fn collect<'d>(
        &mut self,
        frozen: &Frozen<'_>,
        debt: &'d mut Debt,
        lap: &mut Lap,
    ) -> anyhow::Result<&'d [u64]> {
        let pages = debt.find_captured(|pages| frozen.collect_dirty(pages))?;
        self.pages = pages.len() as u64;
        lap.end(&mut self.took.dirty);
        Ok(pages)
    }

    /// What is sent at once begins with what opens the sync, unless pages went ahead of it.
    fn open(&mut self, opening: &Opening) {
        if self.ahead.is_none() {
            encode(&Message::Begin(opening.begin), &mut self.frames);
        }
        self.at_once = Some(SentAtOnce {
            session: opening.session,
            opening_bytes: self.frames.len(),
            sent_bytes: 0,
        });
    }

    /// All pages. Those that turn out not to have changed may be left writable no longer.
    fn push_changes(
        &mut self,
        pages: &[u64],
        machine: &Machine,
        deltas: Option<&mut DeltaCache>,
        at_once: Option<AtOnce<'_>>,
        lap: &mut Lap,
    ) -> anyhow::Result<()> {
        let Some(deltas) = deltas else {
            return self.push_pages(pages, machine, Encoding::Whole, at_once, lap);
        };
        let mut unchanged = Vec::new();
        let changes = Encoding::Changes(deltas, &mut unchanged);
        let result = self.push_pages(pages, machine, changes, at_once, lap);
        self.unchanged = unchanged.len() as u64;
        machine.dirty().note_unchanged(&unchanged);
        result
    }

    /// What cannot be sent at once is left to the transmission.
    fn push_pages(
        &mut self,
        pages: &[u64],
        machine: &Machine,
        mut encoding: Encoding<'_>,
        mut at_once: Option<AtOnce<'_>>,
        lap: &mut Lap,
    ) -> anyhow::Result<()> {
        self.frames
            .reserve(pages.len() * (memory::PAGE_BYTES + 16) + (64 << 10));
        for chunk in pages.chunks(PAGES_PER_FRAME) {
            push_frame(machine, chunk, &mut encoding, &mut self.frames, &mut self.tally)?;
            lap.end(&mut self.took.encode);
            if let (Some(sent), Some(at_once)) = (&mut self.at_once, &mut at_once)
                && (at_once.send)(&self.frames[sent.sent_bytes..])
            {
                sent.sent_bytes = self.frames.len();
                lap.end(&mut self.took.send);
            }
        }
        Ok(())
    }

    fn push_states(&mut self, acked: &[StateBlob]) -> anyhow::Result<()> {
        for blob in changed_states(acked, &self.states) {
            let frame = StateFrame {
                kind: blob.kind as u16,
                instance: blob.instance,
                version: blob.version,
                bytes: &blob.bytes,
            };
            self.tally.add_state(&encode_state(&frame, &mut self.frames)?);
        }
        Ok(())
    }

    /// Pages that it sends, with those that went ahead, as often as they are sent.
    pub fn pages_sent(&self) -> u64 {
        self.pages - self.unchanged + self.pages_ahead
    }

    /// Bytes that were sent at once.
    pub fn sent_bytes(&self) -> usize {
        self.at_once.as_ref().map_or(0, |sent| sent.sent_bytes)
    }

    /// The sync as it goes over the wire: what opens it, pages and states, what closes it. What of it was
    /// sent in this session before is there already; `ahead_in` is the session of what went ahead. The frames
    /// are gone afterwards.
    pub fn transmission(
        &mut self,
        session: SessionId,
        ahead_in: Option<SessionId>,
        begin: Begin,
        stop: bool,
    ) -> [Outgoing; 3] {
        let (mut opening, mut closing) = (Vec::new(), Vec::new());
        let sent_bytes = match &self.at_once {
            Some(sent) if sent.session == session && sent.sent_bytes > 0 => sent.sent_bytes,
            sent => {
                if ahead_in != Some(session) {
                    encode(&Message::Begin(begin), &mut opening);
                    opening.extend(self.ahead.iter().flat_map(|sent| &sent.frames));
                }
                sent.as_ref().map_or(0, |sent| sent.opening_bytes)
            }
        };
        encode(
            &Message::Commit(self.tally.commit(self.epoch, stop)),
            &mut closing,
        );
        let frames = std::mem::take(&mut self.frames);
        [
            opening.into(),
            Outgoing::after(frames, sent_bytes),
            closing.into(),
        ]
    }
}

/// Tells what took how long.
struct Lap(Instant);

impl Lap {
    fn begin() -> Self {
        Self(Instant::now())
    }

    /// What was done since the last lap counts for this.
    fn end(&mut self, took: &mut Duration) {
        let now = Instant::now();
        *took += now - std::mem::replace(&mut self.0, now);
    }
}

/// What went wrong, as one line.
pub fn explain(error: &MachineError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
