//! The mechanism of Kemari: epochs, staging, terms and consent, as state machines without I/O.

mod record;

pub use record::{
    Arbiter, ArbiterAnswer, ArbiterRequest, Epoch, Incarnation, NAME_BYTES_MAX, Phase, Record, Term,
};
