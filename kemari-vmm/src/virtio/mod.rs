//! Virtio devices (virtio 1.2) on the MMIO transport.
//!
//! One mechanism lies under all devices: [`device::VirtioDevice`] owns transport, queues, request list and
//! event channels; a [`Backend`] only says what its requests are and carries them out. Output is held,
//! captured, released and re-issued without a back end knowing of it.

pub mod block;
pub mod budget;
mod chain;
pub mod device;
pub mod net;
mod offload;
pub mod rate;
pub mod request;
pub mod rng;
mod saved;
pub mod tap;
mod transport;

use std::sync::Weak;
use std::time::Instant;

use serde::{Serialize, de::DeserializeOwned};
use virtio_queue::Queue;

pub(crate) use budget::QUEUE_ENTRIES_MAX;
pub use chain::Chain;

use budget::Cost;

use crate::memory::{BadBuffer, Memory};

/// What a guest did that no driver may do. Its device stops with NEEDS_RESET; the VM and its protection live.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GuestFault(pub String);

impl From<BadBuffer> for GuestFault {
    fn from(error: BadBuffer) -> Self {
        Self(error.to_string())
    }
}

/// Whether a request shows something to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// It does (a packet, a disk write): it needs consent.
    Output,
    /// It does not (a disk read): it is carried out at once, past held output.
    Input,
    /// It does not, but it bears on the output before it (a disk's flush): it is carried out at once, unless
    /// output of its device waits.
    Barrier,
}

/// How a back end uses a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// Every chain is a request.
    Requests,
    /// The chains are buffers for input, left in the ring until input comes.
    Supply,
}

/// One virtqueue of a device.
#[derive(Clone, Copy, Debug)]
pub struct QueueSpec {
    /// Added to the device's id to name the queue's event channel: `net0` + `.tx`. May be empty.
    pub suffix: &'static str,
    /// Entries offered, a power of two up to [`QUEUE_ENTRIES_MAX`].
    pub entries_max: u16,
    /// How its chains are used.
    pub role: QueueRole,
}

/// What became of a submitted request.
pub enum Submission {
    /// Finished; so many bytes were written into its buffers.
    Done(u32),
    /// Under way: [`Completions::complete`] will be called with its id.
    Pending,
}

/// What a back end's own thread reports of a request: the bytes read (empty for others), or why it failed.
pub type Completion = std::io::Result<Vec<u8>>;

/// Takes completions from the threads of a back end.
pub trait Completions: Send + Sync {
    /// Finishes the requests with these ids.
    fn complete(&self, completions: Vec<(u64, Completion)>);
    /// Tells that input may have come.
    fn input_ready(&self);
    /// Goes on with what a rate has left in the rings.
    fn resume(&self) {}
}

/// What became of the input that waited outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input {
    /// Whether buffers of the guest were used.
    pub used: bool,
    /// Whether more waits, for which there was no time in one turn.
    pub more: bool,
    /// Nothing more is let in by the rate before then.
    pub paced: Option<Instant>,
}

impl Input {
    /// Nothing more is there.
    pub fn idle(used: bool) -> Self {
        Self {
            used,
            ..Self::default()
        }
    }
}

/// What makes one kind of virtio device: what its requests are, and how they are carried out.
pub trait Backend: Send + 'static {
    /// One request, parsed: all that is needed to carry it out, or to carry it out again.
    type Request: Serialize + DeserializeOwned + Clone + Send + 'static;
    /// The part of the device's state that is neither transport nor queue nor request.
    type State: Serialize + DeserializeOwned;

    /// Virtio device type.
    fn device_id(&self) -> u32;
    /// Features of this device type that are offered, besides the transport's own.
    fn features(&self) -> u64;
    /// The device's queues.
    fn queues(&self) -> &'static [QueueSpec];
    /// The device's configuration space.
    fn config(&self) -> Vec<u8>;
    /// The driver is ready, with these features.
    fn activate(&mut self, _features: u64) {}
    /// Whether requests wait for an operator: then it is no sign of a hanging host that they are unfinished.
    fn waits_for_operator(&self) -> bool {
        false
    }
    /// The driver is about to reset the device or a queue, or the machine ends: what is under way is waited
    /// for, and what fails meanwhile is finished as failed, for nobody will try it again.
    fn winding_up(&mut self, _begins: bool) {}
    /// The driver resets the device.
    fn reset(&mut self) {}
    /// Gives the back end a way to report from its own threads.
    fn connect(&mut self, _completions: Weak<dyn Completions>) {}
    /// Understands a request.
    fn parse(
        &mut self,
        queue: usize,
        chain: Chain<'_>,
        memory: &Memory,
    ) -> Result<(Self::Request, Nature), GuestFault>;
    /// Checks a request of a saved state: it must be one that [`Backend::parse`] could have returned. Called
    /// after [`Backend::load`].
    fn check(&self, request: &Self::Request, memory: &Memory) -> Result<(), GuestFault>;
    /// What a request takes of the device's budget.
    fn cost(&self, request: &Self::Request) -> Cost;
    /// Counts a request against the device's rate, if it has one.
    ///
    /// # Errors
    /// It is too early for one more; when to ask again.
    fn admit(&mut self, _request: &Self::Request) -> Result<(), Instant> {
        Ok(())
    }
    /// The bytes that an output shows, taken from the guest's memory now.
    fn copy_aside(&self, request: &Self::Request, memory: &Memory) -> Result<Vec<u8>, GuestFault>;
    /// Several requests are about to be submitted: they may be gathered until [`Backend::batch_ends`].
    fn batch_begins(&mut self) {}
    /// No more requests come for now: what was gathered must begin.
    fn batch_ends(&mut self) {}
    /// Carries out a released request, with the bytes of its capture if there was one.
    fn submit(
        &mut self,
        id: u64,
        request: &Self::Request,
        data: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Submission, GuestFault>;
    /// Writes the outcome of a pending request into the guest's memory; returns the bytes written.
    fn finish(
        &mut self,
        _request: &Self::Request,
        _completion: Completion,
        _memory: &Memory,
    ) -> Result<u32, GuestFault> {
        Ok(0)
    }
    /// Moves input that waits outside into the buffers of a [`QueueRole::Supply`] queue.
    fn input(&mut self, _queue: &mut Queue, _memory: &Memory) -> Result<Input, GuestFault> {
        Ok(Input::default())
    }
    /// Whether the configuration space changed by what was just done, so that the driver must be told.
    fn take_config_change(&mut self) -> bool {
        false
    }
    /// Makes what was written durable, when the machine stops for good.
    fn flush(&mut self) {}
    /// State to save.
    fn save(&self) -> Self::State;
    /// State to continue from.
    ///
    /// # Errors
    /// A sentence that says why this back end cannot continue from it.
    fn load(&mut self, state: Self::State) -> Result<(), String>;
}
