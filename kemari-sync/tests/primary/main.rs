//! The primary's transitions, one by one.

mod adoption;
mod copy;
mod disks;
mod failing;
mod health;
mod pairing;
mod parting;
mod proof;

mod rejoin;
mod stop;
mod support;
mod syncs;
