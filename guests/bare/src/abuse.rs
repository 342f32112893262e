//! What no driver does: abuse of the devices and of the machine, to find out whether it minds. Afterwards the
//! devices are to be reset.

mod ends;
mod requests;
mod ring;
mod storms;

use alloc::string::String;

use crate::abi::{BootDevice, DEVICE_ID_BLOCK, DEVICE_ID_NET};
use crate::clock;
use crate::pattern::PatternArea;

/// A kind of abuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    /// Requests to the disk with tens of thousands of empty descriptors.
    Chains,
    /// Descriptors that lead back to themselves, and behind the end of their table.
    Loops,
    /// Buffers where no memory is, of any length.
    Addresses,
    /// The network card's queue full of packets in as many pieces as there can be, and in more.
    Transmits,
    /// The disk's queue full of the largest writes, over and over.
    Writes,
    /// Large reads, all into one page.
    Reads,
    /// Reads into the rings in which they stand.
    Overwrites,
    /// Everything on the disk is discarded and zeroed, again and again.
    Discards,
    /// A queue that lies where no memory is.
    BadQueue,
    /// Any value in any register of any device.
    Registers,
    /// Resets, one after the other, with requests in flight.
    Resets,
    /// Sizes and addresses of queues that change while they are in use.
    Sizes,
    /// Notifications of every queue, of those too that do not exist, without a request.
    Doorbells,
    /// Bytes on the console without a look whether it takes them.
    Console,
    /// Memory that is written faster than it can be synchronised, and kicks meanwhile.
    Dirty,
    /// Interrupts from the processor to itself.
    Interrupts,
    /// The processor shuts down: no handler for an exception, nor for the exception that this is.
    Shutdown,
    /// Instructions fetched from a device.
    Execute,
}

/// Their names in requests.
const NAMES: [(&str, Abuse); 18] = [
    ("chains", Abuse::Chains),
    ("loops", Abuse::Loops),
    ("addresses", Abuse::Addresses),
    ("transmits", Abuse::Transmits),
    ("writes", Abuse::Writes),
    ("reads", Abuse::Reads),
    ("overwrites", Abuse::Overwrites),
    ("discards", Abuse::Discards),
    ("badqueue", Abuse::BadQueue),
    ("registers", Abuse::Registers),
    ("resets", Abuse::Resets),
    ("sizes", Abuse::Sizes),
    ("doorbells", Abuse::Doorbells),
    ("console", Abuse::Console),
    ("dirty", Abuse::Dirty),
    ("interrupts", Abuse::Interrupts),
    ("shutdown", Abuse::Shutdown),
    ("execute", Abuse::Execute),
];

impl Abuse {
    /// The kind with a name.
    pub fn named(name: &[u8]) -> Result<Self, String> {
        let found = NAMES.iter().find(|(known, _)| known.as_bytes() == name);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name);
            String::from("kind must be one of ") + &names.join(", ")
        })
    }
}

/// What is abused, and for how long.
struct Victims<'a> {
    disk: BootDevice,
    card: BootDevice,
    all: &'a [BootDevice],
    area: &'a mut PatternArea,
    until_us: u64,
}

impl Victims<'_> {
    fn goes_on(&self) -> bool {
        clock::now_us() < self.until_us
    }
}

/// Abuses the devices until then, in microseconds of the clock. The area may be written.
pub fn commit(
    abuse: Abuse,
    devices: &[BootDevice],
    area: &mut PatternArea,
    until_us: u64,
) -> Result<(), &'static str> {
    let device = |id| {
        let found = devices.iter().find(|device| device.device_id == id);
        found.copied().ok_or("there is no such device")
    };
    let victims = &mut Victims {
        disk: device(DEVICE_ID_BLOCK)?,
        card: device(DEVICE_ID_NET)?,
        all: devices,
        area,
        until_us,
    };
    match abuse {
        Abuse::Chains => requests::chains(victims),
        Abuse::Loops => requests::loops(victims),
        Abuse::Addresses => requests::addresses(victims),
        Abuse::Transmits => requests::transmits(victims),
        Abuse::Writes => requests::writes(victims),
        Abuse::Reads => requests::reads(victims),
        Abuse::Overwrites => requests::overwrites(victims),
        Abuse::Discards => requests::discards(victims),
        Abuse::BadQueue => storms::bad_queue(victims),
        Abuse::Registers => storms::registers(victims),
        Abuse::Resets => storms::resets(victims),
        Abuse::Sizes => storms::sizes(victims),
        Abuse::Doorbells => storms::doorbells(victims),
        Abuse::Console => storms::console(victims),
        Abuse::Dirty => storms::dirty(victims),
        Abuse::Interrupts => storms::interrupts(victims),
        Abuse::Shutdown => ends::shut_down(),
        Abuse::Execute => ends::execute(victims.disk),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_a_refusal_names_them() {
        for (name, kind) in NAMES {
            assert_eq!(Abuse::named(name.as_bytes()), Ok(kind));
        }
        let refused = Abuse::named(b"nothing").unwrap_err();
        assert!(NAMES.iter().all(|(name, _)| refused.contains(name)));
    }
}
