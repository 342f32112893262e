//! A peer's frames, with good headers and checksums: the secondary's intake, its staging, its memory and its
//! mechanism, as `kemari/src/side/secondary/` puts them together.
//!
//! See [`Intake::step`] for what the tape says.

mod sessions;

use std::collections::BTreeMap;

use kemari_sync::wire::{
    BlockFrame, Commit, FrameHeader, FrameKind, HEADER_BYTES, Message, PAGE_BYTES, Page, PageBatch,
    PageBatchWriter, PageContent, Staging, SyncTally, apply_delta, base_checksum, encode, seal,
};
use kemari_sync::{
    DiskOffer, Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent, SessionId, Timing,
};
use kemari_vmm::state::{StateBlob, StateKind};

use super::support::store::{Store, host, record};
use super::support::tape::Tape;

/// Pages of the guest's memory.
const PAGES: u64 = 64;
/// Bytes of staging, and room for states.
const STAGING_BYTES: usize = 256 << 10;
/// Steps of one input at most.
const STEPS_MAX: usize = 200;
/// Longest body of a frame, in bytes.
const BODY_BYTES_MAX: usize = 8 << 10;

/// A secondary without hosts, with an arbiter that does what it is asked.
struct Intake {
    core: Secondary,
    now_ms: u64,
    /// The two sessions that may be open: their numbers change whenever one ends.
    sessions: [SessionId; 2],
    next_session: SessionId,
    staging: Staging,
    staged: Option<SessionId>,
    copying: Option<SessionId>,
    tally: SyncTally,
    epoch: u64,
    memory: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
    store: Store,
    has_disk: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape::new(bytes);
    let mut intake = Intake::new(tape.u8());
    for _ in 0..STEPS_MAX {
        if tape.is_empty() || intake.core.is_over() {
            break;
        }
        intake.step(&mut tape);
    }
}

impl Intake {
    fn new(how: u8) -> Self {
        let config = SecondaryConfig {
            me: host("b", 2),
            vm: "vm".into(),
            config_digest: 7,
            timing: Timing::default(),
            fence_ms_max: (how & 1 != 0).then_some(1_000),
            staging_pages_max: 50,
        };
        Self {
            core: Secondary::new(config, 0),
            now_ms: 0,
            sessions: [1, 2],
            next_session: 3,
            staging: Staging::with_states(STAGING_BYTES, STAGING_BYTES),
            staged: None,
            copying: None,
            tally: SyncTally::default(),
            epoch: 0,
            memory: BTreeMap::new(),
            store: Store(record(2, Some(host("b", 2)))),
            has_disk: how & 2 != 0,
        }
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        let what = tape.u8();
        let which = usize::from(what >> 7);
        match what & 7 {
            0..4 => {
                let (kind, length) = (u16::from(tape.u8() % 27), usize::from(tape.u16()));
                if let Some(kind) = FrameKind::from_wire(kind) {
                    let body = tape.bytes(length.min(BODY_BYTES_MAX).min(kind.body_bytes_max()));
                    self.frame(which, kind, body);
                }
            }
            4 => self.delta(which, tape),
            5 => {
                let commit = self.tally.commit(self.epoch, what & 8 != 0);
                self.hear(which, Message::Commit(commit));
            }
            6 => {
                self.now_ms += u64::from(tape.u16());
                self.feed(SecondaryEvent::Tick);
            }
            _ => self.happen(which, tape.u8()),
        }
    }

    /// What happens on this host meanwhile.
    fn happen(&mut self, which: usize, what: u8) {
        let reason = || "so".to_owned();
        match what % 6 {
            0 => self.lose(which, "it closed the connection"),
            1 => self.feed(SecondaryEvent::OperatorTakeover),
            2 => self.feed(SecondaryEvent::Readiness {
                reasons: vec![reason()],
            }),
            3 => self.feed(SecondaryEvent::Readiness { reasons: Vec::new() }),
            4 => self.feed(SecondaryEvent::StateRefused { reason: reason() }),
            _ => self.feed(SecondaryEvent::ReplicaFailed { reason: reason() }),
        }
    }

