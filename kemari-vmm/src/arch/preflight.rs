//! What this host's KVM can do, found out by asking and, where asking does not help, by measuring.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_cpuid_entry2, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Error, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::entry::{Entry, write_long_mode_tables};
use super::{ArchError, cpuid, named, registers, reset};
use crate::memory::{DoesNotFit, Memory};

/// Where KVM is.
pub(crate) const KVM_PATH: &str = "/dev/kvm";

/// What runs on this host's KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmAbility {
    /// Every guest.
    Full,
    /// Privileged code is emulated, instruction by instruction: bare guests, which work in ring 3, run at
    /// full speed; a Linux kernel does not get through.
    Ring3Only,
}

/// What was found out about this host's KVM.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// What runs.
    pub ability: KvmAbility,
    /// Speed of privileged code, by measuring.
    pub ring0_instructions_per_second: u64,
    /// Frequency of the guest's TSC, in kHz.
    pub tsc_khz: u32,
}

/// A host on which Kemari does not run.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// There is no /dev/kvm.
    #[error(
        "there is no {KVM_PATH}; enable virtualisation (VT-x or AMD-V) in the firmware, or nested \
         virtualisation where this host is itself a VM, and load the module kvm_intel or kvm_amd"
    )]
    NoKvm,
    /// It may not be opened.
    #[error("no permission to open {KVM_PATH}; become root, or join the group that owns it (usually kvm)")]
    NoPermission,
    /// It cannot be opened.
    #[error("cannot open {KVM_PATH}")]
    Open(#[source] kvm_ioctls::Error),
    /// It speaks another language.
    #[error("{KVM_PATH} has API version {0}, not 12; is it really KVM?")]
    Version(i32),
    /// Something necessary is missing.
    #[error("this host's KVM lacks {0}; use a newer Linux kernel (5.10 or later)")]
    Lacks(String),
    /// An ioctl failed.
    #[error(transparent)]
    Kvm(#[from] ArchError),
    /// The measuring VM could not be built.
    #[error("cannot build a small VM to measure with")]
    Build(#[source] DoesNotFit),
    /// There is no memory for it.
    #[error("cannot map a little memory for a VM to measure with")]
    Memory(#[source] vm_memory::mmap::FromRangesError),
}

/// The only version of KVM's API there is.
const KVM_API_VERSION: i32 = 12;

/// What cannot be done without.
const NEEDED: [(Cap, &str); 20] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Clocksource, "KVM_CAP_CLOCKSOURCE"),
    (Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
];

/// KVM, opened before it is needed.
static HELD: OnceLock<OwnedFd> = OnceLock::new();

/// Opens KVM now, for whoever asks for it later on, when this process may not open it any more. What is in
/// the way is said then.
pub fn hold() {
    if let Ok(kvm) = Kvm::open_with_cloexec(true) {
        // SAFETY: the descriptor was just made, and nobody else has it.
        let kvm = unsafe { OwnedFd::from_raw_fd(kvm) };
        // There is one for the process.
        let _ = HELD.set(kvm);
    }
}

fn kvm() -> Result<Kvm, Error> {
    let Some(held) = HELD.get() else { return Kvm::new() };
    let copy = held
        .try_clone()
        .map_err(|error| Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
    // SAFETY: it is a descriptor of KVM, and nobody else's.
    Ok(unsafe { Kvm::from_raw_fd(copy.into_raw_fd()) })
}

/// Opens KVM and checks that it has what Kemari needs.
///
/// # Errors
/// A sentence that says what is missing and what to do.
pub fn open() -> Result<Kvm, PreflightError> {
    let kvm = kvm().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => PreflightError::NoKvm,
        libc::EACCES | libc::EPERM => PreflightError::NoPermission,
        _ => PreflightError::Open(error),
    })?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(PreflightError::Version(version));
    }
    let lacking: Vec<_> = NEEDED
        .into_iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| name)
        .collect();
    if lacking.is_empty() {
        Ok(kvm)
    } else {
        Err(PreflightError::Lacks(lacking.join(", ")))
    }
}

/// Registers of one leaf of CPUID: function, index, eax, ebx, ecx, edx.
pub(crate) type FeatureLeaf = [u32; 6];

