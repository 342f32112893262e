//! On a real /dev/kvm: a bare guest is run, saved, restored into another VM, and goes on there.

use std::arch::global_asm;
use std::io::{self, Write};
use std::slice;
use std::sync::Mutex;

use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs,
    kvm_msr_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::preflight::{self, KvmAbility};
use super::vcpu::{RareRegisters, VcpuAccess, VcpuIdentity, VcpuState};
use super::vm::VmState;
use super::{cpuid, layout, msr, reset_vm, setup_vcpu, vm};
use crate::boot::{BootConfig, Kernel, test_elf};
use crate::memory::Memory;
use crate::state::StateBlob;
use crate::vcpu::{Bus, complete_access};

// Guests, position-independent, for ring 3. They notify on the kick port; what they then have in their
// registers is looked at.
global_asm!(
    ".pushsection .rodata.kemari_test_guests, \"a\"",
    // Puts known values into registers of every kind, notifies, moves them all to general registers,
    // notifies.
    "kemari_test_registers:",
    "mov rsp, 0x10f000",
    "mov rbx, 0x1122334455667788",
    "movq xmm3, rbx",
    "vinsertf128 ymm4, ymm4, xmm3, 1",
    "fldpi",
    "mov eax, 0x105000",
    "mov dword ptr [rax], 0x5a5a5a5a",
    "mov edx, 0x610",
    "mov al, 1",
    "out dx, al",
    "add rbx, 1",
    "movq rcx, xmm3",
    "vextractf128 xmm5, ymm4, 1",
    "movq r8, xmm5",
    "fstp qword ptr [rsp - 8]",
    "mov r9, [rsp - 8]",
    "mov eax, 0x105000",
    "mov r10d, [rax]",
    "mov al, 2",
    "out dx, al",
    "2: jmp 2b",
    "kemari_test_registers_end:",
    // Arms the local APIC's timer (one shot, vector 0x40), notifies, and waits for the interrupt.
    "kemari_test_timer:",
    "mov rsp, 0x10f000",
    "lea rax, [rip + 5f]",
    "mov edi, 0x2400",
    "mov word ptr [rdi], ax",
    "mov word ptr [rdi + 2], 0x10",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr rax, 16",
    "mov word ptr [rdi + 6], ax",
    "mov dword ptr [rdi + 8], 0",
    "mov dword ptr [rdi + 12], 0",
    "mov edi, 0xfee00000",
    "mov dword ptr [rdi + 0xf0], 0x1ff",
    "mov dword ptr [rdi + 0x320], 0x40",
    "mov dword ptr [rdi + 0x3e0], 0xb",
    // The APIC's clock runs at 1 GHz: 100 ms.
    "mov dword ptr [rdi + 0x380], 100000000",
    "mov edx, 0x610",
    "mov al, 1",
    "out dx, al",
    "mov ecx, 2000000000",
    "xor r9d, r9d",
    "3: mov r8, [0x105008]",
    "test r8, r8",
    "jnz 4f",
    "dec ecx",
    "jnz 3b",
    "4: mov al, 2",
    "out dx, al",
    "jmp 4b",
    "5: push rax",
    "mov eax, 0x105008",
    "inc qword ptr [rax]",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    "kemari_test_timer_end:",
    // Reads across the end of a page where no memory is, and notifies.
    "kemari_test_split:",
    "mov edi, 0xd0001000",
    "mov r9, [rdi - 4]",
    "mov edx, 0x610",
    "mov al, 2",
    "out dx, al",
    "2: jmp 2b",
    "kemari_test_split_end:",
    ".popsection",
);

unsafe extern "C" {
    static kemari_test_registers: u8;
    static kemari_test_registers_end: u8;
    static kemari_test_timer: u8;
    static kemari_test_timer_end: u8;
    static kemari_test_split: u8;
    static kemari_test_split_end: u8;
}

fn guest(start: *const u8, end: *const u8) -> Vec<u8> {
    // SAFETY: the symbols enclose initialised read-only bytes.
    unsafe { slice::from_raw_parts(start, end.offset_from(start) as usize) }.to_vec()
}

