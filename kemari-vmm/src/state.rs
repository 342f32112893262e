//! Saved state: blobs that say what they are, so that an older reader can say what it cannot read.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest encoded state of one component, in bytes.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// What a [`StateBlob`] holds. The numbers go over the wire: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u16)]
pub enum StateKind {
    /// One vCPU's registers; the instance is its index.
    Vcpu = 1,
    /// Interrupt controllers, timer and clock of the virtual machine.
    Vm = 2,
    /// What of a vCPU never changes while it lives (CPUID, TSC frequency); the instance is its index.
    VcpuIdentity = 3,
    /// The 16550 console and its numbered output bytes.
    Serial = 4,
    /// Pending power-off or reset.
    Power = 5,
    /// A virtio device with its transport, queues and request list; the instance is its slot.
    Virtio = 6,
    /// Where the firmware reads what it is told of the machine.
    FirmwareConfiguration = 7,
    /// The fixed registers of ACPI.
    AcpiRegisters = 8,
}

impl StateKind {
    /// The kind with this number on the wire.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Vcpu,
            2 => Self::Vm,
            3 => Self::VcpuIdentity,
            4 => Self::Serial,
            5 => Self::Power,
            6 => Self::Virtio,
            7 => Self::FirmwareConfiguration,
            8 => Self::AcpiRegisters,
            _ => return None,
        })
    }
}

/// The state of one component: what it is, whose, in which version, and its encoded bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateBlob {
    /// What component this is.
    pub kind: StateKind,
    /// Which one of its kind.
    pub instance: u16,
    /// Version of the encoding inside `bytes`.
    pub version: u16,
    /// The component's state, encoded with postcard.
    pub bytes: Vec<u8>,
}

/// A state that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Written by another version of Kemari.
    #[error(
        "the state of {kind:?} {instance} has version {found}, this Kemari reads version {expected}; run the \
         same version on both hosts"
    )]
    Version {
        /// Whose state.
        kind: StateKind,
        /// Which one.
        instance: u16,
        /// Version in the blob.
        found: u16,
        /// The version that this program reads.
        expected: u16,
    },
    /// The bytes do not decode.
    #[error("the state of {kind:?} {instance} does not decode")]
    Decode {
        /// Whose state.
        kind: StateKind,
        /// Which one.
        instance: u16,
        /// Why.
        #[source]
        source: postcard::Error,
    },
    /// A component of the machine has no state, or a state has no component.
    #[error(
        "the state does not fit this machine: {0}; both hosts need the same [machine], [[disk]] and [[net]] \
         sections"
    )]
    Mismatch(String),
}

/// What one kind of component saves, in one encoding.
pub trait State: Serialize + DeserializeOwned {
    /// Whose it is.
    const KIND: StateKind;
    /// Version of the encoding: another one whenever that changes.
    const VERSION: u16;
}

impl StateBlob {
    /// Encodes one component's state.
    pub fn encode<T: State>(instance: u16, state: &T) -> Self {
        Self {
            kind: T::KIND,
            instance,
            version: T::VERSION,
            bytes: postcard::to_allocvec(state).expect("plain data encodes into memory"),
        }
    }

    /// Decodes one component's state.
    pub fn decode<T: State>(&self) -> Result<T, StateError> {
        let (kind, instance) = (self.kind, self.instance);
        if kind != T::KIND {
            let why = format!("{kind:?} {instance} is no {:?}", T::KIND);
            return Err(StateError::Mismatch(why));
        }
        if self.version != T::VERSION {
            return Err(StateError::Version {
                kind,
                instance,
                found: self.version,
                expected: T::VERSION,
            });
        }
        let refuse = |source| StateError::Decode {
            kind,
            instance,
            source,
        };
        match postcard::take_from_bytes(&self.bytes).map_err(refuse)? {
            (state, []) => Ok(state),
            // It is longer than it says, so something else was encoded.
            _ => Err(refuse(postcard::Error::DeserializeBadEncoding)),
        }
    }

    /// The one of this kind and instance among a machine's states.
    pub fn find(states: &[Self], kind: StateKind, instance: u16) -> Result<&Self, StateError> {
        states
            .iter()
            .find(|blob| (blob.kind, blob.instance) == (kind, instance))
            .ok_or_else(|| StateError::Mismatch(format!("{kind:?} {instance} is missing")))
    }

    /// [`StateBlob::find`], decoded.
    pub(crate) fn find_state<T: State>(states: &[Self], instance: u16) -> Result<T, StateError> {
        Self::find(states, T::KIND, instance)?.decode()
    }
}