/// The processor that guests with so many vCPUs see here.
///
/// # Errors
/// If KVM does not list what it supports.
pub fn features(kvm: &Kvm, vcpu_count: u8) -> Result<Vec<FeatureLeaf>, PreflightError> {
    let template = cpuid::template(kvm, vcpu_count)?;
    let leaf = |entry: &kvm_cpuid_entry2| {
        [
            entry.function,
            entry.index,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ]
    };
    Ok(template.as_slice().iter().map(leaf).collect())
}

/// Which features `theirs` has and `ours` lacks, in words: by the rule that a state is loaded by.
pub fn missing_features(ours: &[FeatureLeaf], theirs: &[FeatureLeaf]) -> Vec<String> {
    let entries = |leaves: &[FeatureLeaf]| -> Vec<kvm_cpuid_entry2> {
        let entry = |&[function, index, eax, ebx, ecx, edx]: &FeatureLeaf| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        leaves.iter().map(entry).collect()
    };
    cpuid::missing(&entries(ours), &entries(theirs))
}

/// Finds out what runs here, in some tens of milliseconds.
///
/// # Errors
/// If the VM to measure with cannot be built.
pub fn measure(kvm: &Kvm) -> Result<Preflight, PreflightError> {
    let mut probe = Probe::new(kvm)?;
    let speed = probe.ring0_instructions_per_second();
    Ok(Preflight {
        ability: if speed >= NATIVE_INSTRUCTIONS_PER_SECOND {
            KvmAbility::Full
        } else {
            KvmAbility::Ring3Only
        },
        ring0_instructions_per_second: speed,
        tsc_khz: probe.vcpu.get_tsc_khz().map_err(named("KVM_GET_TSC_KHZ"))?,
    })
}

/// Between KVM's instruction emulator (about 1 million a second) and the slowest processor that executes
/// privileged code itself, one emulated by QEMU's TCG (about 100 million).
const NATIVE_INSTRUCTIONS_PER_SECOND: u64 = 8_000_000;
/// Instructions of one measurement: 20 ms in the emulator, and enough beside the cost of an exit elsewhere.
const INSTRUCTIONS: u32 = 20_000;
/// The best of so many measurements counts: the host may be busy.
const MEASUREMENTS: usize = 3;

const CODE: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 2 << 20;
/// `l: dec ecx; jnz l; out 0x10, al`
const LOOP: [u8; 6] = [0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x10];

/// A throw-away VM that counts down in ring 0 of 64-bit mode.
struct Probe {
    vcpu: VcpuFd,
    _vm: VmFd,
    // Dropped last: the VM's memory.
    _memory: Memory,
}

impl Probe {
    fn new(kvm: &Kvm) -> Result<Self, PreflightError> {
        let memory =
            Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).map_err(PreflightError::Memory)?;
        write_long_mode_tables(&memory).map_err(PreflightError::Build)?;
        memory
            .write_slice(&LOOP, GuestAddress(CODE))
            .expect("inside the memory");
        let vm = reset::create_vm(kvm)?;
        reset::create_irqchip(&vm)?;
        for region in memory.iter() {
            let slot = kvm_userspace_memory_region {
                guest_phys_addr: 0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the mapping lives as long as the VM, which is dropped before it.
            unsafe { vm.set_user_memory_region(slot) }.map_err(named("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(named("KVM_CREATE_VCPU"))?;
        let entry = Entry::Linux64 {
            rip: CODE,
            boot_params: 0,
        };
        reset::setup_vcpu(&vcpu, &cpuid::template(kvm, 1)?, 0, Some(&entry))?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// 0 if the code does not get through at all.
    fn ring0_instructions_per_second(&mut self) -> u64 {
        // The first run pays for the first touch of every page.
        let warm = self.count_down(1);
        let best = (0..MEASUREMENTS)
            .map_while(|_| self.count_down(INSTRUCTIONS / 2))
            .min();
        match (warm, best) {
            (Some(_), Some(best)) => {
                (f64::from(INSTRUCTIONS) / best.max(Duration::from_nanos(1)).as_secs_f64()) as u64
            }
            _ => 0,
        }
    }

    /// Executes twice as many instructions as `from`, and says how long it took.
    fn count_down(&mut self, from: u32) -> Option<Duration> {
        let entry = Entry::Linux64 {
            rip: CODE,
            boot_params: 0,
        };
        let regs = kvm_regs {
            rcx: from.into(),
            ..registers::general(0, Some(&entry))
        };
        self.vcpu.set_regs(&regs).ok()?;
        let start = Instant::now();
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => Some(start.elapsed()),
            _ => None,
        }
    }
}
