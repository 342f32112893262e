//! Machines of the tests, with the bare guest, a disk and a network card.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::boot::{BootConfig, Kernel};
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::disk::{DiskConfig, DiskError};
use kemari_vmm::machine::{DiskSpec, Machine, MachineError, MachineEvent, MachineSpec, NetSpec};
use kemari_vmm::virtio::block::BlockSpec;
use kemari_vmm::virtio::rate::RateSpec;
use kemari_vmm::virtio::tap::TapDevice;
use tempfile::NamedTempFile;

use super::network;

/// How long an image or TAP may stay with the machine that had it.
const HANDOVER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long an event may take.
const EVENT_TIME_MAX: Duration = Duration::from_secs(20);
/// Bytes of the disk.
const DISK_BYTES: u64 = 8 << 20;

/// What equal machines are made of.
pub(crate) struct Rig {
    pub spec: MachineSpec,
    pub image: NamedTempFile,
    pub console: Sink,
    events: Arc<Events>,
}

#[derive(Default)]
struct Events {
    queue: Mutex<VecDeque<MachineEvent>>,
    came: Condvar,
}

/// Where a console writes.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Rig {
    /// A rig whose guest has this command line and so many MiB of memory. Moves the thread into a namespace.
    pub(crate) fn new(cmdline: &str, memory_mib: u64) -> Self {
        network::enter();
        Self::without_network(cmdline, memory_mib)
    }

    /// The same, where the TAP is of no interest.
    pub(crate) fn without_network(cmdline: &str, memory_mib: u64) -> Self {
        let config = BootConfig {
            kernel: bare_guest(),
            initrd: None,
            cmdline: cmdline.into(),
        };
        let image = NamedTempFile::new().expect("a temporary file");
        image.as_file().set_len(DISK_BYTES).expect("a sparse file");
        let spec = MachineSpec {
            memory_bytes: memory_mib << 20,
            vcpus: 1,
            kernel: Arc::new(Kernel::open(&config).expect("the bare guest is a kernel")),
            disks: vec![DiskSpec {
                id: "blk0".into(),
                block: BlockSpec::new("kemari-test", false),
                rate: RateSpec::default(),
            }],
            nets: vec![NetSpec {
                id: "net0".into(),
                mac: [0x52, 0x54, 0, 0x4b, 9, 9],
                offload: false,
                rate: RateSpec::default(),
            }],
            rng: true,
            dirty_source: DirtySource::Best,
        };
        Self {
            spec,
            image,
            console: Sink::default(),
            events: Arc::default(),
        }
    }

    /// A machine, paused, with nothing plugged in.
    pub(crate) fn machine(&self) -> Machine {
        let events = self.events.clone();
        let sink = move |event| {
            events.queue.lock().unwrap().push_back(event);
            events.came.notify_all();
        };
        Machine::new(self.spec.clone(), Box::new(self.console.clone()), Arc::new(sink)).expect("a machine")
    }

    /// Gives a machine its disk and its TAP, as soon as the machine that had them lets go.
    pub(crate) fn plug(&self, machine: &Machine) {
        self.plug_with(machine, self.image.path());
    }

    /// The same with another image.
    pub(crate) fn plug_with(&self, machine: &Machine, image: &Path) {
        let config = DiskConfig::new(image);
        retry(|| {
            let result = machine.attach_disk("blk0", &config);
            let in_use = matches!(result, Err(MachineError::Disk(DiskError::InUse { .. })));
            (!in_use).then(|| result.expect("the image opens"))
        });
        let tap = retry(|| TapDevice::open(network::TAP).ok());
        machine.attach_net("net0", tap).expect("the TAP is watched");
    }

    /// A machine that has booted and runs.
    pub(crate) fn running(&self) -> Machine {
        let machine = self.machine();
        machine.boot().expect("the bare guest boots");
        self.plug(&machine);
        machine.resume();
        machine
    }

    /// Waits for the next event.
    pub(crate) fn event(&self) -> MachineEvent {
        self.event_within(EVENT_TIME_MAX)
            .expect("an event of the machine")
    }

    /// Waits so long for the next event.
    pub(crate) fn event_within(&self, time: Duration) -> Option<MachineEvent> {
        let guard = self.events.queue.lock().unwrap();
        let (mut queue, _) = self
            .events
            .came
            .wait_timeout_while(guard, time, |queue| queue.is_empty())
            .unwrap();
        queue.pop_front()
    }
}

fn retry<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(
            begin.elapsed() < HANDOVER_TIME_MAX,
            "the disk or the TAP is still in use"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// The bare guest, built if it is not there.
fn bare_guest() -> PathBuf {
    static BUILD: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILD.lock().unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/bare");
    let program = directory.join("target/release/bare-guest");
    if !program.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "--release"])
            .current_dir(&directory)
            .env_remove("CARGO_TARGET_DIR");
        assert!(
            cargo.status().expect("cargo starts").success(),
            "the bare guest does not build"
        );
    }
    program
}
