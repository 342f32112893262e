//! One device without a machine around it, for a driver in the test.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kemari_vmm::arch;
use kemari_vmm::devices::Device;
use kemari_vmm::devices::hub::Hub;
use kemari_vmm::disk::{Disk, DiskConfig};
use kemari_vmm::event::{Event, Interest, Tap};
use kemari_vmm::memory::Memory;
use kemari_vmm::virtio::Backend;
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::device::VirtioDevice;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

/// Bytes of the memory on a bench.
pub(crate) const MEMORY_BYTES: u64 = 2 << 20;
/// Sectors of the disk on a bench.
pub(crate) const SECTORS: u64 = 512;
pub(crate) const SECTOR_BYTES: usize = 512;

/// A device, and what it is connected to.
pub(crate) struct Bench<B: Backend> {
    pub hub: Arc<Hub>,
    pub device: Arc<VirtioDevice<B>>,
}

impl<B: Backend> Bench<B> {
    /// A device with fresh memory.
    pub(crate) fn new(backend: B) -> Self {
        Self::with_memory(backend, memory())
    }

    /// A device with this memory.
    pub(crate) fn with_memory(backend: B, memory: Memory) -> Self {
        let kvm = arch::preflight::open().expect("a usable /dev/kvm");
        let vm = Arc::new(kvm.create_vm().expect("a VM"));
        arch::create_irqchip(&vm).expect("interrupt controllers");
        let hub = Hub::new(memory, vm);
        let device = VirtioDevice::new(hub.clone(), "dev0", 0, 5, backend);
        Self { hub, device }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.hub.memory
    }
}

/// A tap that counts how often a device has found output without a kick.
#[derive(Default)]
pub(crate) struct Found(AtomicU32);

impl Found {
    /// What this device finds from now on.
    pub(crate) fn by(device: &dyn Device) -> Arc<Self> {
        let found = Arc::<Self>::default();
        let attached = device.channels()[0].attach(Interest::Out, found.clone());
        attached.expect("there is room for a tap");
        found
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Tap for Found {
    fn event(&self, event: &Event<'_>) {
        self.0
            .fetch_add(u32::from(event.output_held && !event.notified), Ordering::SeqCst);
    }
}

/// Memory of a bench.
pub(crate) fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).expect("a little memory")
}

/// A copy of a bench's memory.
pub(crate) fn copy(from: &Memory) -> Memory {
    let to = memory();
    let mut bytes = vec![0; MEMORY_BYTES as usize];
    from.read_slice(&mut bytes, GuestAddress(0))
        .expect("all of the memory");
    to.write_slice(&bytes, GuestAddress(0))
        .expect("all of the memory");
    to
}

/// An image of [`SECTORS`] zeros.
pub(crate) fn image() -> NamedTempFile {
    let image = NamedTempFile::new().expect("a temporary file");
    image
        .as_file()
        .set_len(SECTORS * SECTOR_BYTES as u64)
        .expect("a sparse file");
    image
}

/// Opens an image; several devices may.
pub(crate) fn disk(path: &Path) -> Disk {
    let config = DiskConfig {
        ignore_lock: true,
        ..DiskConfig::new(path)
    };
    Disk::open(&config).expect("the image opens")
}

/// A disk on a bench.
pub(crate) fn block_bench(image: &NamedTempFile) -> Bench<Block> {
    block_bench_with(image, memory())
}

/// A disk on a bench with this memory.
pub(crate) fn block_bench_with(image: &NamedTempFile, memory: Memory) -> Bench<Block> {
    let bench = Bench::with_memory(Block::new(BlockSpec::new("bench", false)), memory);
    bench
        .device
        .with_backend(|block| block.attach(disk(image.path())))
        .expect("the image has sectors");
    bench
}
