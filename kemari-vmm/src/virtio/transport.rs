//! Registers of the virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2).

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

pub(crate) const MAGIC: u64 = 0x000;
pub(crate) const VERSION: u64 = 0x004;
pub(crate) const DEVICE_ID: u64 = 0x008;
pub(crate) const VENDOR_ID: u64 = 0x00c;
pub(crate) const DEVICE_FEATURES: u64 = 0x010;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(crate) const DRIVER_FEATURES: u64 = 0x020;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(crate) const QUEUE_SEL: u64 = 0x030;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x034;
pub(crate) const QUEUE_NUM: u64 = 0x038;
pub(crate) const QUEUE_READY: u64 = 0x044;
pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
pub(crate) const INTERRUPT_ACK: u64 = 0x064;
pub(crate) const STATUS: u64 = 0x070;
pub(crate) const QUEUE_DESC_LOW: u64 = 0x080;
pub(crate) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(crate) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(crate) const SHM_LEN_LOW: u64 = 0x0b0;
pub(crate) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
pub(crate) const CONFIG: u64 = 0x100;

pub(crate) const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
pub(crate) const VERSION_VALUE: u32 = 2;
pub(crate) const VENDOR_VALUE: u32 = u32::from_le_bytes(*b"KMRI");

/// Interrupt status: a used buffer. / The configuration changed.
pub(crate) const INTERRUPT_USED: u32 = 1;
pub(crate) const INTERRUPT_CONFIG: u32 = 2;

/// Features of every device. IN_ORDER, RING_PACKED and RING_RESET are not offered: request lists have not
/// been proved with them.
pub(crate) const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The transport's own state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Transport {
    pub status: u32,
    pub(crate) device_features_sel: u32,
    pub(crate) driver_features_sel: u32,
    pub(crate) driver_features: u64,
    pub(crate) queue_sel: u32,
    pub(crate) interrupt_status: u32,
    pub(crate) config_generation: u32,
}

impl Transport {
    pub(crate) fn driver_ok(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.needs_reset()
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    pub(crate) fn break_down(&mut self) {
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    pub(crate) fn has(&self, feature: u32) -> bool {
        self.driver_features & (1 << feature) != 0
    }

    /// Half of a feature word, as selected.
    pub(crate) fn select_half(word: u64, selector: u32) -> u32 {
        match selector {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        }
    }

    /// The driver writes half of its features; what was not offered is not taken.
    pub(crate) fn write_driver_features(&mut self, value: u32, offered: u64) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let (mask, value) = match self.driver_features_sel {
            0 => (0xffff_ffff, u64::from(value)),
            1 => (0xffff_ffff << 32, u64::from(value) << 32),
            _ => return,
        };
        self.driver_features = (self.driver_features & !mask) | (value & offered);
    }

    /// The driver writes a status other than 0. FEATURES_OK stays off if the driver refused VERSION_1.
    pub(crate) fn write_status(&mut self, value: u32) {
        let mut status = value & 0xff | self.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        if status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.has(VIRTIO_F_VERSION_1) {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        self.status = status;
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER};

    use super::*;

    const BEGUN: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

    fn with(driver_features: u64) -> Transport {
        let mut transport = Transport::default();
        for half in [0, 1] {
            transport.driver_features_sel = half;
            let value = Transport::select_half(driver_features, half);
            transport.write_driver_features(value, TRANSPORT_FEATURES);
        }
        transport
    }

    #[test]
    fn a_driver_gets_what_it_wants_of_what_is_offered_until_it_is_agreed_on() {
        assert_eq!(with(u64::MAX).driver_features, TRANSPORT_FEATURES);
        let mut transport = with(1 << VIRTIO_F_VERSION_1);
        assert_eq!(transport.driver_features, 1 << VIRTIO_F_VERSION_1);
        transport.write_status(BEGUN | VIRTIO_CONFIG_S_FEATURES_OK);
        transport.driver_features_sel = 0;
        transport.write_driver_features(u32::MAX, TRANSPORT_FEATURES);
        assert_eq!(
            transport.driver_features,
            1 << VIRTIO_F_VERSION_1,
            "it is too late"
        );
    }

    #[test]
    fn a_driver_of_the_first_version_is_not_taken() {
        let agreed = |features| {
            let mut transport = with(features);
            transport.write_status(BEGUN | VIRTIO_CONFIG_S_FEATURES_OK);
            transport.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
        };
        assert!(agreed(u64::MAX) && !agreed(1 << VIRTIO_RING_F_EVENT_IDX));
    }

    #[test]
    fn a_device_that_has_broken_down_stays_so_whatever_is_written() {
        let mut transport = with(u64::MAX);
        let running = BEGUN | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        transport.write_status(running);
        assert!(transport.driver_ok());
        transport.break_down();
        transport.write_status(running);
        assert!(transport.needs_reset() && !transport.driver_ok());
    }
}
