//! vCPU threads: they run the guest, hand its device accesses to the bus,
//! and park when the machine is to pause.
//!
//! Pausing: whoever pauses sets the wish, sets `immediate_exit` in each vCPU's run page and sends each thread
//! a signal; KVM_RUN returns, and the thread parks. Before it parks it enters KVM once more with
//! `immediate_exit` set, so that KVM completes a device access that is under way
//! (Documentation/virt/kvm/api.rst, "KVM_RUN"): only then is the vCPU's state whole.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, ptr};

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES, STREAMS, call};

/// What a vCPU's thread asks of the kernel. It runs the guest, its devices and, parked, a sync.
pub const CALLS: Calls = Calls {
    of: "vcpu",
    parts: &[
        COMMON,
        DEVICES,
        STREAMS,
        OPEN_FILES,
        &[
            call(libc::SYS_eventfd2, "a disk's queue that is set up"),
            call(libc::SYS_mlock2, "memory of the guest that came back"),
        ],
    ],
};

/// What a vCPU's guest does to the rest of the machine.
pub(crate) trait Bus: Send + Sync {
    /// Reads from an I/O port.
    fn port_in(&self, port: u16, data: &mut [u8]);
    /// Writes to an I/O port.
    fn port_out(&self, port: u16, data: &[u8]);
    /// Reads from an address without memory.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// Writes to an address without memory.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// The guest made the processor shut down (a triple fault): a PC is reset by it.
    fn shut_down(&self);
    /// The vCPU's dirty ring is full: the guest goes on when it has been read.
    fn dirty_ring_full(&self);
    /// The guest has done something after which its vCPU cannot go on, here or on another host. It is not run
    /// again before its registers are written.
    fn guest_failed(&self, why: String);
    /// KVM cannot go on with this vCPU: the host's failure, not the guest's.
    fn failed(&self, why: String);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Pause,
    Run,
    Exit,
}

struct Rendezvous {
    wish: Wish,
    parked: usize,
}

/// Called by a vCPU's thread when it has parked.
pub(crate) type ParkedHook = Arc<dyn Fn() + Send + Sync>;

/// Where the vCPU threads of one machine meet to pause.
pub(crate) struct Pauser {
    count: usize,
    hook: RwLock<Option<ParkedHook>>,
    state: Mutex<Rendezvous>,
    changed: Condvar,
    /// Whether `wish` is other than to run; read on every way into the guest.
    stop: AtomicBool,
}

