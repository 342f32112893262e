//! A session of a real primary with a real guest: greeting, copy, syncs. Whatever bit of it is another one,
//! it is refused before the ack, or what is committed loads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kemari_sync::wire::{
    DeltaCache, FrameHeader, FrameKind, HEADER_BYTES, Message, PageBatch, Staging, SyncTally, decode, encode,
    seal,
};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, CopyLimits, Debt, Incarnation, Mode, OnSecondaryLoss, Phase, Primary,
    PrimaryAction, PrimaryConfig, PrimaryEvent, Record, Reign, Secondary, SecondaryAction, SecondaryConfig,
    SecondaryEvent, Timing, Work,
};
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::machine::Machine;
use kemari_vmm::state::StateBlob;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::capture::{Capture, Known};
use super::super::capture_test;
use super::super::copy::{Copy, Next};
use super::super::primary::Seat;
use super::super::readiness::Opened;
use super::Standby;
use super::disks::StandbyDisks;
use super::inflow::Inflow;
use super::trial::Trial;
use crate::config::Config;
use crate::link::LinkError;

const SESSION: u64 = 1;
const MEMORY_MIB: u64 = 64;
const STAGING_BYTES: usize = 32 << 20;
/// Syncs of the session.
const SYNCS: usize = 4;
/// Flips of each kind of frame: with their checksums as they were, and with new ones, as who means it would
/// make them.
const DAMAGED: usize = 4;
const SEALED: usize = 24;

fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

/// What a secondary does with frames, but for its sockets and its arbiter.
struct Side {
    core: Secondary,
    standby: Standby,
    inflow: Inflow,
    is_copying: bool,
    is_closed: bool,
    acks: usize,
    said: Vec<Message>,
}

impl Side {
    fn new(config: &Config) -> Self {
        let spec = capture_test::spec(MEMORY_MIB, DirtySource::Best);
        let me = SecondaryConfig {
            me: host("b", 2),
            vm: "vm".to_owned(),
            config_digest: 7,
            timing: Timing::default(),
            fence_ms_max: None,
            staging_pages_max: 4_096,
        };
        Self {
            core: Secondary::new(me, 0),
            standby: Standby {
                seat: Seat::make(config, "b", spec).expect("a machine"),
                states: Vec::new(),
                trial: Trial::default(),
                restoration: Default::default(),
                build: 1,
                session: SESSION,
                disks: StandbyDisks::new(config, Vec::new()),
                opened: Opened::default(),
                copy: None,
                trackers: Vec::new(),
            },
            inflow: Inflow::new(Staging::new(STAGING_BYTES)),
            is_copying: false,
            is_closed: false,
            acks: 0,
            said: Vec::new(),
        }
    }

    /// Takes a frame. False: the session is over.
    fn take(&mut self, frame: &[u8]) -> bool {
        self.intake(frame).is_ok() && !self.is_closed
    }

    fn intake(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
        let header = FrameHeader::parse(header)?;
        let standby = &self.standby;
        match header.kind {
            FrameKind::CopyPages => {
                if !self.is_copying {
                    return Err(LinkError::Refused("pages came before they were asked for".into()));
                }
                header.check(body)?;
                let batch = PageBatch::parse(header.kind, body, |gfn| standby.has_page(gfn))?;
                batch.iter().for_each(|page| standby.write_page(page));
            }
            FrameKind::Pages | FrameKind::State => {
                if let Some(failed) = self.inflow.stage(SESSION, &header, Some(body), standby) {
                    self.feed(failed);
                }
            }
            kind => {
                header.check(body)?;
                let message = crate::link::decode(kind, body)?;
                let session = SESSION;
                self.feed(SecondaryEvent::Message { session, message });
            }
        }
        Ok(())
    }