fn registers_guest() -> Vec<u8> {
    guest(
        &raw const kemari_test_registers,
        &raw const kemari_test_registers_end,
    )
}

fn timer_guest() -> Vec<u8> {
    guest(&raw const kemari_test_timer, &raw const kemari_test_timer_end)
}

fn split_guest() -> Vec<u8> {
    guest(&raw const kemari_test_split, &raw const kemari_test_split_end)
}

fn kvm() -> Kvm {
    preflight::open().expect("this test needs a usable /dev/kvm; skip it with `--skip on_kvm`")
}

fn kernel(code: &[u8]) -> Kernel {
    let path = std::env::temp_dir().join(format!("kemari-kvm-{}-{:p}", std::process::id(), code));
    std::fs::write(&path, test_elf::elf(code, &test_elf::bare_note())).expect("temporary file");
    let kernel = Kernel::open(&BootConfig {
        kernel: path.clone(),
        initrd: None,
        cmdline: String::new(),
    });
    std::fs::remove_file(path).expect("temporary file");
    kernel.expect("a bare guest")
}

/// A VM with one vCPU and a little memory.
struct Vm {
    access: VcpuAccess,
    vcpu: VcpuFd,
    template: kvm_bindings::CpuId,
    vm: VmFd,
    memory: Memory,
}

impl Vm {
    fn new(kvm: &Kvm) -> Self {
        let memory = Memory::from_ranges(&layout::memory_regions(8 << 20)).expect("memory");
        let vm = kvm.create_vm().expect("a VM");
        super::create_irqchip(&vm).expect("interrupt controllers");
        let region = memory.iter().next().expect("a region");
        let slot = kvm_userspace_memory_region {
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the memory is dropped after the VM.
        unsafe { vm.set_user_memory_region(slot) }.expect("memory");
        let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
        let template = cpuid::template(kvm, 1).expect("CPUID");
        setup_vcpu(&vcpu, &template, 0, None).expect("a vCPU as after power-on");
        let access = VcpuAccess::new(kvm, &vm, &mut vcpu, RareRegisters::Keep).expect("access");
        Self {
            access,
            vcpu,
            template,
            vm,
            memory,
        }
    }

    fn boot(&mut self, kernel: &Kernel) {
        let entry = kernel.load(&self.memory, &[], 1, 1).expect("loaded");
        setup_vcpu(&self.vcpu, &self.template, 0, Some(&entry)).expect("an entry");
    }

    /// Runs until the guest notifies, completes the access, and returns the byte it wrote.
    fn run(&mut self) -> u8 {
        let byte = loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(layout::abi::KICK_PORT, data)) => break data[0],
                Ok(other) => panic!("{other:?}"),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => panic!("{error}"),
            }
        };
        self.vcpu.set_kvm_immediate_exit(1);
        assert_eq!(
            self.vcpu.run().map(|_| ()).expect_err("EINTR").errno(),
            libc::EINTR
        );
        self.vcpu.set_kvm_immediate_exit(0);
        byte
    }

    /// The state, as it would go over the wire.
    fn save(&mut self) -> [StateBlob; 3] {
        let identity = VcpuIdentity::save(&self.vcpu).expect("identity");
        let identity = StateBlob::encode(0, &identity);
        let state = self.access.save(&self.vcpu).expect("saved");
        let state = StateBlob::encode(0, state);
        let vm = VmState::save(&self.vm).expect("saved");
        [identity, state, StateBlob::encode(0, &vm)]
    }

    fn restore(&mut self, [identity, state, vm]: &[StateBlob; 3], memory: &Memory) {
        let mut bytes = vec![0; 8 << 20];
        memory
            .read_slice(&mut bytes, GuestAddress(0))
            .expect("inside the memory");
        self.memory
            .write_slice(&bytes, GuestAddress(0))
            .expect("inside the memory");
        let identity: VcpuIdentity = identity.decode().expect("identity");
        let state: VcpuState = state.decode().expect("state");
        let vm: VmState = vm.decode().expect("state");
        identity
            .restore(&self.vcpu, &self.template)
            .expect("the same processor");
        let elapsed_ns = vm.wall_clock_elapsed_ns();
        let ticks = identity.tsc_ticks(elapsed_ns);
        self.access.restore(&self.vcpu, &state, ticks).expect("restored");
        vm.restore(&self.vm, elapsed_ns).expect("restored");
        self.access.resume_clock(&self.vcpu).expect("clock");
    }

    fn expect_values(&mut self) {
        let state = self.access.save(&self.vcpu).expect("saved");
        let regs = state.regs();
        assert_eq!(regs.rbx, 0x1122_3344_5566_7789, "a general register");
        assert_eq!(regs.rcx, 0x1122_3344_5566_7788, "an SSE register");
        assert_eq!(
            regs.r8, 0x1122_3344_5566_7788,
            "the upper half of an AVX register"
        );
        assert_eq!(f64::from_bits(regs.r9), std::f64::consts::PI, "an x87 register");
        assert_eq!(regs.r10, 0x5a5a_5a5a, "memory");
        assert_eq!(regs.rdi, layout::abi::BOOT_INFO, "the argument of the entry");
    }
}

