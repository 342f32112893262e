//! What a saved vCPU is about to do.

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE};

use super::{VcpuState, msr};

const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

const MASKED: u32 = 1 << 16;
const MODE_SHIFT: u32 = 17;
const PERIODIC: u32 = 1;
const DEADLINE: u32 = 2;

impl VcpuState {
    /// Whether it executes instructions as soon as it may: it neither waits for an interrupt nor to be
    /// started.
    pub(crate) fn is_runnable(&self) -> bool {
        self.mp_state == KVM_MP_STATE_RUNNABLE
    }

    /// Whether the guest has started it.
    pub(crate) fn is_started(&self) -> bool {
        matches!(self.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED)
    }

    /// In how many nanoseconds its local APIC's timer is to fire, if it is armed. A frequency of 0 kHz is
    /// none that a vCPU can have.
    pub(crate) fn timer_due_ns(&self, tsc_khz: u32) -> Option<u64> {
        let entry = self.apic_register(LVT_TIMER);
        if entry & MASKED != 0 {
            return None;
        }
        match (entry >> MODE_SHIFT) & 0b11 {
            DEADLINE => {
                let value = |wanted| {
                    self.msrs
                        .iter()
                        .find(|(index, _)| *index == wanted)
                        .map(|(_, value)| *value)
                };
                let deadline = value(msr::TSC_DEADLINE).filter(|deadline| *deadline != 0)?;
                let ticks = deadline.saturating_sub(value(msr::TSC)?);
                Some(
                    (u128::from(ticks) * 1_000_000 / u128::from(tsc_khz.max(1)))
                        .try_into()
                        .unwrap_or(u64::MAX),
                )
            }
            mode => {
                // A timer that has fired once stands at 0; a periodic one may just have been loaded again.
                let count = match (self.apic_register(CURRENT_COUNT), mode) {
                    (0, PERIODIC) => self.apic_register(INITIAL_COUNT),
                    (count, _) => count,
                };
                // KVM's APIC counts nanoseconds.
                (count != 0).then(|| u64::from(count) * self.divider())
            }
        }
    }

    fn divider(&self) -> u64 {
        let bits = self.apic_register(DIVIDE);
        let power = ((bits & 0b11) | ((bits >> 1) & 0b100)) + 1;
        1 << (power & 0b111)
    }

    fn apic_register(&self, offset: usize) -> u32 {
        let bytes = &self.lapic.regs[offset..offset + 4];
        u32::from_le_bytes(std::array::from_fn(|index| bytes[index] as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(registers: &[(usize, u32)]) -> VcpuState {
        let mut state = VcpuState::default();
        for (offset, value) in registers {
            for (index, byte) in value.to_le_bytes().into_iter().enumerate() {
                state.lapic.regs[offset + index] = byte as _;
            }
        }
        state
    }

    #[test]
    fn an_armed_timer_is_due_and_no_other() {
        let counting = |mode: u32, initial, current, divide| {
            with(&[
                (LVT_TIMER, 0x40 | mode << MODE_SHIFT),
                (INITIAL_COUNT, initial),
                (CURRENT_COUNT, current),
                (DIVIDE, divide),
            ])
            .timer_due_ns(1)
        };
        // Divided by 1, 2, 16 and 128.
        assert_eq!(counting(0, 1000, 600, 0b1011), Some(600));
        assert_eq!(counting(0, 1000, 600, 0b0000), Some(1200));
        assert_eq!(counting(0, 1000, 600, 0b0011), Some(9600));
        assert_eq!(counting(0, 1000, 600, 0b1010), Some(76_800));
        assert_eq!(counting(0, 1000, 0, 0b1011), None);
        assert_eq!(counting(PERIODIC, 1000, 0, 0b1011), Some(1000));
        let masked = with(&[(LVT_TIMER, MASKED), (CURRENT_COUNT, 5)]);
        assert_eq!(masked.timer_due_ns(1), None);
    }

    #[test]
    fn a_deadline_is_due_in_the_time_that_the_counter_takes_to_it() {
        let mut state = with(&[(LVT_TIMER, DEADLINE << MODE_SHIFT)]);
        for (deadline, due_ns) in [(5_000, Some(2_000_000_000)), (0, None), (500, Some(0))] {
            state.msrs = vec![(msr::TSC, 1_000), (msr::TSC_DEADLINE, deadline)];
            assert_eq!(state.timer_due_ns(2), due_ns);
        }
        assert!(state.timer_due_ns(0).is_some());
    }
}