    /// A frame as it comes out of a connection.
    fn frame(&mut self, which: usize, kind: FrameKind, body: &[u8]) {
        let mut bytes = Vec::new();
        seal(kind, body, &mut bytes);
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().expect("a header");
        let header = FrameHeader::parse(header).expect("a good header");
        header.check(body).expect("a good checksum");
        let session = self.sessions[which];
        if kind != FrameKind::Hello && !self.core.follows(session) {
            return self.lose(which, "it did not begin with a greeting");
        }
        match kind {
            FrameKind::Pages | FrameKind::State => self.stage(session, &header, body),
            FrameKind::CopyPages => self.take_copy(which, &header, body),
            FrameKind::DiskSums | FrameKind::DiskBlocks => match BlockFrame::parse(kind, body) {
                Ok(frame) => assert!(frame.place.checked_add(frame.count.into()).is_some()),
                Err(_) => self.lose(which, "these are no blocks"),
            },
            _ => match kemari::link::decode(kind, body) {
                Ok(message) => self.hear(which, message),
                Err(_) => self.lose(which, "this is no message"),
            },
        }
    }

    fn lose(&mut self, which: usize, why: &str) {
        let session = self.sessions[which];
        self.end_session(session);
        self.feed(SecondaryEvent::PeerClosed {
            session,
            reason: why.into(),
        });
    }

    fn end_session(&mut self, session: SessionId) {
        for open in &mut self.sessions {
            if *open == session {
                *open = self.next_session;
                self.next_session += 1;
            }
        }
    }

    fn hear(&mut self, which: usize, message: Message) {
        let session = self.sessions[which];
        if !matches!(message, Message::Hello(_)) && !self.core.follows(session) {
            return;
        }
        self.feed(SecondaryEvent::Message { session, message });
    }

