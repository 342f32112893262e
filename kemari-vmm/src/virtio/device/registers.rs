//! The device's registers: what a driver reads, and how it sets the device and its queues up.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

use super::super::transport::{self as regs, Transport};
use super::super::{Backend, GuestFault};
use super::VirtioDevice;
use super::core::Core;

impl<B: Backend> VirtioDevice<B> {
    pub(super) fn read_register(&self, offset: u64) -> u32 {
        let core = self.lock();
        let transport = &core.transport;
        let queue = core.queues.get(transport.queue_sel as usize);
        match offset {
            regs::MAGIC => regs::MAGIC_VALUE,
            regs::VERSION => regs::VERSION_VALUE,
            regs::DEVICE_ID => core.backend.device_id(),
            regs::VENDOR_ID => regs::VENDOR_VALUE,
            regs::DEVICE_FEATURES => {
                Transport::select_half(core.offered_features(), transport.device_features_sel)
            }
            regs::QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            regs::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            regs::INTERRUPT_STATUS => transport.interrupt_status,
            regs::STATUS => transport.status,
            regs::CONFIG_GENERATION => transport.config_generation,
            // No shared memory regions: their length and base read as all ones.
            regs::SHM_LEN_LOW..=regs::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    pub(super) fn write_register(&self, offset: u64, value: u32) {
        match offset {
            regs::QUEUE_NOTIFY => return self.notified(value as usize),
            regs::STATUS if value == 0 => return self.reset_device(),
            regs::QUEUE_READY if value == 0 => return self.retire_queue(),
            _ => {}
        }
        let mut core = self.lock();
        let Core {
            transport, backend, ..
        } = &mut *core;
        match offset {
            regs::DEVICE_FEATURES_SEL => transport.device_features_sel = value,
            regs::DRIVER_FEATURES_SEL => transport.driver_features_sel = value,
            regs::DRIVER_FEATURES => {
                let offered = regs::TRANSPORT_FEATURES | backend.features();
                transport.write_driver_features(value, offered);
            }
            regs::QUEUE_SEL => transport.queue_sel = value,
            regs::INTERRUPT_ACK => transport.interrupt_status &= !value,
            regs::STATUS => {
                let was_ok = transport.driver_ok();
                transport.write_status(value);
                if !was_ok && transport.driver_ok() {
                    backend.activate(transport.driver_features);
                }
            }
            _ => self.write_queue_register(&mut core, offset, value),
        }
    }

    fn write_queue_register(&self, core: &mut Core<B>, offset: u64, value: u32) {
        let event_idx = core.transport.has(VIRTIO_RING_F_EVENT_IDX);
        let selected = core.transport.queue_sel as usize;
        let Some(queue) = core.queues.get_mut(selected).filter(|queue| !queue.ready()) else {
            return;
        };
        set_up_queue(queue, offset, value, event_idx);
        // A ready queue does not move any more: this is the one place to look. One that could not be loaded
        // anywhere is never ready.
        if queue.ready() && !queue.is_valid(&self.hub.memory) {
            queue.set_ready(false);
            let fault = GuestFault("a virtqueue lies outside the guest's memory".into());
            self.break_down(core, &fault);
        }
    }
}

/// The driver describes a queue that is not ready: its size, its three parts, and that it is ready now.
fn set_up_queue(queue: &mut Queue, offset: u64, value: u32, event_idx: bool) {
    match offset {
        regs::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
        regs::QUEUE_READY if value == 1 => {
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
        }
        regs::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        regs::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        regs::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
        regs::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
        regs::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
        regs::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}
