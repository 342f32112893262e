//! virtio-rng: an entropy device (virtio 1.2, section 5.4).

use super::budget::Cost;
use super::{Backend, Chain, GuestFault, Nature, QueueRole, QueueSpec, Submission};
use crate::memory::{Memory, Segments};

/// Most bytes given for one request; a driver asks again for more.
const BYTES_PER_REQUEST_MAX: usize = 4096;

/// The entropy device: random bytes of the host's kernel.
pub struct Rng;

impl Backend for Rng {
    type Request = Segments;
    type State = ();

    fn device_id(&self) -> u32 {
        4
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [QueueSpec] {
        &[QueueSpec {
            suffix: "",
            entries_max: 64,
            role: QueueRole::Requests,
        }]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn parse(
        &mut self,
        _: usize,
        chain: Chain<'_>,
        memory: &Memory,
    ) -> Result<(Segments, Nature), GuestFault> {
        let (_, writable) = chain.buffers(memory)?;
        Ok((writable.up_to(BYTES_PER_REQUEST_MAX as u64), Nature::Input))
    }

    fn check(&self, request: &Segments, memory: &Memory) -> Result<(), GuestFault> {
        match request.len() > BYTES_PER_REQUEST_MAX as u64 {
            true => Err(GuestFault(format!(
                "{} bytes of entropy at a time",
                request.len()
            ))),
            false => Ok(request.check(memory)?),
        }
    }

    fn cost(&self, request: &Segments) -> Cost {
        Cost {
            segments: request.count(),
            bytes: request.len(),
        }
    }

    fn copy_aside(&self, _: &Segments, _: &Memory) -> Result<Vec<u8>, GuestFault> {
        Ok(Vec::new())
    }

    fn submit(
        &mut self,
        _: u64,
        request: &Segments,
        _: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Submission, GuestFault> {
        let mut bytes = vec![0; request.len() as usize];
        // SAFETY: the pointer and the length are those of a live buffer.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes.truncate(usize::try_from(filled).unwrap_or(0));
        Ok(Submission::Done(request.write(&bytes, memory)?))
    }

    fn save(&self) {}

    fn load(&mut self, (): ()) -> Result<(), String> {
        Ok(())
    }
}
