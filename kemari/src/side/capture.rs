//! A capture: the frames of one sync, taken at a pause and kept until the ack.

use std::time::Instant;

use kemari_sync::wire::{Begin, Message, PageBatchWriter, StateFrame, encode, encode_state};
use kemari_sync::{DeltaCache, SyncTally};
use kemari_vmm::machine::{Machine, MachineError};
use kemari_vmm::memory;
use kemari_vmm::state::StateBlob;

/// Pages of one frame. So few that a frame still lies in the processor's nearest cache when its checksum is taken, on both
/// sides, and that the secondary has taken all but the last of them when the last is sent.
const PAGES_PER_FRAME: usize = 16;

/// One sync, captured.
pub struct Capture {
    /// Number of the sync.
    pub epoch: u64,
    /// Its dirty pages, owed to the secondary until the ack.
    pub pages: Vec<u64>,
    /// The states of all components.
    pub states: Vec<StateBlob>,
    /// Its pages, and those of its states that have changed, as frames. Empty once handed to the link.
    pub frames: Vec<u8>,
    /// Counts the frames.
    tally: SyncTally,
    /// What the states, the search for dirty pages and their encoding took, in microseconds.
    pub took_us: [u64; 3],
    /// Whether the guest has powered itself off in it.
    pub stop: bool,
}

/// A capture that failed. Its dirty pages are owed all the same.
pub struct Failed {
    pub pages: Vec<u64>,
    pub error: anyhow::Error,
}

impl Capture {
    /// Pauses the machine, holds its output from here on if `hold`, and takes state, output and dirty pages; `owed` are
    /// pages that are dirty already, `acked` the states that the secondary has for certain, `deltas` what of its pages is
    /// known, if they are to be used. The frames are built in `buffer`. The machine stays paused.
    pub fn take(
        machine: &Machine,
        epoch: u64,
        hold: bool,
        owed: Vec<u64>,
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
        frozen.capture_output(epoch);
        let mut states = Vec::new();
        let saved = frozen.save_state(&mut states);
        let states_at = Instant::now();
        // Last: saving state may have written memory.
        let mut pages = owed;
        let already = pages.len();
        let collected = frozen.collect_dirty(&mut pages);
        if already > 0 {
            // In order, as the dirty log tells them: a delta must be the only word on its page.
            pages.sort_unstable();
            pages.dedup();
        }
        if let Err(error) = saved.and(collected) {
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
            tally: SyncTally::default(),
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
                pages: capture.pages,
                error,
            }),
        }
    }

    fn encode(
        &mut self,
        machine: &Machine,
        acked: &[StateBlob],
        mut deltas: Option<&mut DeltaCache>,
    ) -> anyhow::Result<()> {
        let memory = machine.memory();
        if let Some(deltas) = &mut deltas {
            deltas.begin(self.epoch);
        }
        self.frames.clear();
        self.frames
            .reserve(self.pages.len() * (memory::PAGE_BYTES + 16) + (64 << 10));
        for chunk in self.pages.chunks(PAGES_PER_FRAME) {
            let mut batch = PageBatchWriter::new(false, &mut self.frames);
            let mut read = Ok(());
            for &page in chunk {
                let mut fill = |bytes: &mut [u8; memory::PAGE_BYTES]| {
                    if let Err(error) = memory::read_page(memory, page, bytes) {
                        read = Err(error);
                    }
                };
                match deltas.as_mut().and_then(|deltas| deltas.send(page, &mut fill)) {
                    Some((bytes, Some(base))) => batch.push_delta(page, base, bytes),
                    Some((bytes, None)) => batch.push(page, bytes),
                    None => batch.push_with(page, fill),
                }
            }
            let count = batch.pages();
            let header = batch.finish();
            read?;
            self.tally.add_pages(&header, count);
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

    /// The whole sync as it goes over the wire: begin, pages and states, commit. The frames are gone afterwards.
    pub fn transmission(&mut self, begin: Begin, stop: bool) -> [Vec<u8>; 3] {
        let (mut opening, mut closing) = (Vec::new(), Vec::new());
        encode(&Message::Begin(begin), &mut opening);
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
