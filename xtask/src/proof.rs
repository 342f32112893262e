//! What proves that a takeover lost nothing: clients that record everything they saw,
//! and a checker that judges it.
//!
//! * [`resp`]: the Redis protocol, as far as the clients need it;
//! * [`load`]: what the clients do, and the values they write;
//! * [`client`]: connections that never reconnect, recording every request;
//! * [`clients`]: all of that together, for tests;
//! * [`history`]: the record;
//! * [`postgres`]: the same with PostgreSQL;
//! * [`checker`]: is there one order of the operations that explains every answer?

pub mod checker;
pub mod client;
pub mod clients;
mod connection;
pub mod history;
pub mod load;
pub mod postgres;
pub mod resp;
