//! A capture: the frames of one sync, taken at a pause and kept until the ack.

use std::time::Instant;

use kemari_sync::wire::{
    Begin, Message, PAGES_PER_FRAME_MAX, PageBatchWriter, StateFrame, encode, encode_state,
};
use kemari_sync::{DeltaCache, SessionId, SyncTally};
use kemari_vmm::machine::{Machine, MachineError};
use kemari_vmm::memory;
use kemari_vmm::state::StateBlob;

use super::ahead::{Sent, push_pages};

/// One sync, captured.
pub struct Capture {
    /// Number of the sync.
    pub epoch: u64,
    /// Its dirty pages, but for those that went ahead and have not changed since.
    pub pages: Vec<u64>,
    /// What went ahead of it.
    ahead: Option<Sent>,
    /// The states of all components.
    pub states: Vec<StateBlob>,
    /// Its pages, and those of its states that have changed, as frames. Empty once handed to the link.
    pub frames: Vec<u8>,
    /// How many outputs it lets go.
    pub outputs: u64,
    /// Counts the frames.
    tally: SyncTally,
    /// What the states, the search for dirty pages and their encoding took, in microseconds.
    pub took_us: [u64; 3],
    /// Whether the guest has powered itself off in it.
    pub stop: bool,
}

/// What a sync owes the secondary before its capture.
#[derive(Default)]
pub struct Debt {
    /// Pages that are dirty already.
    pub pages: Vec<u64>,
    /// What has gone ahead of it.
    pub ahead: Option<Sent>,
}

/// A capture that failed. Its dirty pages are owed all the same.
pub struct Failed {
    pub pages: Vec<u64>,
    pub error: anyhow::Error,
}

impl Capture {
    /// Pauses the machine, holds its output from here on if `hold`, and takes state, output and dirty pages; `debt` is
    /// what it owes already, `acked` the states that the secondary has for certain, `deltas` what of its pages is
    /// known, if they are to be used. The frames are built in `buffer`. The machine stays paused.
    pub fn take(
        machine: &Machine,
        epoch: u64,
        hold: bool,
        debt: Debt,
        acked: &[StateBlob],
        deltas: Option<&mut DeltaCache>,
        buffer: Vec<u8>,
    ) -> Result<Self, Failed> {
        let begun = Instant::now();
        machine.pause();
        let frozen = machine.freeze();
        if hold {
            frozen.hold_output();
        }
        let outputs = frozen.capture_output(epoch);
        let mut states = Vec::new();
        let saved = frozen.save_state(&mut states);
        let states_at = Instant::now();
        // Last: saving state may have written memory.
        let Debt { mut pages, ahead } = debt;
        let already = pages.len();
        let collected = frozen.collect_dirty(&mut pages);
        if already > 0 {
            // In order, as the dirty log tells them: a delta must be the only word on its page.
            pages.sort_unstable();
            pages.dedup();
        }
        if let Err(error) = saved.and(collected) {
            pages.extend(ahead.iter().flat_map(Sent::pages));
            return Err(Failed {
                pages,
                error: error.into(),
            });
        }
        let mut capture = Self {
            epoch,
            pages,
            states,
            frames: buffer,
            outputs,
            tally: ahead.as_ref().map(|sent| sent.tally.clone()).unwrap_or_default(),
            ahead,
            took_us: [0; 3],
            stop: machine.power_off_wanted(),
        };
        let dirty_at = Instant::now();
        match capture.encode(machine, acked, deltas) {
            Ok(()) => {
                let steps = [begun, states_at, dirty_at, Instant::now()];
                capture.took_us =
                    std::array::from_fn(|step| (steps[step + 1] - steps[step]).as_micros() as u64);
                Ok(capture)
            }
            Err(error) => Err(Failed {
                pages: capture.owed(),
                error,
            }),
        }
    }

    /// All pages that the secondary is owed until the ack.
    pub fn owed(&self) -> Vec<u64> {
        let ahead = self.ahead.iter().flat_map(Sent::pages);
        self.pages.iter().copied().chain(ahead).collect()
    }

    /// Pages that it sends, with those that went ahead, as often as they are sent.
    pub fn pages_sent(&self) -> u64 {
        let ahead = self.ahead.as_ref().map_or(0, |sent| sent.pages().len());
        (self.pages.len() + ahead) as u64
    }

    fn encode(
        &mut self,
        machine: &Machine,
        acked: &[StateBlob],
        deltas: Option<&mut DeltaCache>,
    ) -> anyhow::Result<()> {
        self.frames.clear();
        self.frames
            .reserve(self.pages.len() * (memory::PAGE_BYTES + 16) + (64 << 10));
        match deltas {
            Some(deltas) => self.encode_with(deltas, machine)?,
            None => push_pages(machine, &self.pages, &mut self.frames, &mut self.tally)?,
        }
        for blob in self.states.iter().filter(|blob| !acked.contains(blob)) {
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

    /// Pages as their difference from what the secondary has, where that is known.
    fn encode_with(&mut self, deltas: &mut DeltaCache, machine: &Machine) -> anyhow::Result<()> {
        deltas.begin(self.epoch);
        for chunk in self.pages.chunks(PAGES_PER_FRAME_MAX) {
            let mut batch = PageBatchWriter::new(false, &mut self.frames);
            let mut read = Ok(());
            for &page in chunk {
                let mut fill = |bytes: &mut [u8; memory::PAGE_BYTES]| {
                    if let Err(error) = memory::read_page(machine.memory(), page, bytes) {
                        read = Err(error);
                    }
                };
                match deltas.send(page, &mut fill) {
                    Some((bytes, Some(base))) => batch.push_delta(page, base, bytes),
                    Some((bytes, None)) => batch.push(page, bytes),
                    None => batch.push_with(page, fill),
                }
            }
            self.tally.add_pages(&batch.finish(), chunk.len());
            read?;
        }
        Ok(())
    }

    /// The sync as it goes over the wire: what opens it, pages and states, what closes it. What went ahead of it in this
    /// session is there already. The frames are gone afterwards.
    pub fn transmission(&mut self, session: SessionId, begin: Begin, stop: bool) -> [Vec<u8>; 3] {
        let (mut opening, mut closing) = (Vec::new(), Vec::new());
        match &self.ahead {
            Some(sent) if sent.is_there(session, self.epoch) => {}
            ahead => {
                encode(&Message::Begin(begin), &mut opening);
                opening.extend(ahead.iter().flat_map(|sent| &sent.frames));
            }
        }
        encode(
            &Message::Commit(self.tally.commit(self.epoch, stop)),
            &mut closing,
        );
        [opening, std::mem::take(&mut self.frames), closing]
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
