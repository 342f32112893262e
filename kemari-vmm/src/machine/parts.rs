//! The machine's devices, and how a vCPU's access finds its device.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{DiskSpec, EventSink, MachineError, MachineEvent, MachineSpec, NetSpec};
use crate::arch::layout::{self, MmioDevice, abi};
use crate::devices::Device;
use crate::devices::fw_cfg::{self, FwCfg};
use crate::devices::hub::Hub;
use crate::devices::pm::Pm;
use crate::devices::ports::{KEYBOARD_PORT, Ports, PowerEvent, RESET_CONTROL_PORT};
use crate::devices::serial::Console;
use crate::dirty::DirtyLog;
use crate::disk::{Trouble, TroubleSink};
use crate::vcpu::Bus;
use crate::virtio::Backend;
use crate::virtio::block::Block;
use crate::virtio::device::VirtioDevice;
use crate::virtio::net::Net;
use crate::virtio::rate::RateSpec;
use crate::virtio::rng::Rng;

/// The machine's devices, as the vCPU threads reach them.
pub(super) struct Parts {
    pub(super) hub: Arc<Hub>,
    pub(super) console: Arc<Console>,
    pub(super) ports: Arc<Ports>,
    /// With firmware only.
    fw_cfg: Option<Arc<FwCfg>>,
    /// Likewise.
    pm: Option<Arc<Pm>>,
    virtio: Vec<Arc<dyn Device>>,
    pub(super) nets: Vec<(String, Arc<VirtioDevice<Net>>)>,
    pub(super) disks: Vec<(String, Arc<VirtioDevice<Block>>)>,
    pub(super) mmio: Vec<MmioDevice>,
    events: EventSink,
    dirty: Arc<DirtyLog>,
    /// See [`super::Machine::shut_downs`].
    pub(super) shut_downs: AtomicU32,
}

impl Parts {
    pub(super) fn new(
        spec: &MachineSpec,
        hub: Arc<Hub>,
        console: Box<dyn Write + Send>,
        events: EventSink,
        dirty: Arc<DirtyLog>,
    ) -> Result<Arc<Self>, MachineError> {
        let power_events = events.clone();
        let ports = Ports::new(
            hub.clone(),
            Box::new(move |event| {
                power_events(match event {
                    PowerEvent::PowerOff => MachineEvent::PowerOff,
                    PowerEvent::Reset => MachineEvent::Reset,
                });
            }),
        );
        let mut parts = Self {
            console: Console::new(hub.clone(), layout::COM1_GSI, console),
            hub: hub.clone(),
            ports,
            fw_cfg: None,
            pm: None,
            virtio: Vec::new(),
            nets: Vec::new(),
            disks: Vec::new(),
            mmio: Vec::new(),
            events,
            dirty,
            shut_downs: AtomicU32::new(0),
        };
        for disk in &spec.disks {
            parts.add_disk(disk)?;
        }
        for net in &spec.nets {
            parts.add_net(net)?;
        }
        if spec.rng {
            let (instance, gsi) = parts.slot(4)?;
            parts
                .virtio
                .push(VirtioDevice::new(hub.clone(), "rng0", instance, gsi, Rng));
        }
        let items = spec.kernel.firmware_items(&hub.memory, &parts.mmio, spec.vcpus);
        parts.pm = items.is_some().then(|| Pm::new(parts.ports.clone()));
        parts.fw_cfg = items.map(FwCfg::new);
        Ok(Arc::new(parts))
    }

    fn add_disk(&mut self, spec: &DiskSpec) -> Result<(), MachineError> {
        let DiskSpec { id, block, rate } = spec;
        let (instance, gsi) = self.slot(2)?;
        let disk = VirtioDevice::new(self.hub.clone(), id, instance, gsi, Block::new(block.clone()));
        let (events, name) = (self.events.clone(), id.clone());
        let sink: TroubleSink = Arc::new(move |trouble: Trouble| {
            events(MachineEvent::DiskTrouble {
                disk: name.clone(),
                reason: trouble.reason,
                fail_over: trouble.fail_over,
            });
        });
        disk.with_backend(|block| {
            block.set_trouble_sink(sink);
            block.set_rate(*rate);
        });
        pace(&disk, *rate)?;
        self.virtio.push(disk.clone());
        self.disks.push((id.clone(), disk));
        Ok(())
    }

