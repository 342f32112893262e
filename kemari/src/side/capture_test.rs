//! After thousands of syncs of a running guest, in every mode and encoding, some of which fail, what a
//! secondary has is what the primary had at the capture: the whole memory, and every state.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kemari_sync::wire::{
    Begin, DeltaCache, FrameHeader, FrameKind, HEADER_BYTES, Message, Page, PageContent, Staging,
    apply_delta, base_checksum, decode, encode,
};
use kemari_sync::{Debt, Mode, Opening, SessionId};
use kemari_vmm::boot::{BootConfig, Kernel};
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::machine::{Machine, MachineSpec};
use kemari_vmm::memory::{self, Memory, PAGE_BYTES};
use kemari_vmm::state::StateBlob;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ahead::{self, Ahead};
use crate::link::Outgoing;

use super::capture::{AtOnce, Capture, Known};

/// The session in which pages go ahead, and the one that follows it.
const SESSIONS: [SessionId; 2] = [1, 2];
/// Pages, spread over memory, that the VMM writes before some go ahead.
const SCATTERED_PAGES: u64 = 300;

fn bare_guest() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/bare");
    let program = directory.join("target/release/bare-guest");
    if !program.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "--release"])
            .current_dir(&directory)
            .env_remove("CARGO_TARGET_DIR");
        assert!(
            cargo.status().is_ok_and(|status| status.success()),
            "the bare guest is built"
        );
    }
    program
}

/// A machine with the bare guest, busy.
pub(super) fn spec(memory_mib: u64, dirty_source: DirtySource) -> MachineSpec {
    let config = BootConfig {
        kernel: bare_guest(),
        initrd: None,
        // It dirties pages and kicks, without a client. However slow this machine is, no sync is larger than
        // that area and a little more.
        cmdline: "kickloop=30:600 pattern=2000".into(),
    };
    MachineSpec {
        memory_bytes: memory_mib << 20,
        vcpus: 1,
        kernel: Arc::new(Kernel::open(&config).expect("the bare guest is a kernel")),
        disks: Vec::new(),
        nets: Vec::new(),
        rng: true,
        dirty_source,
    }
}

pub(super) fn machine(memory_mib: u64, dirty_source: DirtySource) -> Machine {
    let spec = spec(memory_mib, dirty_source);
    let machine = Machine::new(spec, Box::new(std::io::sink()), Arc::new(|_| {})).expect("a machine");
    machine.boot().expect("it boots");
    machine
}

/// What a secondary has.
struct Shadow {
    memory: Memory,
    states: Vec<StateBlob>,
    staging: Staging,
    /// Pages that came as deltas.
    deltas: usize,
}

impl Shadow {
    fn checksum(memory: &Memory, gfn: u64) -> u32 {
        let mut page = [0; PAGE_BYTES];
        memory::read_page(memory, gfn, &mut page).expect("a page of the guest");
        base_checksum(&page)
    }

    /// Takes what went ahead, if it did so in the session of the rest, and the rest.
    fn stage(&mut self, epoch: u64, ahead: &[u8], buffers: &[Outgoing; 3]) {
        let [opening, frames, closing] = buffers.each_ref().map(Outgoing::rest);
        let all = [ahead, opening, frames].concat();
        let mut rest = &all[..];
        let mut begins = 0;
        while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::parse(header).expect("a frame");
            let (body, after) = after.split_at(header.length);
            rest = after;
            if header.kind == FrameKind::Begin {
                begins += 1;
                self.staging.begin(epoch);
                continue;
            }
            let memory = &self.memory;
            self.staging
                .accept(
                    &header,
                    body,
                    |gfn| memory::has_page(memory, gfn),
                    |gfn| Self::checksum(memory, gfn),
                )
                .expect("the frame is good, and its deltas are of what is here");
        }
        assert_eq!(begins, 1, "sync {epoch} is opened once");
        let Ok(Message::Commit(commit)) = decode(FrameKind::Commit, &closing[HEADER_BYTES..]) else {
            panic!("the sync is not closed");
        };
        self.staging.check(&commit).expect("the sync is whole");
    }

    fn commit(&mut self) {
        for Page { gfn, content } in self.staging.pages() {
            let write = |offset, bytes: &[u8]| {
                memory::write_in_page(&self.memory, gfn, offset, bytes).expect("the page was checked");
            };
            match content {
                PageContent::Zero => write(0, &[0; PAGE_BYTES]),
                PageContent::Raw(bytes) => write(0, bytes),
                PageContent::Delta { runs, .. } => {
                    self.deltas += 1;
                    apply_delta(runs, write);
                }
            }
        }
        for frame in self.staging.states() {
            let other = self
                .states
                .iter_mut()
                .find(|state| (state.kind as u16, state.instance) == (frame.kind, frame.instance));
            other.expect("it was in the first one").bytes = frame.bytes.to_vec();
        }
        self.staging.clear();
    }
}