impl Pauser {
    fn new(count: usize) -> Arc<Self> {
        let state = Mutex::new(Rendezvous {
            wish: Wish::Pause,
            parked: 0,
        });
        Arc::new(Self {
            count,
            hook: RwLock::new(None),
            state,
            changed: Condvar::new(),
            stop: AtomicBool::new(true),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Rendezvous> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self, wish: Wish) {
        let mut state = self.lock();
        if state.wish != Wish::Exit {
            state.wish = wish;
            self.stop.store(wish != Wish::Run, Ordering::SeqCst);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Lets each vCPU park as soon as it comes out of the guest. Returns at once; any thread may call it.
    pub(crate) fn request_pause(&self) {
        if !self.stop.load(Ordering::SeqCst) {
            self.wish(Wish::Pause);
        }
    }

    /// Called by a vCPU thread: waits until it may run; while it is `dead` it may not.
    /// Returns false if it is to end.
    fn park(&self, dead: &AtomicBool) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        if state.parked == self.count {
            self.changed.notify_all();
        }
        drop(state);
        // The thread would only sleep now: whoever waits for the pause can have his work done here, without
        // waking another thread.
        let hook = self.hook.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook();
        }
        let mut state = self.lock();
        while state.wish == Wish::Pause || state.wish == Wish::Run && dead.load(Ordering::SeqCst) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.wish == Wish::Run
    }

    fn all_parked(&self) -> bool {
        let state = self.lock();
        state.wish == Wish::Pause && state.parked == self.count
    }

    fn wait_parked(&self) {
        let mut state = self.lock();
        while state.parked < self.count && state.wish == Wish::Pause {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same, for so long at most. Returns whether all are parked.
    fn wait_parked_for(&self, limit: Duration) -> bool {
        let are_to_come = |state: &mut Rendezvous| state.parked < self.count && state.wish == Wish::Pause;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, are_to_come);
        waited.unwrap_or_else(PoisonError::into_inner).0.parked == self.count
    }
}

struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    /// `immediate_exit` in the vCPU's run page, which lives as long as `fd`.
    immediate_exit: *mut u8,
    /// Whether the guest was last left for a device access, so that the vCPU is not halted.
    at_access: Arc<AtomicBool>,
    /// Whether it cannot run any more as it is.
    dead: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

// SAFETY: the pointer is only ever used as an atomic byte inside a mapping that `fd` keeps alive.
unsafe impl Send for Vcpu {}
// SAFETY: as above.
unsafe impl Sync for Vcpu {}

impl Vcpu {
    fn demand_exit(&self) {
        // SAFETY: the byte lies in the run page, which `fd` keeps mapped; the kernel only reads it.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }.store(1, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            // A thread that has ended needs no signal.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

/// The vCPUs of one machine.
pub(crate) struct Vcpus {
    pauser: Arc<Pauser>,
    vcpus: Vec<Vcpu>,
}

extern "C" fn leave_guest(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Its arrival alone makes KVM_RUN return.
}

impl Vcpus {
    /// Takes the vCPUs, paused. Their threads begin with [`Vcpus::start`].
    pub(crate) fn new(fds: Vec<VcpuFd>) -> Self {
        let vcpus = fds
            .into_iter()
            .map(|mut fd| {
                let immediate_exit = ptr::from_mut(&mut fd.get_kvm_run().immediate_exit);
                Vcpu {
                    fd: Arc::new(Mutex::new(fd)),
                    immediate_exit,
                    at_access: Arc::default(),
                    dead: Arc::default(),
                    thread: None,
                }
            })
            .collect::<Vec<_>>();
        Self {
            pauser: Pauser::new(vcpus.len()),
            vcpus,
        }
    }

    /// The meeting point, for those who ask for a pause without waiting for it.
    pub(crate) fn pauser(&self) -> Arc<Pauser> {
        self.pauser.clone()
    }

    /// Starts the threads; they park at once.
    pub(crate) fn start(&mut self, bus: &Weak<dyn Bus>) -> io::Result<()> {
        register_signal_handler(SIGRTMIN(), leave_guest).map_err(io::Error::from)?;
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            let (fd, pauser, bus) = (vcpu.fd.clone(), self.pauser.clone(), bus.clone());
            let (at_access, dead) = (vcpu.at_access.clone(), vcpu.dead.clone());
            let name = format!("vcpu{index}");
            vcpu.thread = Some(thread::Builder::new().name(name).spawn(move || {
                confine::thread(&CALLS);
                vcpu_loop(&fd, &pauser, &bus, &at_access, &dead);
            })?);
        }
        self.pauser.wait_parked();
        Ok(())
    }

    /// Number of vCPUs.
    pub(crate) fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Pauses: returns when every vCPU is parked, its state whole.
    pub(crate) fn pause(&self) {
        self.begin_pause();
        self.pauser.wait_parked();
    }

    /// Pauses, and waits for so long at most. Returns whether every vCPU is parked;
    /// each parks as soon as it can in any case.
    pub(crate) fn pause_within(&self, limit: Duration) -> bool {
        self.begin_pause();
        self.pauser.wait_parked_for(limit)
    }

    /// Pauses without waiting: every vCPU parks as soon as it can.
    pub(crate) fn begin_pause(&self) {
        if !self.pauser.all_parked() {
            self.pauser.wish(Wish::Pause);
            self.vcpus.iter().for_each(Vcpu::demand_exit);
        }
    }

    /// Lets all vCPUs run.
    pub(crate) fn resume(&self) {
        self.pauser.wish(Wish::Run);
    }

    /// Whether all vCPUs are parked.
    pub(crate) fn are_parked(&self) -> bool {
        self.pauser.lock().parked == self.vcpus.len()
    }

    /// Whether a parked vCPU left the guest for a device access: its registers then lie in the run page.
    pub(crate) fn is_at_access(&self, index: usize) -> bool {
        self.vcpus[index].at_access.load(Ordering::SeqCst)
    }

    /// The registers of a parked vCPU are written by other means than running it: what lies in its run page
    /// is old, and it may run again if it could not any more.
    pub(crate) fn forget_access(&self, index: usize) {
        self.vcpus[index].at_access.store(false, Ordering::SeqCst);
        self.vcpus[index].dead.store(false, Ordering::SeqCst);
    }

    /// What each vCPU's thread calls when it has parked. It counts as parked meanwhile, so the function may
    /// pause, freeze and resume the machine; it must not wait for a vCPU in another way.
    pub(crate) fn on_parked(&self, hook: Option<ParkedHook>) {
        *self.pauser.hook.write().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// One parked vCPU.
    pub(crate) fn fd(&self, index: usize) -> MutexGuard<'_, VcpuFd> {
        self.vcpus[index]
            .fd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.pauser.wish(Wish::Exit);
        for vcpu in &mut self.vcpus {
            vcpu.demand_exit();
            match vcpu.thread.take() {
                // The last handle of a machine may be dropped by one of its own threads.
                Some(thread) if thread.thread().id() != thread::current().id() => {
                    let _ = thread.join();
                }
                _ => {}
            }
        }
    }
}

/// How a run in the guest ended.
enum RunEnd {
    /// For a device access: there is more to run.
    ForAccess,
    /// For a signal or a halt: there is more to run.
    Again,
    /// The vCPU cannot run any more.
    Dead,
}

fn vcpu_loop(
    fd: &Mutex<VcpuFd>,
    pauser: &Pauser,
    bus: &Weak<dyn Bus>,
    at_access: &AtomicBool,
    dead: &AtomicBool,
) {
    loop {
        if pauser.stop.load(Ordering::SeqCst) || dead.load(Ordering::SeqCst) {
            let Some(bus) = bus.upgrade() else { return };
            if !dead.load(Ordering::SeqCst)
                && complete_access(&mut fd.lock().unwrap_or_else(PoisonError::into_inner), &*bus)
            {
                dead.store(true, Ordering::SeqCst);
            }
            drop(bus);
            if !pauser.park(dead) {
                return;
            }
            continue;
        }
        let mut fd = fd.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bus) = bus.upgrade() else { return };
        let end = run_once(&mut fd, &*bus);
        at_access.store(matches!(end, RunEnd::ForAccess), Ordering::SeqCst);
        if matches!(end, RunEnd::Dead) {
            dead.store(true, Ordering::SeqCst);
            pauser.request_pause();
        }
    }
}

fn run_once(fd: &mut VcpuFd, bus: &dyn Bus) -> RunEnd {
    match fd.run() {
        Ok(VcpuExit::IoOut(port, data)) => bus.port_out(port, data),
        Ok(VcpuExit::IoIn(port, data)) => bus.port_in(port, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.mmio_write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => bus.mmio_read(address, data),
        Ok(VcpuExit::Hlt | VcpuExit::Intr) => return RunEnd::Again,
        Ok(VcpuExit::Shutdown) => {
            bus.shut_down();
            return RunEnd::Dead;
        }
        Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
            bus.dirty_ring_full();
            return RunEnd::Again;
        }
        Ok(VcpuExit::InternalError) => {
            internal_error(fd, bus);
            return RunEnd::Dead;
        }
        Ok(exit @ VcpuExit::FailEntry(..)) => {
            bus.failed(format!("the processor refuses to enter the guest: {exit:?}"));
            return RunEnd::Dead;
        }
        Ok(exit) => {
            let why = format!("KVM left the guest for a reason that Kemari does not handle: {exit:?}");
            bus.guest_failed(why);
            return RunEnd::Dead;
        }
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            fd.set_kvm_immediate_exit(0);
            return RunEnd::Again;
        }
        Err(error) => {
            bus.failed(format!("KVM_RUN failed: {error}"));
            return RunEnd::Dead;
        }
    }
    RunEnd::ForAccess
}

/// KVM cannot go on with what the guest does. An instruction that it cannot emulate, or an event that it
/// cannot deliver since the guest's tables lie where no memory is, are the guest's doing, and would be the
/// same on every host.
fn internal_error(fd: &mut VcpuFd, bus: &dyn Bus) {
    // SAFETY: after an exit for an internal error this member of the union is valid,
    // and any bytes are a valid integer.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => bus.guest_failed("it does what KVM cannot emulate".into()),
        KVM_INTERNAL_ERROR_SIMUL_EX | KVM_INTERNAL_ERROR_DELIVERY_EV => {
            bus.guest_failed("an exception or interrupt cannot be delivered to it".into());
        }
        other => bus.failed(format!("an internal error of KVM, number {other}")),
    }
}

/// Lets KVM finish the device access that the guest left for. KVM splits an access that crosses a page, or is
/// wider than 8 bytes, and leaves again for each further part, without entering the guest in between: they
/// belong to it. Returns whether the vCPU cannot run any more.
pub(crate) fn complete_access(fd: &mut VcpuFd, bus: &dyn Bus) -> bool {
    let end = loop {
        fd.set_kvm_immediate_exit(1);
        // EINTR says that it is finished.
        match run_once(fd, bus) {
            RunEnd::ForAccess => {}
            end => break end,
        }
    };
    fd.set_kvm_immediate_exit(0);
    matches!(end, RunEnd::Dead)
}