#[test]
fn a_guest_goes_on_in_another_vm_with_all_its_registers() {
    let kvm = kvm();
    let (mut first, mut second) = (Vm::new(&kvm), Vm::new(&kvm));
    first.boot(&kernel(&registers_guest()));
    assert_eq!(first.run(), 1);
    let saved = first.save();
    second.restore(&saved, &first.memory);
    assert_eq!(second.run(), 2);
    second.expect_values();
    // And the first one is unharmed by its save.
    assert_eq!(first.run(), 2);
    first.expect_values();
}

#[test]
fn the_state_is_the_same_whichever_way_it_is_read() {
    let kvm = kvm();
    let mut vm = Vm::new(&kvm);
    vm.boot(&kernel(&registers_guest()));
    assert_eq!(vm.run(), 1);
    vm.access.save(&vm.vcpu).expect("saved");
    assert_eq!(vm.run(), 2);
    let comparable = |state: &VcpuState| {
        // The TSC runs.
        format!("{state:?}").replace(&format!("{:?}", state.tsc()), "")
    };
    let lean = comparable(vm.access.save_after_exit(&vm.vcpu, true).expect("saved"));
    let full = comparable(vm.access.save(&vm.vcpu).expect("saved"));
    assert_eq!(lean, full);
    vm.expect_values();
    // As another vCPU may do while this one stands still.
    vm.vcpu.nmi().expect("an NMI");
    let lean = comparable(vm.access.save_after_exit(&vm.vcpu, false).expect("saved"));
    let with_nmi = comparable(vm.access.save(&vm.vcpu).expect("saved"));
    assert_eq!(lean, with_nmi);
    assert_ne!(with_nmi, full);
}

#[test]
fn a_restored_state_reads_back_the_same() {
    let kvm = kvm();
    let (mut first, mut second) = (Vm::new(&kvm), Vm::new(&kvm));
    first.boot(&kernel(&registers_guest()));
    assert_eq!(first.run(), 1);
    let saved = first.save();
    second.restore(&saved, &first.memory);
    let again = second.save();
    assert_eq!(saved[0], again[0], "identity");
    let decode = |blob: &StateBlob| blob.decode::<VcpuState>().expect("state");
    let (before, after) = (decode(&saved[1]), decode(&again[1]));
    assert!(after.tsc().1 > before.tsc().1, "the TSC steps back");
    let without_tsc = |state: &VcpuState| format!("{state:?}").replace(&format!("{:?}", state.tsc()), "");
    assert_eq!(without_tsc(&before), without_tsc(&after));
}

#[test]
fn an_event_that_waits_is_there_after_the_restore() {
    let kvm = kvm();
    let (mut first, mut second) = (Vm::new(&kvm), Vm::new(&kvm));
    first.vcpu.nmi().expect("an NMI");
    let saved = first.save();
    second.restore(&saved, &first.memory);
    let pending = |host: &Vm| host.vcpu.get_vcpu_events().expect("its events").nmi.pending;
    assert_eq!((pending(&first), pending(&second)), (1, 1));
}

