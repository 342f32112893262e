//! One device without a machine around it.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use kemari_vmm::arch;
use kemari_vmm::devices::Device;
use kemari_vmm::devices::fw_cfg::{FwCfg, Items};
use kemari_vmm::devices::hub::Hub;
use kemari_vmm::devices::pm::Pm;
use kemari_vmm::devices::ports::Ports;
use kemari_vmm::devices::serial::Console;
use kemari_vmm::disk::{Disk, OnError, Store};
use kemari_vmm::memory::{Memory, PAGE_BYTES};
use kemari_vmm::virtio::Backend;
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::device::VirtioDevice;
use kemari_vmm::virtio::net::Net;
use kemari_vmm::virtio::rng::Rng;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of the memory.
pub(crate) const MEMORY_BYTES: u64 = 2 << 20;
/// Bytes of the disk.
const DISK_BYTES: usize = 256 << 10;
const GSI: u32 = 5;

/// What device stands on the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Disk,
    WideDisk,
    DiskWithoutImage,
    Card,
    OffloadingCard,
    Entropy,
    Console,
    Ports,
    FirmwareConfiguration,
    AcpiRegisters,
}

impl Kind {
    /// Each with its byte of the input. What comes later takes a byte by which nothing begins that was found
    /// before.
    pub(crate) const ALL: [(u8, Self); 10] = [
        (0, Self::Disk),
        (1, Self::WideDisk),
        (2, Self::DiskWithoutImage),
        (3, Self::Card),
        (4, Self::OffloadingCard),
        (5, Self::Entropy),
        (6, Self::Console),
        (7, Self::Ports),
        (8, Self::FirmwareConfiguration),
        (10, Self::AcpiRegisters),
    ];
    /// So many of them are what other bytes say, too.
    const BY_ANY_BYTE: u8 = 8;

    /// The one that a byte of the input says.
    pub(crate) fn from_byte(byte: u8) -> Self {
        let by = |byte| Self::ALL.into_iter().find(|(own, _)| *own == byte);
        let (_, kind) = by(byte)
            .or_else(|| by(byte % Self::BY_ANY_BYTE))
            .expect("its byte");
        kind
    }

    /// How many queues it has; 0: it is no virtio device.
    pub(crate) fn queues(self) -> u32 {
        match self {
            Self::Disk | Self::DiskWithoutImage | Self::Entropy => 1,
            Self::WideDisk => 4,
            Self::Card | Self::OffloadingCard => 3,
            Self::Console | Self::Ports | Self::FirmwareConfiguration | Self::AcpiRegisters => 0,
        }
    }
}

/// A device, and what it is connected to.
#[derive(Clone)]
pub(crate) struct Bench {
    pub kind: Kind,
    pub device: Arc<dyn Device>,
    pub hub: Arc<Hub>,
}

impl Bench {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with_memory(kind, memory())
    }

    /// A fresh device with this memory.
    pub(crate) fn with_memory(kind: Kind, memory: Memory) -> Self {
        let hub = hub(memory);
        let device: Arc<dyn Device> = match kind {
            Kind::Disk => disk(&hub, BlockSpec::new("bench", false)),
            Kind::WideDisk => {
                let spec = BlockSpec {
                    queues: 4,
                    block_bytes: 4096,
                    ..BlockSpec::new("wide", false)
                };
                disk(&hub, spec)
            }
            Kind::DiskWithoutImage => virtio(&hub, Block::new(BlockSpec::new("none", true))),
            Kind::Card => virtio(&hub, Net::new([2; 6], false)),
            Kind::OffloadingCard => virtio(&hub, Net::new([2; 6], true)),
            Kind::Entropy => virtio(&hub, Rng),
            Kind::Console => Console::new(hub.clone(), GSI, Box::new(io::sink())),
            Kind::Ports => Ports::new(hub.clone(), Box::new(|_| {})),
            Kind::FirmwareConfiguration => {
                let mut items = Items::default();
                items.file("etc/bench", b"content".to_vec());
                FwCfg::new(items)
            }
            Kind::AcpiRegisters => Pm::new(Ports::new(hub.clone(), Box::new(|_| {}))),
        };
        Self { kind, device, hub }
    }

    /// The same device elsewhere: fresh, with a copy of the memory.
    pub(crate) fn elsewhere(&self) -> Self {
        let (from, to) = (&self.hub.memory, memory());
        let written = from.iter().next().expect("there is one").bitmap();
        let mut bytes = [0; PAGE_BYTES];
        // Nobody but the device and the driver writes, and what they write is noted. To copy all of it, again
        // and again, would take most of the time.
        for offset in (0..MEMORY_BYTES as usize).step_by(PAGE_BYTES) {
            if written.dirty_at(offset) {
                let at = GuestAddress(offset as u64);
                from.read_slice(&mut bytes, at).expect("it was written");
                to.write_slice(&bytes, at).expect("it is as large");
            }
        }
        Self::with_memory(self.kind, to)
    }
}

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).expect("a little memory")
}

/// All hubs have one VM of KVM's: it is only there for their interrupts.
fn hub(memory: Memory) -> Arc<Hub> {
    type Maker = Box<dyn Fn(Memory) -> Arc<Hub> + Send + Sync>;
    static MAKER: OnceLock<Maker> = OnceLock::new();
    let make = MAKER.get_or_init(|| {
        let kvm = arch::preflight::open().expect("a usable /dev/kvm");
        let vm = Arc::new(kvm.create_vm().expect("a VM"));
        arch::create_irqchip(&vm).expect("interrupt controllers");
        Box::new(move |memory| Hub::new(memory, vm.clone()))
    });
    make(memory)
}

fn virtio<B: Backend + 'static>(hub: &Arc<Hub>, backend: B) -> Arc<VirtioDevice<B>> {
    VirtioDevice::new(hub.clone(), "dev0", 0, GSI, backend)
}

fn disk(hub: &Arc<Hub>, spec: BlockSpec) -> Arc<dyn Device> {
    let device = virtio(hub, Block::new(spec));
    let store = Arc::new(MemoryStore(Mutex::new(vec![0; DISK_BYTES])));
    let disk = Disk::with_store(store, OnError::Report).expect("it has a size");
    let attached = device.with_backend(|block| block.attach(disk));
    attached.expect("the store has blocks");
    device
}

/// A disk's bytes in memory. What lies outside of it must never be asked for.
struct MemoryStore(Mutex<Vec<u8>>);

impl MemoryStore {
    fn with<T>(&self, offset: u64, length: u64, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = self.0.lock().expect("nobody panicked");
        let range = offset as usize..(offset + length) as usize;
        Ok(act(bytes
            .get_mut(range)
            .expect("checked against the capacity before")))
    }
}

impl Store for MemoryStore {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(offset, buffer.len() as u64, |bytes| buffer.copy_from_slice(bytes))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(offset, data.len() as u64, |bytes| bytes.copy_from_slice(data))
    }

    fn zero(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        self.with(offset, length, |bytes| bytes.fill(0))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(DISK_BYTES as u64)
    }
}