    fn feed(&mut self, event: SecondaryEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            self.core.handle(self.now_ms, event, &mut actions);
            // Their answers come in their order.
            let answers: Vec<SecondaryEvent> = actions
                .into_iter()
                .filter_map(|action| self.carry_out(action))
                .collect();
            events.extend(answers.into_iter().rev());
        }
    }

    fn carry_out(&mut self, action: SecondaryAction) -> Option<SecondaryEvent> {
        match action {
            SecondaryAction::Send { message, .. } => {
                let mut bytes = Vec::new();
                encode(&message, &mut bytes);
            }
            SecondaryAction::Prepare { session } => {
                self.copying = Some(session);
                let result = Ok(self.offers());
                return Some(SecondaryEvent::Prepared { session, result });
            }
            SecondaryAction::MarkTargets { session, .. } => {
                let result = Ok(());
                return Some(SecondaryEvent::TargetsMarked { session, result });
            }
            SecondaryAction::Stage { session, epoch } => {
                self.staging.begin(epoch);
                (self.staged, self.epoch, self.tally) = (Some(session), epoch, SyncTally::default());
            }
            SecondaryAction::Check { commit } => return Some(self.check(&commit)),
            SecondaryAction::Discard { .. } => self.discard(),
            SecondaryAction::Apply { epoch } => {
                self.apply();
                return Some(SecondaryEvent::Applied { epoch });
            }
            SecondaryAction::Ask { ask, request } => {
                let answer = self.store.ask(request);
                return Some(SecondaryEvent::Arbiter { ask, answer });
            }
            SecondaryAction::Fence { .. } => return Some(SecondaryEvent::Fenced { result: Ok(()) }),
            SecondaryAction::Restore { .. } => return Some(SecondaryEvent::Restored { result: Ok(()) }),
            SecondaryAction::CloseSession { session, .. } => self.end_session(session),
            SecondaryAction::Forget { .. } => {
                self.discard();
                self.copying = None;
            }
            _ => {}
        }
        None
    }

    fn offers(&self) -> Vec<DiskOffer> {
        let offer = DiskOffer {
            disk: "blk0".into(),
            bytes: 64 << 20,
            word: None,
            overwrite: false,
        };
        Vec::from_iter(self.has_disk.then_some(offer))
    }

    fn discard(&mut self) {
        self.staging.clear();
        self.staged = None;
    }

    fn stage(&mut self, session: SessionId, header: &FrameHeader, body: &[u8]) {
        if self.staged != Some(session) {
            return;
        }
        let memory = &self.memory;
        let sum = |gfn| base_checksum(memory.get(&gfn).map_or(&[0; PAGE_BYTES], |page| page));
        match self.staging.accept(header, body, |gfn| gfn < PAGES, sum) {
            Ok(()) if header.kind == FrameKind::State => self.tally.add_state(header),
            Ok(()) => {
                let batch = PageBatch::parse(header.kind, body, |gfn| gfn < PAGES);
                self.tally
                    .add_pages(header, batch.expect("it was accepted").len());
            }
            Err(error) => {
                self.staged = None;
                self.feed(SecondaryEvent::StagingFailed {
                    epoch: self.epoch,
                    reason: error.to_string(),
                });
            }
        }
    }

    fn check(&mut self, commit: &Commit) -> SecondaryEvent {
        let mut result = self.staging.check(commit).map_err(|error| error.to_string());
        for state in self.staging.states() {
            if StateKind::from_wire(state.kind).is_none() {
                result = Err(format!("no state has kind {}", state.kind));
            }
        }
        SecondaryEvent::Checked {
            epoch: commit.epoch,
            result,
        }
    }

    fn apply(&mut self) {
        self.staging
            .pages()
            .for_each(|page| write_page(&mut self.memory, page));
        let states: Vec<StateBlob> = self
            .staging
            .states()
            .filter_map(|state| {
                Some(StateBlob {
                    kind: StateKind::from_wire(state.kind)?,
                    instance: state.instance,
                    version: state.version,
                    bytes: state.bytes.to_vec(),
                })
            })
            .collect();
        assert!(states.len() <= STAGING_BYTES);
        self.discard();
    }

    fn take_copy(&mut self, which: usize, header: &FrameHeader, body: &[u8]) {
        if self.copying != Some(self.sessions[which]) {
            return self.lose(which, "pages came before they were asked for");
        }
        match PageBatch::parse(header.kind, body, |gfn| gfn < PAGES) {
            Ok(batch) => batch.iter().for_each(|page| write_page(&mut self.memory, page)),
            Err(_) => self.lose(which, "these are no pages"),
        }
    }

    /// A page that has changed here and there since the last commit, as a primary would send it.
    fn delta(&mut self, which: usize, tape: &mut Tape<'_>) {
        let gfn = u64::from(tape.u8()) % PAGES;
        let mut base = self.memory.get(&gfn).map_or([0; PAGE_BYTES], |page| **page);
        let mut now = base;
        for _ in 0..tape.u8() % 4 {
            let at = usize::from(tape.u16()) % PAGE_BYTES;
            let count = usize::from(tape.u8()).min(PAGE_BYTES - at);
            let bytes = tape.bytes(count);
            now[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let mut bytes = Vec::new();
        let mut writer = PageBatchWriter::new(false, &mut bytes);
        writer.push_delta(gfn, &mut base, &now);
        if writer.finish().is_some() {
            self.frame(which, FrameKind::Pages, &bytes[HEADER_BYTES..]);
        }
    }
}

fn write_page(memory: &mut BTreeMap<u64, Box<[u8; PAGE_BYTES]>>, page: Page<'_>) {
    let kept = memory
        .entry(page.gfn)
        .or_insert_with(|| Box::new([0; PAGE_BYTES]));
    match page.content {
        PageContent::Zero => kept.fill(0),
        PageContent::Raw(bytes) => kept.copy_from_slice(bytes),
        PageContent::Delta { runs, .. } => apply_delta(runs, |at, bytes| {
            kept[at..at + bytes.len()].copy_from_slice(bytes);
        }),
    }
}

/// A frame on the tape.
fn on_tape(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let head = [&[0, kind as u8][..], &(body.len() as u16).to_le_bytes()].concat();
    [head, body.to_vec()].concat()
}

/// A message on the tape.
fn said(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = encode(message, &mut bytes);
    on_tape(header.kind, &bytes[HEADER_BYTES..])
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    sessions::all()
}
