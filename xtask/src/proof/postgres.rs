//! PostgreSQL's clients: numbered transactions, and what must be true of a database that lost its host.
//!
//! Every client commits transactions 1, 2, 3, ..., one after the other; each puts rows into two tables. To
//! the [checker](super::checker) each transaction is a register of its own that is written once: a read that
//! sees all of it reads 1, a read that sees nothing of it reads 0, and everything between is impossible.
//!
//! * [`transaction`]: the tables, a transaction's rows, and what a read of them shows;
//! * [`client`]: connections that commit, and read what they and others have committed;
//! * [`health`]: whether the database finds itself sound.

pub mod client;
pub mod health;
pub mod transaction;