fn assert_same(ours: &Memory, theirs: &Memory, epoch: u64) {
    let (mut one, mut other) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    for gfn in memory::all_pages(ours) {
        memory::read_page(ours, gfn, &mut one).expect("a page of the guest");
        memory::read_page(theirs, gfn, &mut other).expect("a page of the guest");
        assert_eq!(one, other, "page {gfn:#x} after sync {epoch}");
    }
}

/// What the syncs of a run were.
#[derive(Debug, Default)]
struct Seen {
    failed: usize,
    compared: usize,
    pages: usize,
    unchanged: usize,
    deltas: usize,
    ahead: usize,
    at_once: usize,
}

/// Sends pages ahead of the sync. Returns what the secondary gets.
fn send_ahead(machine: &Machine, ahead: &mut Ahead, debt: &mut Debt, begin: &Begin) -> Vec<u8> {
    debt.find(|pages| machine.dirty().collect(pages))
        .expect("dirty pages are tracked");
    debt.of_next_sync();
    ahead::offer(debt);
    let mut bytes = Vec::new();
    while ahead::is_due(debt) {
        let opening = |out: &mut Vec<u8>| {
            encode(&Message::Begin(*begin), out);
        };
        let sent = ahead.send(machine, debt, (SESSIONS[0], begin.epoch), usize::MAX, opening);
        bytes.extend(sent.expect("pages of the guest"));
    }
    bytes
}

