//! The registers of a virtio device over MMIO, version 2 (virtio 1.2, section 4.2).

use super::queue::Addresses;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
/// Register: which queue the others are about.
pub const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
/// Register: descriptors of the queue.
pub const QUEUE_SIZE: u64 = 0x038;
/// Register: the device has the queue.
pub const QUEUE_READY: u64 = 0x044;
/// Register: there are new buffers in a queue.
pub const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
/// Register: where the queue's descriptors are, in two halves.
pub const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
/// Both causes of an interrupt: a used buffer, a changed configuration.
const INTERRUPT_ALL: u32 = 3;

/// Looks at the status of a device that resets, at boot, before that is given up: some tens of seconds.
const RESET_POLLS_MAX: u32 = 1_000_000;

/// Feature: a descriptor may name a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature: each side says at which index it wants to be notified.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Feature: virtio 1.0 or later.
pub const F_VERSION_1: u64 = 1 << 32;

/// One device's registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// The registers at `base`, which must be a virtio device of the given type.
    ///
    /// # Safety
    /// `base` must be the register page of a virtio-mmio device that nobody else drives.
    pub unsafe fn new(base: u64, device_id: u32) -> Registers {
        let registers = Registers { base };
        let (magic, version, id) = (
            registers.read(MAGIC),
            registers.read(VERSION),
            registers.read(DEVICE_ID),
        );
        assert!(
            magic == u32::from_le_bytes(*b"virt") && version == 2 && id == device_id,
            "there is no virtio {device_id} version 2 at {base:#x}, but magic {magic:#x} version {version} \
             type {id}"
        );
        registers
    }

    /// Their address.
    pub fn base(&self) -> u64 {
        self.base
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: the promise of `new`; the page is mapped one to one.
        unsafe { ((self.base + offset) as *const u32).read_volatile() }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: as above.
        unsafe { ((self.base + offset) as *mut u32).write_volatile(value) }
    }

    /// Resets the device and waits for it: for the boot, when there is nothing else to serve.
    pub fn reset(&self) {
        self.begin_reset();
        let done = (0..RESET_POLLS_MAX).any(|_| self.is_reset());
        assert!(done, "the device at {:#x} does not finish its reset", self.base);
    }

    /// Asks the device to reset itself. It has done so when [`Registers::is_reset`].
    pub fn begin_reset(&self) {
        self.write(STATUS, 0);
    }

    /// The reset is complete: the device touches none of our memory any more.
    pub fn is_reset(&self) -> bool {
        self.read(STATUS) == 0
    }

    /// First half of the initialisation (section 3.1.1, steps 2 to 6): accepts those of `wanted` that are
    /// offered, and returns them. Version 1 is demanded.
    pub fn negotiate(&self, wanted: u64) -> u64 {
        self.write(STATUS, STATUS_ACKNOWLEDGE);
        self.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let half = |select| {
            self.write(DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(DEVICE_FEATURES))
        };
        let accepted = (half(0) | half(1) << 32) & (wanted | F_VERSION_1);
        assert!(
            accepted & F_VERSION_1 != 0,
            "the device at {:#x} does not offer virtio 1",
            self.base
        );
        for select in 0..2 {
            self.write(DRIVER_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES, (accepted >> (32 * select)) as u32);
        }
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.write(STATUS, status);
        assert!(
            self.read(STATUS) & STATUS_FEATURES_OK != 0,
            "the device refuses the features {accepted:#x}"
        );
        accepted
    }

    /// Largest size of a queue, 0 if there is no such queue.
    pub fn queue_size_max(&self, index: u16) -> u32 {
        self.write(QUEUE_SELECT, u32::from(index));
        self.read(QUEUE_SIZE_MAX)
    }

    /// Gives a queue to the device.
    pub fn set_queue(&self, index: u16, size: u16, at: Addresses) {
        let max = self.queue_size_max(index);
        assert!(
            max >= u32::from(size),
            "queue {index} holds {max} descriptors at most, {size} are needed"
        );
        self.write(QUEUE_SIZE, u32::from(size));
        for (register, address) in [
            (QUEUE_DESCRIPTORS, at.descriptors),
            (QUEUE_DRIVER, at.driver),
            (QUEUE_DEVICE, at.device),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
    }

    /// Second half of the initialisation: the device may run.
    pub fn finish(&self) {
        self.write(
            STATUS,
            STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK,
        );
    }

    /// Notifies a queue: there are new buffers in it.
    pub fn notify(&self, queue: u16) {
        self.write(QUEUE_NOTIFY, u32::from(queue));
    }

    /// Says that the interrupts so far are handled. To be called before looking into the rings. Reading the
    /// cause would be one more exit, and the rings tell it anyway.
    pub fn acknowledge(&self) {
        self.write(INTERRUPT_ACK, INTERRUPT_ALL);
    }

    /// Any value in any register, as no driver writes it.
    ///
    /// # Safety
    /// The device may write wherever it is told to.
    pub unsafe fn poke(&self, offset: u64, value: u32) {
        self.write(offset, value);
    }

    /// One byte of the device's configuration.
    pub fn config_byte(&self, offset: u64) -> u8 {
        // SAFETY: as in `read`; the configuration may be read with the width of its fields.
        unsafe { ((self.base + CONFIG + offset) as *const u8).read_volatile() }
    }

    /// 32 bits of the device's configuration.
    pub fn config_word(&self, offset: u64) -> u32 {
        self.read(CONFIG + offset)
    }
}
