//! A host: a process on it, its kernel (whose I/O outlives the process), its power.

use crate::consent::Start;
use crate::debt::Debt;
use crate::known::KnownStates;
use crate::primary::{Primary, PrimaryAction};
use crate::record::Incarnation;
use crate::secondary::{Secondary, SecondaryAction};
use crate::wire::DeltaCache;

use super::client::Request;
use super::copies::ImageCopy;
use super::image::Image;
use super::parts::{Content, Part};
use super::replicas::ImageSide;
use super::restores::Restores;
use super::vm::{PAGES, Vm};

/// A sync as the primary's driver keeps it until it is released or given back.
pub(super) struct Capture {
    pub(super) epoch: u64,
    pub(super) vm: Box<Vm>,
    /// Its pages as they are sent, but for those that went ahead.
    pub(super) pages: Vec<(usize, Content)>,
    /// The parts of its state that are sent.
    pub(super) parts: Vec<Part>,
}

/// The driver of a primary.
pub(super) struct PrimarySide {
    pub(super) machine: Primary,
    pub(super) vm: Vm,
    pub(super) gate_open: bool,
    pub(super) paused: bool,
    /// The guest does not run, since its disk has failed.
    pub(super) stands_still: bool,
    /// As soon as the VM is alone, its disk is to grow.
    pub(super) resizes: bool,
    /// Requests that the disk could not do, and that are to be tried again.
    pub(super) failed: Vec<u64>,
    /// Paused for good, waiting for I/O.
    pub(super) draining: bool,
    /// Nothing is given to the disk any more: this side hands over.
    pub(super) closing: bool,
    pub(super) debt: Debt,
    /// What the secondary has of pages and of states, for certain.
    pub(super) known_pages: DeltaCache,
    pub(super) known_states: KnownStates<Part>,
    pub(super) capture: Option<Capture>,
    /// Requests of clients and completions of the disk, while the machine is paused.
    pub(super) inbox: Vec<Input>,
    pub(super) writes_in_flight: u32,
    /// A connection is being made.
    pub(super) dialing: bool,
    pub(super) copy: ImageCopy,
}

#[derive(Clone, Debug)]
pub(super) enum Input {
    Request(Request),
    /// A request of the disk has ended, well or not.
    WriteDone(u64, bool),
}

/// What the secondary's driver has of a sync.
pub(super) struct Staged {
    pub(super) epoch: u64,
    pub(super) pages: Vec<(usize, Content)>,
    pub(super) parts: Vec<Part>,
    pub(super) damaged: bool,
}

/// The driver of a secondary.
pub(super) struct SecondarySide {
    pub(super) machine: Secondary,
    /// Whose `CopyPages`, `Pages` and `States` frames are taken.
    pub(super) session: Option<u64>,
    pub(super) primary: u128,
    pub(super) memory: [u64; PAGES],
    pub(super) staged: Option<Staged>,
    pub(super) state: Option<Box<Vm>>,
    pub(super) image: ImageSide,
    pub(super) restores: Restores,
    /// Term of the sync that began last.
    pub(super) begun_term: u64,
    /// Whether what was checked last, and what was committed last, ends the VM.
    pub(super) checked_stop: bool,
    pub(super) is_stop: bool,
}

#[expect(clippy::large_enum_variant)]
pub(super) enum Process {
    None,
    Starting(Start),
    Primary(PrimarySide),
    Secondary(SecondarySide),
}

pub(super) struct Host {
    pub(super) process: Process,
    /// Which process this is, counted over all hosts: events of older ones are void.
    pub(super) life: u64,
    /// Counts boots: I/O of an older one is lost.
    pub(super) boot: u64,
    pub(super) powered: bool,
    /// Its image of the replicated disk, if there is one.
    pub(super) image: Image,
    pub(super) me: Incarnation,
    /// When a secondary here looked last whether it could take over, in microseconds.
    pub(super) looked_us: u64,
    /// The process stands still until then, in microseconds.
    pub(super) stopped_until_us: u64,
    /// When a tick is scheduled, in microseconds.
    pub(super) tick_us: Option<u64>,
    pub(super) primary_actions: Vec<PrimaryAction>,
    pub(super) secondary_actions: Vec<SecondaryAction>,
}

impl Host {
    pub(super) fn primary(&mut self) -> Option<&mut PrimarySide> {
        match &mut self.process {
            Process::Primary(side) => Some(side),
            _ => None,
        }
    }

    pub(super) fn secondary(&mut self) -> Option<&mut SecondarySide> {
        match &mut self.process {
            Process::Secondary(side) => Some(side),
            _ => None,
        }
    }
}