    fn feed(&mut self, event: SecondaryEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut actions = Vec::new();
            self.core.handle(0, event, &mut actions);
            events.extend(actions.into_iter().filter_map(|action| self.perform(action)));
        }
    }

    fn perform(&mut self, action: SecondaryAction) -> Option<SecondaryEvent> {
        match action {
            SecondaryAction::Send { message, .. } => {
                self.acks += usize::from(matches!(message, Message::Ack(_) | Message::LetGo(_)));
                self.said.push(message);
            }
            SecondaryAction::Prepare { session } => {
                self.is_copying = true;
                let result = Ok(Vec::new());
                return Some(SecondaryEvent::Prepared { session, result });
            }
            SecondaryAction::Stage { session, epoch } => self.inflow.begin(session, epoch),
            SecondaryAction::Check { commit } => {
                let (epoch, standby) = (commit.epoch, &mut self.standby);
                let result = self
                    .inflow
                    .check(&commit, |states| standby.check_states(epoch, states, 0).map(drop));
                return Some(SecondaryEvent::Checked { epoch, result });
            }
            SecondaryAction::Apply { epoch } => {
                self.is_copying = false;
                self.inflow.commit_to(&mut self.standby);
                self.inflow.note_commit();
                return Some(SecondaryEvent::Applied { epoch });
            }
            SecondaryAction::Discard { .. } => self.inflow.discard(),
            SecondaryAction::CloseSession { .. } => self.is_closed = true,
            _ => {}
        }
        None
    }
}

/// A primary, and the frames that it has sent.
struct Recorder {
    core: Primary,
    machine: Machine,
    store: Record,
    side: Side,
    frames: Vec<Vec<u8>>,
    events: VecDeque<PrimaryEvent>,
    copy: Copy,
    debt: Debt,
    capture: Option<Capture>,
    states: Vec<StateBlob>,
    deltas: DeltaCache,
}

impl Recorder {
    fn new(config: &Config) -> Self {
        let store = Record {
            vm: "vm".to_owned(),
            store: 1,
            term: 1,
            base: 1,
            owner: host("a", 1),
            peer: None,
            phase: Phase::Acting,
            work: Work::default(),
        };
        let me = PrimaryConfig {
            me: host("a", 1),
            config_digest: 7,
            mode: Mode::Lockstep,
            timing: Timing::default(),
            // The guest dirties more than usual between two rounds.
            copy: CopyLimits {
                converged_pages: 4_000,
                rounds_max: 5,
            },
            on_secondary_loss: OnSecondaryLoss::Continue,
            protect: true,
            sources: Vec::new(),
        };
        let reign = Reign {
            record: store.clone(),
            last_epoch: 0,
        };
        Self {
            core: Primary::new(me, reign, 0),
            machine: capture_test::machine(MEMORY_MIB, DirtySource::Best),
            store,
            side: Side::new(config),
            frames: Vec::new(),
            events: VecDeque::new(),
            copy: Copy::default(),
            debt: Debt::default(),
            capture: None,
            states: Vec::new(),
            deltas: DeltaCache::new(8 << 20),
        }
    }

    /// The frames of a session with a copy and some syncs.
    fn record(mut self) -> Vec<Vec<u8>> {
        self.let_guest_run();
        self.feed(PrimaryEvent::PeerConnected { session: SESSION });
        while self.side.acks < SYNCS {
            self.let_guest_run();
            self.feed(PrimaryEvent::OutputPending);
        }
        self.frames
    }

    fn let_guest_run(&self) {
        self.machine.resume();
        std::thread::sleep(Duration::from_millis(20));
        self.machine.pause();
    }

    fn feed(&mut self, event: PrimaryEvent) {
        self.events.push_back(event);
        while let Some(event) = self.events.pop_front() {
            let mut actions = Vec::new();
            self.core.handle(0, event, &mut actions);
            actions.into_iter().for_each(|action| self.perform(action));
        }
    }

