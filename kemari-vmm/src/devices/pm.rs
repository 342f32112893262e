//! The fixed registers of ACPI (ACPI 6.5, section 4.8.3) as a machine with firmware has them: such a machine
//! has what a PC has, also the interrupt controllers and the timer that firmware sets up, and a guest that is
//! told of a hardware-reduced one would leave them as firmware did. No event ever comes; a guest powers off
//! by them.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::ports::Ports;
use super::quiet::Quiet;
use crate::arch::layout::{PM_PORTS, SLEEP_TYPE_S5};
use crate::state::{State, StateError, StateKind};

/// ACPI has the machine: always, since there is no other mode.
const SCI_ENABLED: u16 = 1;
/// Sleep, now; it reads as zero.
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;

/// What a guest has written.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Registers {
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
}

impl Quiet for Pm {
    type Registers = Registers;

    fn registers(&self) -> &Mutex<Registers> {
        &self.registers
    }

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

    fn accept(&self, registers: Registers) -> Result<Registers, StateError> {
        Ok(Registers {
            control: registers.control & !SLEEP_ENABLE,
            ..registers
        })
    }
}
