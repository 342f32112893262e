//! The 16550 console. It has no ring: what the guest has written waits in a bounded, numbered buffer, which
//! is device state. Console output is at-least-once across a takeover.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};

use super::Device;
use super::hub::Hub;
use crate::event::{Direction, EventChannel};
use crate::release::{HeldBytes, Releasable};
use crate::state::{State, StateBlob, StateError, StateKind};

struct Line {
    hub: Arc<Hub>,
    gsi: u32,
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.hub.pulse(self.gsi);
        Ok(())
    }
}

/// Where the chip puts the bytes that the guest writes.
#[derive(Default)]
struct Transmitter(Vec<u8>);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Locked {
    chip: Serial<Line, NoEvents, Transmitter>,
    output: HeldBytes,
    sink: Box<dyn Write + Send>,
}

/// The console.
pub struct Console {
    hub: Arc<Hub>,
    gsi: u32,
    channel: Arc<EventChannel>,
    core: Mutex<Locked>,
}

#[derive(Serialize, Deserialize)]
struct SavedConsole {
    /// Divisor low and high, interrupt enable and identification, line control and status, modem control and
    /// status, scratch: in the order of the chip's registers.
    registers: [u8; 9],
    input: Vec<u8>,
    output: HeldBytes,
}

impl State for SavedConsole {
    const KIND: StateKind = StateKind::Serial;
    const VERSION: u16 = 1;
}

impl Console {
    /// A console whose released output goes to `sink`.
    pub fn new(hub: Arc<Hub>, gsi: u32, sink: Box<dyn Write + Send>) -> Arc<Self> {
        let chip = Serial::new(
            Line {
                hub: hub.clone(),
                gsi,
            },
            Transmitter::default(),
        );
        let core = Mutex::new(Locked {
            chip,
            output: HeldBytes::default(),
            sink,
        });
        Arc::new(Self {
            hub,
            gsi,
            channel: EventChannel::new("console"),
            core,
        })
    }

    /// Gives the guest what was typed; returns how many bytes it has taken.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let _working = self.hub.working();
        let mut core = self.lock();
        let count = bytes.len().min(core.chip.fifo_capacity());
        let taken = core.chip.enqueue_raw_bytes(&bytes[..count]).unwrap_or(0);
        if taken > 0 {
            self.channel.notify(Direction::In, core.output.is_held());
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chip_from(&self, state: &SerialState) -> Option<Serial<Line, NoEvents, Transmitter>> {
        let line = Line {
            hub: self.hub.clone(),
            gsi: self.gsi,
        };
        Serial::from_state(state, line, NoEvents, Transmitter::default()).ok()
    }
}

fn emit(sink: &mut Box<dyn Write + Send>, bytes: &[u8]) {
    // A console that nobody reads any more must not stop the guest.
    let _ = sink.write_all(bytes).and_then(|()| sink.flush());
}

impl Device for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.lock().chip.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte] = data else { return };
        let mut guard = self.lock();
        let core = &mut *guard;
        // The line's interrupt cannot fail, and a full input FIFO in loopback mode loses the byte as a real
        // chip does.
        let _ = core.chip.write(offset as u8, *byte);
        let written = std::mem::take(&mut core.chip.writer_mut().0);
        if written.is_empty() {
            return;
        }
        let held = self.hub.output_is_held();
        if held {
            written.into_iter().for_each(|byte| core.output.push(byte));
        } else {
            emit(&mut core.sink, &written);
        }
        drop(guard);
        self.channel.notify(Direction::Out, held);
    }

    fn channels(&self) -> Vec<Arc<EventChannel>> {
        vec![self.channel.clone()]
    }

    fn output_held(&self) -> bool {
        self.lock().output.is_held()
    }

    fn capture(&self, epoch: u64) -> u64 {
        u64::from(self.lock().output.capture(epoch))
    }

    fn uncapture(&self, epoch: u64) {
        self.lock().output.uncapture(epoch);
    }

    fn drain(&self) {}

    fn abandon(&self) {}

    fn let_go(&self, which: Releasable) {
        let mut core = self.lock();
        let bytes = core.output.release(which);
        emit(&mut core.sink, &bytes);
    }

    fn reset(&self) {
        if let Some(chip) = self.chip_from(&SerialState::default()) {
            self.lock().chip = chip;
        }
    }

    fn wake(&self) {
        self.hub.pulse(self.gsi);
    }

    fn save(&self) -> StateBlob {
        let core = self.lock();
        let chip = core.chip.state();
        let saved = SavedConsole {
            registers: [
                chip.baud_divisor_low,
                chip.baud_divisor_high,
                chip.interrupt_enable,
                chip.interrupt_identification,
                chip.line_control,
                chip.line_status,
                chip.modem_control,
                chip.modem_status,
                chip.scratch,
            ],
            input: chip.in_buffer,
            output: core.output.clone(),
        };
        StateBlob::encode(0, &saved)
    }

    fn identity(&self) -> (StateKind, u16) {
        (SavedConsole::KIND, 0)
    }

    fn load(&self, blob: &StateBlob) -> Result<(), StateError> {
        let saved: SavedConsole = blob.decode()?;
        let [
            low,
            high,
            enable,
            identification,
            line,
            line_status,
            modem,
            modem_status,
            scratch,
        ] = saved.registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: saved.input,
        };
        let chip = self
            .chip_from(&state)
            .filter(|_| saved.output.is_possible())
            .ok_or_else(|| StateError::Mismatch("the console's buffers are not as they can be".into()))?;
        let mut core = self.lock();
        core.chip = chip;
        core.output = saved.output;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a console has let out.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_capture_counts_console_output_once_and_only_if_there_is_any() {
        let vm = crate::arch::preflight::open()
            .and_then(|kvm| Ok(crate::arch::create_vm(&kvm)?))
            .expect("KVM");
        let hub = Hub::new(crate::memory::create(64 << 20).expect("memory"), Arc::new(vm));
        hub.hold_output(true);
        let said = Said::default();
        let console = Console::new(hub.clone(), 4, Box::new(said.clone()));
        assert_eq!(console.capture(1), 0);
        console.write(0, b"x");
        assert!(console.output_held() && said.0.lock().unwrap().is_empty());
        assert_eq!(console.capture(2), 1);
        assert!(!console.output_held());
        assert_eq!(console.capture(3), 0, "the capture before has it");
        console.uncapture(2);
        assert_eq!(console.capture(4), 1, "the capture that had it has failed");
        console.release(4);
        hub.hold_output(false);
        console.write(0, b"y");
        assert_eq!(
            *said.0.lock().unwrap(),
            b"xy",
            "with the gate open it leaves at once"
        );
    }
}