    fn perform(&mut self, action: PrimaryAction) {
        match action {
            PrimaryAction::Send { message, .. } => {
                let mut frame = Vec::new();
                encode(&message, &mut frame);
                self.pass(&frame);
            }
            PrimaryAction::Ask { ask, request } => {
                let answer = match request {
                    ArbiterRequest::Read => ArbiterAnswer::Record(Some(self.store.clone())),
                    ArbiterRequest::Swap { new, .. } => {
                        self.store = new;
                        ArbiterAnswer::Swapped
                    }
                };
                self.events.push_back(PrimaryEvent::Arbiter { ask, answer });
            }
            PrimaryAction::CopyRound { session, first } => {
                let dirty_pages = self.copy_round(first);
                self.events
                    .push_back(PrimaryEvent::CopyRoundSent { session, dirty_pages });
            }
            PrimaryAction::Capture { epoch, hold, .. } => self.capture(epoch, hold),
            PrimaryAction::Transmit { begin, stop, .. } => {
                let capture = self.capture.as_mut().expect("it was taken");
                let buffers = capture.transmission(SESSION, None, begin, stop);
                buffers.iter().for_each(|buffer| self.pass(buffer.rest()));
            }
            PrimaryAction::Release { epoch } => {
                self.states = self.capture.take().expect("it was taken").states;
                self.deltas.acked(epoch);
                self.debt.acked(epoch);
                self.machine.release(epoch);
            }
            PrimaryAction::Halt { reason } | PrimaryAction::CloseSession { reason, .. } => {
                panic!("it ends: {reason}")
            }
            _ => {}
        }
    }

    fn copy_round(&mut self, first: bool) -> u64 {
        let debt = &mut self.debt;
        self.copy.begin(&self.machine, debt, first).expect("a round");
        loop {
            match self.copy.next_frame(&self.machine).expect("pages of the guest") {
                Next::Frame(frame) => self.pass(&frame),
                Next::Nothing => {}
                Next::Done => {
                    return self
                        .copy
                        .end_round(&self.machine, &mut self.debt)
                        .expect("a dirty log");
                }
            }
        }
    }

    fn capture(&mut self, epoch: u64, hold: bool) {
        let known = Known {
            states: &self.states,
            deltas: Some(&mut self.deltas),
        };
        let owed = (&mut self.debt, None);
        let taken = Capture::take(&self.machine, (epoch, hold), owed, known, None, Vec::new());
        let capture = taken.expect("it is captured");
        self.events.push_back(PrimaryEvent::Captured {
            epoch,
            pages: capture.pages_sent(),
            bytes: capture.frames.len() as u64,
            stop: false,
        });
        self.capture = Some(capture);
    }

    /// Hands whole frames to the secondary, and what it says to the primary.
    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::parse(header).expect("a frame of ours");
            let (frame, after) = bytes.split_at(HEADER_BYTES + header.length);
            assert_eq!(frame.len() + after.len(), HEADER_BYTES + rest.len());
            self.frames.push(frame.to_vec());
            assert!(self.side.take(frame), "{:?} is refused", header.kind);
            let session = SESSION;
            let said = self.side.said.drain(..);
            self.events
                .extend(said.map(|message| PrimaryEvent::Message { session, message }));
            bytes = after;
        }
    }
}

fn kind(frame: &[u8]) -> FrameKind {
    let header = frame.first_chunk().expect("a header");
    FrameHeader::parse(header).expect("a frame of ours").kind
}

/// Flips a bit of a frame; `sealed`: of its body, whose checksum is good all the same.
fn flip(frame: &[u8], sealed: bool, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let first = if sealed { HEADER_BYTES } else { 0 };
    let at = rng.random_range(first..bytes.len());
    bytes[at] ^= 1 << rng.random_range(0..8);
    if !sealed {
        return bytes;
    }
    let mut again = Vec::new();
    seal(kind(frame), &bytes[HEADER_BYTES..], &mut again);
    again
}