/// A save right after an exit takes them from before.
#[test]
fn registers_that_are_seldom_read_are_those_of_the_guest_that_was_restored() {
    let kvm = kvm();
    let (mut first, mut second) = (Vm::new(&kvm), Vm::new(&kvm));
    first.boot(&kernel(&registers_guest()));
    assert_eq!(first.run(), 1);
    let mut debug = first.vcpu.get_debug_regs().expect("its registers");
    debug.db[0] = 0x1234_5678;
    first.vcpu.set_debug_regs(&debug).expect("its registers");
    let saved = first.save();
    second.restore(&saved, &first.memory);
    assert_eq!(second.run(), 2);
    let debug = |state: &VcpuState| {
        let text = format!("{state:?}");
        let (_, rest) = text.split_once("debug: ").expect("debug registers");
        rest[..rest.find(']').expect("their end")].to_owned()
    };
    let lean = debug(second.access.save_after_exit(&second.vcpu, true).expect("saved"));
    assert!(lean.starts_with(&format!("[{}", 0x1234_5678)), "{lean}");
    assert_eq!(lean, debug(second.access.save(&second.vcpu).expect("saved")));
}

/// A vCPU that was not set up.
fn new_vcpu(kvm: &Kvm, index: u8) -> (VmFd, VcpuFd) {
    let vm = kvm.create_vm().expect("a VM");
    super::create_irqchip(&vm).expect("interrupt controllers");
    let vcpu = vm.create_vcpu(index.into()).expect("a vCPU");
    (vm, vcpu)
}

#[test]
fn a_processor_that_lacks_a_feature_of_the_guests_is_refused() {
    let kvm = kvm();
    let host = Vm::new(&kvm);
    let mut identity = VcpuIdentity::save(&host.vcpu).expect("identity");
    identity
        .restore(&host.vcpu, &host.template)
        .expect("all are there");
    let leaf = identity.leaf_mut(7).expect("it says what the processor can do");
    // One that this processor has not.
    let bit = 1 << leaf.ebx.trailing_ones();
    leaf.ebx |= bit;
    let error = identity
        .restore(&host.vcpu, &host.template)
        .expect_err("a feature is missing");
    let named = format!("leaf 0x7.0 ebx bits {bit:#x}");
    assert!(error.to_string().contains(&named), "{error}");
}

#[test]
fn only_the_first_vcpu_runs_by_itself() {
    let kvm = kvm();
    let template = cpuid::template(&kvm, 2).expect("CPUID");
    for (index, expected) in [(0, KVM_MP_STATE_RUNNABLE), (1, KVM_MP_STATE_UNINITIALIZED)] {
        let (_vm, vcpu) = new_vcpu(&kvm, index);
        setup_vcpu(&vcpu, &template, index, None).expect("as after power-on");
        assert_eq!(vcpu.get_mp_state().expect("its state").mp_state, expected);
    }
}

#[test]
fn an_armed_timer_fires_after_the_restore() {
    let kvm = kvm();
    let (mut first, mut second) = (Vm::new(&kvm), Vm::new(&kvm));
    first.boot(&kernel(&timer_guest()));
    assert_eq!(first.run(), 1);
    let saved = first.save();
    let ticks: u64 = first
        .memory
        .read_obj(GuestAddress(0x10_5008))
        .expect("inside the memory");
    assert_eq!(
        ticks, 0,
        "the timer fired before the save: the test proves nothing"
    );
    second.restore(&saved, &first.memory);
    assert_eq!(second.run(), 2);
    let ticks: u64 = second
        .memory
        .read_obj(GuestAddress(0x10_5008))
        .expect("inside the memory");
    assert_eq!(ticks, 1);
}

