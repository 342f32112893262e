//! Faults for tests, by the environment variable `KEMARI_FAULTS`: words separated by commas. They exist only
//! in a build with the cargo feature `faults`; without it every function here does nothing.
//!
//! | word | fault |
//! |---|---|
//! | a name of `kemari_sync::Fault`, as `ReleaseBeforeAck` | that rule of the mechanism is taken out |
//! | `AckDelayMs=N` | the secondary waits so long before each ack |
//! | `ClockAheadMs=N` | this host's wall clock is so much ahead, where the hosts' clocks are compared |
//! | `CutFrameAtEpoch=N` | the primary sends half of that sync's frames and drops the link |
//! | `GatherUs=N` | output gathers so long before each pipelined sync, whatever is measured |
//! | `GuestWaits` | the guest stands still for each pipelined sync, whatever is measured |
//! | `PrepareDelayMs=N` | a standby VM takes so much longer to build, its images open |
//! | `StepsIn=DIRECTORY` | steps of a change of roles are listed there, and fail; see below |
//! | `SpoilMemoryMib=N` | as a drill begins, the first so many MiB of the committed memory become zeros |
//! | `SpoilVcpus` | as a drill begins, each vCPU of what is committed has lost its place; see below |
//! | `RefuseStateAt=N` | KVM refuses the state of that sync, and of all after it, on the secondary |
//! | `ReplicaDelayMs=N` | the secondary's disks take so much longer for each piece of work |
//!
//! `StepsIn`: each [step](super::step) is written into the file `passed` there once the process has a role;
//! one that the file `fail` names fails, and its line goes. `NAME` fails before it is done, `NAME!` after it.
//! `SpoilVcpus`: the place in the program is lost; at each second drill, the stack.

#[cfg(feature = "faults")]
mod steps;

/// The directories that faults of this process write into.
pub fn directories() -> Vec<std::path::PathBuf> {
    #[cfg(feature = "faults")]
    if let Ok(words) = std::env::var("KEMARI_FAULTS") {
        let directories = words.split(',').filter_map(|word| word.strip_prefix("StepsIn="));
        return directories.map(Into::into).collect();
    }
    Vec::new()
}

#[cfg(feature = "faults")]
mod injected {
    use std::fmt::Display;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use anyhow::{Context, bail};
    use kemari_sync::wire::Message;
    use kemari_sync::{Fault, inject};
    use kemari_vmm::arch::vcpu::VcpuState;
    use kemari_vmm::memory::{self, Memory, PAGE_BYTES};
    use kemari_vmm::state::{StateBlob, StateKind};

    #[derive(Default)]
    struct Faults {
        rule: Option<Fault>,
        ack_delay: Duration,
        cut_frame_at: Option<u64>,
        gather_us: Option<u64>,
        guest_waits: bool,
        refuse_state_at: Option<u64>,
        clock_ahead_ms: u64,
        replica_delay: Duration,
        prepare_delay: Duration,
        steps_in: Option<PathBuf>,
        spoil_mib: u64,
        spoil_vcpus: bool,
    }

    static FAULTS: OnceLock<Faults> = OnceLock::new();
    static HAS_ROLE: AtomicBool = AtomicBool::new(false);