    fn add_net(&mut self, spec: &NetSpec) -> Result<(), MachineError> {
        let NetSpec {
            id,
            mac,
            offload,
            rate,
        } = spec;
        let (instance, gsi) = self.slot(1)?;
        let net = VirtioDevice::new(self.hub.clone(), id, instance, gsi, Net::new(*mac, *offload));
        net.with_backend(|net| net.set_rate(*rate));
        pace(&net, *rate)?;
        self.virtio.push(net.clone());
        self.nets.push((id.clone(), net));
        Ok(())
    }

    /// The next free place for a virtio-mmio device: its instance number and interrupt line.
    fn slot(&mut self, device_id: u32) -> Result<(u16, u32), MachineError> {
        let index = self.mmio.len();
        if index >= layout::VIRTIO_MMIO_DEVICES_MAX {
            let max = layout::VIRTIO_MMIO_DEVICES_MAX;
            return Err(MachineError::Limit(format!(
                "a machine has at most {max} disks and network cards"
            )));
        }
        let base = layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_BYTES;
        let gsi = layout::VIRTIO_MMIO_GSI + index as u32;
        self.mmio.push(MmioDevice { base, gsi, device_id });
        Ok((index as u16, gsi))
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = Arc<dyn Device>> + '_ {
        let console: Arc<dyn Device> = self.console.clone();
        let ports: Arc<dyn Device> = self.ports.clone();
        let fw_cfg = self.fw_cfg.iter().map(|fw_cfg| fw_cfg.clone() as Arc<dyn Device>);
        let pm = self.pm.iter().map(|pm| pm.clone() as Arc<dyn Device>);
        let virtio = self.virtio.iter().cloned();
        [console, ports].into_iter().chain(virtio).chain(fw_cfg).chain(pm)
    }

    fn port_device(&self, port: u16) -> Option<(&dyn Device, u64)> {
        let com1 = layout::COM1_PORT..layout::COM1_PORT + layout::COM1_PORTS;
        let pm = layout::PM_PORT..layout::PM_PORT + layout::PM_PORTS;
        match port {
            _ if com1.contains(&port) => Some((&*self.console, u64::from(port - layout::COM1_PORT))),
            abi::RESET_PORT..=abi::KICK_PORT | KEYBOARD_PORT | RESET_CONTROL_PORT => {
                Some((&*self.ports, u64::from(port)))
            }
            _ if pm.contains(&port) => {
                let pm = self.pm.as_ref()?;
                Some((&**pm, u64::from(port - layout::PM_PORT)))
            }
            fw_cfg::SELECTOR_PORT | fw_cfg::DATA_PORT => {
                let fw_cfg = self.fw_cfg.as_ref()?;
                Some((&**fw_cfg, u64::from(port)))
            }
            _ => None,
        }
    }

    fn mmio_device(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO_BASE)?;
        let device = self
            .virtio
            .get(usize::try_from(offset / layout::VIRTIO_MMIO_BYTES).ok()?)?;
        Some((&**device, offset % layout::VIRTIO_MMIO_BYTES))
    }
}

impl Bus for Parts {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        match self.port_device(port) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn port_out(&self, port: u16, data: &[u8]) {
        if let Some((device, offset)) = self.port_device(port) {
            device.write(offset, data);
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.mmio_device(address) {
            data.fill(0);
            device.read(offset, data);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.mmio_device(address) {
            device.write(offset, data);
        }
    }

    fn shut_down(&self) {
        tracing::warn!("the guest's processor shut down (a triple fault): the machine is reset");
        self.shut_downs.fetch_add(1, Ordering::SeqCst);
        self.ports.want_reset();
    }

    fn dirty_ring_full(&self) {
        match self.dirty.read_rings() {
            Ok(()) => (self.events)(MachineEvent::MuchDirty),
            Err(error) => self.failed(format!("KVM's dirty rings cannot be emptied: {error}")),
        }
    }

    fn guest_failed(&self, why: String) {
        (self.events)(MachineEvent::GuestFailed(why));
    }

    fn failed(&self, why: String) {
        (self.events)(MachineEvent::Failed(why));
    }
}

/// What a rate leaves in a device's rings goes on by a thread, made now: nobody lacks it later.
fn pace<B: Backend>(device: &VirtioDevice<B>, rate: RateSpec) -> Result<(), MachineError> {
    match rate.is_unlimited() {
        true => Ok(()),
        false => device.start_resumer().map_err(MachineError::Thread),
    }
}

/// The device of this name.
pub(super) fn find<'a, T>(devices: &'a [(String, Arc<T>)], id: &str) -> Result<&'a Arc<T>, MachineError> {
    devices
        .iter()
        .find(|(name, _)| name == id)
        .map(|(_, device)| device)
        .ok_or_else(|| MachineError::NoDevice(id.into()))
}