#[test]
fn a_guest_boots_again_where_another_ran() {
    let kvm = kvm();
    let mut vm = Vm::new(&kvm);
    vm.boot(&kernel(&timer_guest()));
    assert_eq!(vm.run(), 1);
    reset_vm(&vm.vm).expect("reset");
    vm.boot(&kernel(&registers_guest()));
    assert_eq!(vm.run(), 1);
    assert_eq!(vm.run(), 2);
    vm.expect_values();
}

/// Answers reads of addresses without memory, and counts them.
#[derive(Default)]
struct Answers(Mutex<Vec<u64>>);

impl Bus for Answers {
    fn port_in(&self, _: u16, _: &mut [u8]) {}
    fn port_out(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xbb);
        self.0.lock().unwrap().push(address);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn shut_down(&self) {}
    fn dirty_ring_full(&self) {}
    fn guest_failed(&self, why: String) {
        panic!("{why}");
    }
    fn failed(&self, why: String) {
        panic!("{why}");
    }
}

/// KVM leaves for each part of it. With a state of the middle the guest would read again what it has read,
/// which a device notices.
#[test]
fn an_access_of_several_parts_is_behind_the_guest_when_it_is_saved() {
    let kvm = kvm();
    let (mut first, mut second) = (Vm::new(&kvm), Vm::new(&kvm));
    first.boot(&kernel(&split_guest()));
    loop {
        match first.vcpu.run() {
            Ok(VcpuExit::MmioRead(0xd000_0ffc, data)) => break data.fill(0xaa),
            Err(error) if error.errno() == libc::EINTR => {}
            other => panic!("{other:?}"),
        }
    }
    let bus = Answers::default();
    assert!(!complete_access(&mut first.vcpu, &bus), "it can go on");
    assert_eq!(*bus.0.lock().unwrap(), [0xd000_1000]);
    let saved = first.save();
    second.restore(&saved, &first.memory);
    for host in [&mut first, &mut second] {
        assert_eq!(host.run(), 2);
        let state = host.access.save(&host.vcpu).expect("saved");
        assert_eq!(state.regs().r9, 0xbbbb_bbbb_aaaa_aaaa);
    }
}

/// Both halves of the old interrupt controller.
const PICS: [u32; 2] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE];
/// Where each has the lines that are masked.
const INTERRUPT_MASK: usize = 2;

fn masked_lines(host: &Vm) -> [u8; 2] {
    PICS.map(|chip| vm::get_chip(&host.vm, chip).expect("its state")[INTERRUPT_MASK])
}

fn mask_lines(host: &Vm, masks: [u8; 2]) {
    for (chip, mask) in PICS.into_iter().zip(masks) {
        let mut bytes = vm::get_chip(&host.vm, chip).expect("its state");
        bytes[INTERRUPT_MASK] = mask;
        vm::set_chip(&host.vm, chip, &bytes).expect("a state");
    }
}

#[test]
fn nobody_hears_the_old_interrupt_controller_before_it_is_set_up() {
    let host = Vm::new(&kvm());
    assert_eq!(masked_lines(&host), [0xff; 2], "at power-on");
    mask_lines(&host, [0xfb, 0]);
    assert_eq!(masked_lines(&host), [0xfb, 0]);
    reset_vm(&host.vm).expect("reset");
    assert_eq!(masked_lines(&host), [0xff; 2], "after a reset");
}

#[test]
fn old_interrupt_controller_and_interval_timer_go_on_as_they_were() {
    let kvm = kvm();
    let (first, second) = (Vm::new(&kvm), Vm::new(&kvm));
    mask_lines(&first, [0xfb, 0xa5]);
    let mut pit = first.vm.get_pit2().expect("its state");
    // Nobody listens to channel 1, and the speaker is silent.
    (pit.channels[1].mode, pit.channels[1].count) = (3, 0x1234);
    (pit.channels[2].mode, pit.channels[2].count) = (2, 0x4321);
    first.vm.set_pit2(&pit).expect("a state");
    VmState::save(&first.vm)
        .expect("saved")
        .restore(&second.vm, 0)
        .expect("restored");
    assert_eq!(masked_lines(&second), [0xfb, 0xa5]);
    let found = second.vm.get_pit2().expect("its state").channels;
    let found = [1, 2].map(|channel| (found[channel].mode, found[channel].count));
    assert_eq!(found, [(3, 0x1234), (2, 0x4321)]);
}