    pub fn set_up() -> anyhow::Result<()> {
        let text = std::env::var("KEMARI_FAULTS").unwrap_or_default();
        let mut faults = Faults::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                Some(("AckDelayMs", number)) => {
                    let delay_ms = number.parse().with_context(|| format!("the fault {word}"))?;
                    faults.ack_delay = Duration::from_millis(delay_ms);
                }
                Some(("ReplicaDelayMs", number)) => {
                    let delay_ms = number.parse().with_context(|| format!("the fault {word}"))?;
                    faults.replica_delay = Duration::from_millis(delay_ms);
                }
                Some(("PrepareDelayMs", number)) => {
                    let delay_ms = number.parse().with_context(|| format!("the fault {word}"))?;
                    faults.prepare_delay = Duration::from_millis(delay_ms);
                }
                Some(("SpoilMemoryMib", number)) => {
                    faults.spoil_mib = number.parse().with_context(|| format!("the fault {word}"))?;
                }
                Some(("GatherUs", number)) => {
                    faults.gather_us = Some(number.parse().with_context(|| format!("the fault {word}"))?);
                }
                Some(("ClockAheadMs", number)) => {
                    faults.clock_ahead_ms = number.parse().with_context(|| format!("the fault {word}"))?;
                }
                Some(("RefuseStateAt", number)) => {
                    faults.refuse_state_at =
                        Some(number.parse().with_context(|| format!("the fault {word}"))?);
                }
                Some(("CutFrameAtEpoch", number)) => {
                    faults.cut_frame_at = Some(number.parse().with_context(|| format!("the fault {word}"))?);
                }
                Some(("StepsIn", directory)) => faults.steps_in = Some(directory.into()),
                Some(_) => bail!("there is no fault {word}"),
                None if word == "GuestWaits" => faults.guest_waits = true,
                None if word == "SpoilVcpus" => faults.spoil_vcpus = true,
                None => {
                    faults.rule =
                        Some(Fault::from_name(word).with_context(|| format!("there is no fault {word}"))?)
                }
            }
        }
        if !text.is_empty() {
            tracing::warn!("deliberate faults are at work: {text}");
        }
        FAULTS.get_or_init(|| faults);
        on_this_thread();
        Ok(())
    }

    pub fn on_this_thread() {
        inject(FAULTS.get().and_then(|faults| faults.rule));
    }

    pub fn note_role() {
        HAS_ROLE.store(true, Ordering::SeqCst);
    }

    pub fn before_step(name: &dyn Display) -> anyhow::Result<()> {
        let directory = FAULTS.get().and_then(|faults| faults.steps_in.as_deref());
        match directory.filter(|_| HAS_ROLE.load(Ordering::SeqCst)) {
            Some(directory) => super::steps::pass(directory, &name.to_string()),
            None => Ok(()),
        }
    }

    pub fn after_step(name: &dyn Display) -> anyhow::Result<()> {
        before_step(&format_args!("{name}!"))
    }

    pub fn before_sending(message: &Message) {
        if matches!(message, Message::Ack(_))
            && let Some(faults) = FAULTS.get()
        {
            std::thread::sleep(faults.ack_delay);
        }
    }

    pub fn replica_delay() -> Duration {
        FAULTS.get().map_or(Duration::ZERO, |faults| faults.replica_delay)
    }

    pub fn prepare_delay() -> Duration {
        FAULTS.get().map_or(Duration::ZERO, |faults| faults.prepare_delay)
    }

    pub fn spoil_memory(memory: &Memory) {
        let mib = FAULTS.get().map_or(0, |faults| faults.spoil_mib);
        for gfn in 0..mib << 8 {
            // There may be less.
            let _ = memory::write_page(memory, gfn, &[0; PAGE_BYTES]);
        }
    }

    pub fn spoil_vcpus(states: &mut [StateBlob]) {
        /// No guest has memory there.
        const NOWHERE: u64 = 0x7eee_dead_0000;
        static DRILLS: AtomicU32 = AtomicU32::new(0);
        if !FAULTS.get().is_some_and(|faults| faults.spoil_vcpus) {
            return;
        }
        let is_odd = DRILLS.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        for blob in states.iter_mut().filter(|blob| blob.kind == StateKind::Vcpu) {
            if let Ok(mut vcpu) = blob.decode::<VcpuState>() {
                let regs = vcpu.regs_mut();
                *if is_odd { &mut regs.rip } else { &mut regs.rsp } = NOWHERE;
                *blob = StateBlob::encode(blob.instance, &vcpu);
            }
        }
    }

    pub fn gather_us() -> Option<u64> {
        FAULTS.get().and_then(|faults| faults.gather_us)
    }

    pub fn guest_waits() -> bool {
        FAULTS.get().is_some_and(|faults| faults.guest_waits)
    }

    pub fn clock_ahead_ms() -> u64 {
        FAULTS.get().map_or(0, |faults| faults.clock_ahead_ms)
    }

    pub fn refuses_state(epoch: u64) -> bool {
        let first = FAULTS.get().and_then(|faults| faults.refuse_state_at);
        first.is_some_and(|first| epoch >= first)
    }

    pub fn cuts_frame(epoch: u64) -> bool {
        FAULTS
            .get()
            .is_some_and(|faults| faults.cut_frame_at == Some(epoch))
    }
}

#[cfg(feature = "faults")]
pub use injected::{
    after_step, before_sending, before_step, clock_ahead_ms, cuts_frame, gather_us, guest_waits, note_role,
    on_this_thread, prepare_delay, refuses_state, replica_delay, set_up, spoil_memory, spoil_vcpus,
};

#[cfg(not(feature = "faults"))]
mod none {
    /// Reads `KEMARI_FAULTS`, on the thread of the side's loop.
    pub fn set_up() -> anyhow::Result<()> {
        match std::env::var_os("KEMARI_FAULTS") {
            None => Ok(()),
            Some(_) => anyhow::bail!("KEMARI_FAULTS is set, but this build contains no faults; unset it"),
        }
    }

    /// Takes the rule out for the mechanism on this thread, too.
    pub fn on_this_thread() {}

    /// The process has a role: what fails from here on is tried again.
    pub fn note_role() {}

    /// A step begins.
    pub fn before_step(_: &dyn std::fmt::Display) -> anyhow::Result<()> {
        Ok(())
    }

    /// A step is done.
    pub fn after_step(_: &dyn std::fmt::Display) -> anyhow::Result<()> {
        Ok(())
    }

    /// Delays an ack.
    pub fn before_sending(_: &kemari_sync::wire::Message) {}

    /// How much longer the secondary's disks take.
    pub fn replica_delay() -> std::time::Duration {
        std::time::Duration::ZERO
    }

    /// How much longer a standby VM takes to build.
    pub fn prepare_delay() -> std::time::Duration {
        std::time::Duration::ZERO
    }

    /// Destroys the committed memory.
    pub fn spoil_memory(_: &kemari_vmm::memory::Memory) {}

    /// Damages the vCPUs of a committed state.
    pub fn spoil_vcpus(_: &mut [kemari_vmm::state::StateBlob]) {}

    /// How long output gathers.
    pub fn gather_us() -> Option<u64> {
        None
    }

    /// Whether the guest stands still for syncs.
    pub fn guest_waits() -> bool {
        false
    }

    /// How much this host's wall clock is ahead.
    pub fn clock_ahead_ms() -> u64 {
        0
    }

    /// Whether KVM is to refuse the state of this sync.
    pub fn refuses_state(_: u64) -> bool {
        false
    }

    /// Whether the link is to be dropped in the middle of this sync.
    pub fn cuts_frame(_: u64) -> bool {
        false
    }
}

#[cfg(not(feature = "faults"))]
pub use none::{
    after_step, before_sending, before_step, clock_ahead_ms, cuts_frame, gather_us, guest_waits, note_role,
    on_this_thread, prepare_delay, refuses_state, replica_delay, set_up, spoil_memory, spoil_vcpus,
};