fn run(memory_mib: u64, source: DirtySource, syncs: u64, compare_every: u64) -> Seen {
    let machine = machine(memory_mib, source);
    let mut rng = StdRng::seed_from_u64(memory_mib);
    let mut shadow = Shadow {
        memory: memory::create(memory_mib << 20).expect("a second memory"),
        states: Vec::new(),
        staging: Staging::new(64 << 20),
        deltas: 0,
    };
    let mut deltas = DeltaCache::new(8 << 20);
    machine.dirty().start().expect("dirty pages are tracked");
    // What was there before the tracking: as the first copy does it.
    let mut page = [0; PAGE_BYTES];
    for gfn in memory::all_pages(machine.memory()) {
        memory::read_page(machine.memory(), gfn, &mut page).expect("a page of the guest");
        if page != [0; PAGE_BYTES] {
            memory::write_page(&shadow.memory, gfn, &page).expect("machines are equal");
        }
    }
    let last = memory::all_pages(machine.memory()).last().expect("it has memory");
    let (mut with_deltas, mut seen) = (true, Seen::default());
    let mut debt = Debt::default();
    machine.resume();
    for epoch in 1..=syncs {
        let mode = [Mode::Lockstep, Mode::Pipelined, Mode::Interval][rng.random_range(0..3)];
        match mode {
            Mode::Interval => std::thread::sleep(Duration::from_micros(rng.random_range(0..3000))),
            Mode::Lockstep | Mode::Pipelined => std::thread::sleep(Duration::from_micros(100)),
        }
        // The VMM writes, too: behind all that the guest uses, on either side of the hole.
        for gfn in [last - rng.random_range(0..50), 0x3f_00] {
            memory::write_in_page(
                machine.memory(),
                gfn,
                rng.random_range(0..4000),
                &epoch.to_le_bytes(),
            )
            .expect("a page of the guest");
        }
        if rng.random_bool(0.05) {
            with_deltas = !with_deltas;
        }
        if !with_deltas {
            deltas.clear();
        }
        let begin = Begin {
            epoch,
            base: None,
            term: 1,
            store: 1,
            primary: 1,
            secondary: 2,
        };
        let (mut ahead, mut early) = (Ahead::default(), Vec::new());
        if rng.random_bool(0.06) {
            for gfn in (0..SCATTERED_PAGES).map(|page| last - 100 - 7 * page) {
                memory::write_in_page(machine.memory(), gfn, 8, &epoch.to_le_bytes())
                    .expect("a page of the guest");
            }
            early = send_ahead(&machine, &mut ahead, &mut debt, &begin);
            seen.ahead += usize::from(!early.is_empty());
            // Some of them get dirty again.
            for gfn in (0..SCATTERED_PAGES / 10).map(|page| last - 100 - 70 * page) {
                memory::write_in_page(machine.memory(), gfn, 16, &epoch.to_le_bytes())
                    .expect("a page of the guest");
            }
            if rng.random_bool(0.3) {
                debt.end_session(SESSIONS[0]);
                early.clear();
            }
        }
        let ahead = debt.went_ahead_in(epoch).map(|_| ahead);
        if ahead.is_some() {
            deltas.clear();
        }
        let known = (with_deltas && ahead.is_none()).then_some(&mut deltas);
        let states = shadow.states.clone();
        let known = Known {
            states: &states,
            deltas: known,
        };
        let opening = Opening {
            session: SESSIONS[0],
            begin,
            pages_max: u64::MAX,
        };
        // The link takes some frames at once, and some not. As saving states may do it, memory is written
        // meanwhile: pages that were sent already, and others.
        let mut send = |bytes: &[u8]| {
            let taken = rng.random_bool(0.7);
            if taken {
                early.extend_from_slice(bytes);
            }
            if rng.random_bool(0.3) {
                let gfn = last - rng.random_range(0..60);
                memory::write_in_page(machine.memory(), gfn, 32, &epoch.to_le_bytes())
                    .expect("a page of the guest");
            }
            seen.at_once += usize::from(taken);
            taken
        };
        let at_once = AtOnce {
            opening,
            send: &mut send,
        };
        let at_once = Some(at_once).filter(|_| mode == Mode::Lockstep);
        let owed = (&mut debt, ahead);
        let taken = Capture::take(&machine, (epoch, true), owed, known, at_once, Vec::new());
        let mut capture = taken.expect("it is captured");
        if mode != Mode::Lockstep {
            machine.resume();
        }
        // The session may end between the capture and the sending.
        let session = SESSIONS[usize::from(rng.random_bool(0.3))];
        if session != SESSIONS[0] {
            early.clear();
        }
        let buffers = capture.transmission(session, debt.went_ahead_in(epoch), begin, false);
        if epoch == 1 {
            shadow.states.clone_from(&capture.states);
        } else if rng.random_bool(0.1) {
            // It came in part or as a whole, and was not committed.
            shadow.stage(epoch, &early, &buffers);
            shadow.staging.clear();
            debt.give_back(epoch);
            machine.give_back(epoch);
            deltas.failed();
            machine.resume();
            seen.failed += 1;
            continue;
        }
        shadow.stage(epoch, &early, &buffers);
        shadow.commit();
        deltas.acked(epoch);
        debt.acked(epoch);
        seen.pages += capture.pages as usize;
        seen.unchanged += (capture.pages - (capture.pages_sent() - capture.pages_ahead)) as usize;
        assert_eq!(shadow.states, capture.states, "the states after sync {epoch}");
        if mode == Mode::Lockstep && epoch > compare_every * seen.compared as u64 {
            seen.compared += 1;
            assert_same(machine.memory(), &shadow.memory, epoch);
        }
        machine.release(epoch);
        machine.resume();
    }
    machine.pause();
    seen.deltas = shadow.deltas;
    seen
}

#[test]
fn what_a_secondary_has_is_what_was_captured() {
    for source in [DirtySource::Best, DirtySource::Log] {
        let seen = run(64, source, 1500, 50);
        eprintln!("{source:?}: {seen:?}");
        assert!(
            seen.failed > 50
                && seen.compared > 20
                && seen.pages > 5_000
                && seen.unchanged > 30
                && seen.ahead > 40
                && seen.at_once > 200
                && seen.deltas > 1_000,
            "{seen:?}"
        );
    }
}

#[test]
fn the_same_on_both_sides_of_the_hole() {
    for source in [DirtySource::Best, DirtySource::Log] {
        let seen = run(3584, source, 150, 100);
        eprintln!("{source:?}: {seen:?}");
        assert!(seen.failed > 3 && seen.compared > 1, "{seen:?}");
    }
}