/// KVM drops a deadline that comes before the mode of the timer that it is of.
#[test]
fn a_deadline_is_there_after_the_restore() {
    /// The timer's entry in the local APIC: mode "deadline", masked.
    const TIMER: usize = 0x320;
    const DEADLINE_MASKED: u32 = 0b10 << 17 | 1 << 16 | 0x40;
    const FAR: u64 = 1 << 62;
    let kvm = kvm();
    let (first, second) = (Vm::new(&kvm), Vm::new(&kvm));
    let mut lapic = first.vcpu.get_lapic().expect("its state");
    for (register, byte) in lapic.regs[TIMER..].iter_mut().zip(DEADLINE_MASKED.to_le_bytes()) {
        *register = byte as _;
    }
    first.vcpu.set_lapic(&lapic).expect("a state");
    if !msr::saved(&kvm, &first.vcpu)
        .expect("the registers")
        .as_slice()
        .iter()
        .any(|entry| entry.index == msr::TSC_DEADLINE)
    {
        // Not eprintln!, which the harness holds back.
        let _ = writeln!(
            io::stderr(),
            "NOT RUN: a deadline that is restored; this KVM has none, and shows guests none"
        );
        return;
    }
    let (mut first, mut second) = (first, second);
    msr::write(&first.vcpu, [(msr::TSC_DEADLINE, FAR)].into_iter()).expect("a deadline");
    let saved = first.save();
    second.restore(&saved, &first.memory);
    let mut deadline = Msrs::from_entries(&[kvm_msr_entry {
        index: msr::TSC_DEADLINE,
        ..Default::default()
    }])
    .unwrap();
    msr::read(&second.vcpu, &mut deadline).expect("it is there");
    assert_eq!(deadline.as_slice()[0].data, FAR);
}

/// They would write its memory after a capture.
#[test]
fn a_guest_has_no_steal_time_and_no_asynchronous_page_faults() {
    let kvm = kvm();
    let host = Vm::new(&kvm);
    for index in [msr::KVM_STEAL_TIME, msr::KVM_ASYNC_PF] {
        let entry = kvm_msr_entry {
            index,
            // In memory, and switched on.
            data: 0x10_5000 | 1,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(
            host.vcpu.set_msrs(&msrs).unwrap(),
            0,
            "{index:#x} can be switched on"
        );
    }
    let listed = msr::saved(&kvm, &host.vcpu).unwrap();
    let pv = [msr::KVM_WALL_CLOCK, msr::KVM_SYSTEM_TIME, msr::KVM_PV_EOI];
    for index in pv {
        assert!(
            listed.as_slice().iter().any(|entry| entry.index == index),
            "{index:#x}"
        );
    }
}

#[test]
fn the_clock_never_steps_back() {
    let kvm = kvm();
    let (first, second) = (Vm::new(&kvm), Vm::new(&kvm));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let state = VmState::save(&first.vm).expect("saved");
    let before = first.vm.get_clock().expect("clock").clock;
    state.restore(&second.vm, 1_000_000_000).expect("restored");
    let after = second.vm.get_clock().expect("clock").clock;
    assert!(after > before + 900_000_000, "{before} {after}");
    state.restore(&second.vm, 0).expect("restored");
    let after = second.vm.get_clock().expect("clock").clock;
    assert!(after >= before - 20_000_000, "{before} {after}");
}

#[test]
fn this_hosts_kvm_is_recognised() {
    let found = preflight::measure(&kvm()).expect("measured");
    // The special KVM of development machines has no TSC control and emulates ring 0; any other KVM runs it.
    let speed = found.ring0_instructions_per_second;
    assert!(speed > 100_000, "{found:?}");
    assert_eq!(found.ability == KvmAbility::Full, speed >= 8_000_000, "{found:?}");
    assert!(found.tsc_khz > 100_000, "{found:?}");
}
