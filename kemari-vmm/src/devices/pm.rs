//! The fixed registers of ACPI (ACPI 6.5, section 4.8.3) as a machine with firmware has them: such a machine has what a PC
//! has, also the interrupt controllers and the timer that firmware sets up, and a guest that is told of a hardware-reduced
//! one would leave them as firmware did. No event ever comes; a guest powers off by them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Device;
use super::ports::Ports;
use crate::arch::layout::{PM_PORTS, SLEEP_TYPE_S5};
use crate::event::EventChannel;
use crate::release::Releasable;
use crate::state::{State, StateBlob, StateError, StateKind};

/// ACPI has the machine: always, since there is no other mode.
const SCI_ENABLED: u16 = 1;
/// Sleep, now; it reads as zero.
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;

/// What a guest has written.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Registers {
    enable: u16,
    control: u16,
}

impl State for Registers {
    const KIND: StateKind = StateKind::AcpiRegisters;
    const VERSION: u16 = 1;
}

impl Registers {
    fn bytes(self) -> [u8; PM_PORTS as usize] {
        let [enable, control] = [self.enable, self.control | SCI_ENABLED].map(u16::to_le_bytes);
        [0, 0, enable[0], enable[1], control[0], control[1]]
    }

    fn from_bytes([_, _, enable_low, enable_high, low, high]: [u8; PM_PORTS as usize]) -> Self {
        Self {
            enable: u16::from_le_bytes([enable_low, enable_high]),
            control: u16::from_le_bytes([low, high]),
        }
    }
}

/// The registers.
pub struct Pm {
    ports: Arc<Ports>,
    registers: Mutex<Registers>,
}

impl Pm {
    /// The registers of a machine that is powered off by `ports`.
    pub fn new(ports: Arc<Ports>) -> Arc<Self> {
        Arc::new(Self {
            ports,
            registers: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Pm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let bytes = self.lock().bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let mut bytes = registers.bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get_mut(offset..));
        for (byte, value) in rest.unwrap_or_default().iter_mut().zip(data) {
            *byte = *value;
        }
        let Registers { enable, control } = Registers::from_bytes(bytes);
        let sleeps = control & SLEEP_ENABLE != 0;
        *registers = Registers {
            enable,
            control: control & !SLEEP_ENABLE,
        };
        drop(registers);
        if sleeps && control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == u16::from(SLEEP_TYPE_S5) {
            self.ports.want_power_off();
        }
    }

    fn channels(&self) -> Vec<Arc<EventChannel>> {
        Vec::new()
    }

    fn output_held(&self) -> bool {
        false
    }

    fn capture(&self, _: u64) -> u64 {
        0
    }

    fn uncapture(&self, _: u64) {}

    fn let_go(&self, _: Releasable) {}

    fn drain(&self) {}

    fn abandon(&self) {}

    fn reset(&self) {
        *self.lock() = Registers::default();
    }

    fn wake(&self) {}

    fn identity(&self) -> (StateKind, u16) {
        (Registers::KIND, 0)
    }

    fn save(&self) -> StateBlob {
        StateBlob::encode(0, &*self.lock())
    }

    fn load(&self, blob: &StateBlob) -> Result<(), StateError> {
        let registers: Registers = blob.decode()?;
        *self.lock() = Registers {
            control: registers.control & !SLEEP_ENABLE,
            ..registers
        };
        Ok(())
    }
}