/// Plays a session up to the end of the sync that the frame `at` is of, or comes before, with another one in
/// its place. Returns the secondary, and how many syncs it should have committed before.
fn play(config: &Config, frames: &[Vec<u8>], at: usize, flipped: &[u8]) -> (Side, usize) {
    let mut side = Side::new(config);
    let (mut tally, mut before) = (SyncTally::default(), 0);
    for (number, frame) in frames.iter().enumerate() {
        let (kind, mut frame) = (kind(frame), if number == at { flipped } else { frame }.to_vec());
        if let Ok(header) = FrameHeader::parse(frame.first_chunk().expect("a header")) {
            match kind {
                FrameKind::Begin => tally = SyncTally::default(),
                FrameKind::Pages => {
                    let batch = PageBatch::parse(kind, &frame[HEADER_BYTES..], |_| true);
                    tally.add_pages(&header, batch.map_or(0, |batch| batch.len()));
                }
                FrameKind::State => tally.add_state(&header),
                // Who changes a sync on purpose says what it is then.
                FrameKind::Commit if number > at => {
                    let Ok(Message::Commit(commit)) = decode(kind, &frame[HEADER_BYTES..]) else {
                        panic!("it is none")
                    };
                    frame.clear();
                    encode(
                        &Message::Commit(tally.commit(commit.epoch, commit.stop)),
                        &mut frame,
                    );
                }
                _ => {}
            }
        }
        let stands = side.take(&frame);
        match kind == FrameKind::Commit {
            _ if !stands => break,
            true if number >= at => break,
            true => before += 1,
            false => {}
        }
    }
    (side, before)
}

#[test]
fn a_flipped_bit_of_a_session_is_refused_before_the_ack_or_what_it_makes_loads() {
    let text = "vm = \"vm\"\n[machine]\nmemory_mib = 64\nkernel = \"none\"\n[protection]\nplaintext = true\n\
                [arbiter]\nkind = \"none\"\n[hosts.a]\nlisten = \"10.0.0.1:1\"\n[hosts.b]\n\
                listen = \"10.0.0.2:1\"\n";
    let config = Arc::new(Config::parse(text, "test").expect("a configuration"));
    let frames = Recorder::new(&config).record();
    let mut by_kind = BTreeMap::<u16, Vec<usize>>::new();
    for (number, frame) in frames.iter().enumerate() {
        by_kind.entry(kind(frame) as u16).or_default().push(number);
    }
    assert!(
        by_kind.len() >= 8,
        "not all kinds are there: {:?}",
        by_kind.keys()
    );
    let mut rng = StdRng::seed_from_u64(14);
    let (mut refused, mut loaded, mut found_later) = (0, 0, 0);
    for (kind, numbers) in &by_kind {
        for flips in 0..DAMAGED + SEALED {
            let sealed = flips >= DAMAGED;
            let at = numbers[rng.random_range(0..numbers.len())];
            if sealed && frames[at].len() == HEADER_BYTES {
                continue;
            }
            let flipped = flip(&frames[at], sealed, &mut rng);
            let (side, before) = play(&config, &frames, at, &flipped);
            if side.acks == before {
                refused += 1;
                continue;
            }
            assert!(sealed, "a damaged frame of kind {kind} is acked");
            let (machine, states) = (&side.standby.seat.machine, &side.standby.states);
            // What KVM says of a later sync is found out within a second, and ends the pair.
            let tried = machine.try_on(states);
            assert!(tried.is_ok() || before > 0, "{kind}: {:?}", tried.err());
            assert_eq!(machine.load(states, false).is_ok(), tried.is_ok());
            match tried {
                Ok(()) => loaded += 1,
                Err(_) => found_later += 1,
            }
        }
    }
    eprintln!(
        "{refused} refused, {loaded} acked and load, {found_later} of a later sync found by the next trial"
    );
    assert!(refused > 0 && loaded > 0);
}
