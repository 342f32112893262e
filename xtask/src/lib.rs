//! What a newcomer types: `cargo xtask demo`, `cargo xtask test`, `cargo xtask sim`.

pub mod demo;
pub mod packages;
pub mod proof;
pub mod sim;
pub mod test;
pub mod tools;
pub mod ui;
