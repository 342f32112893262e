//! What a newcomer types: `cargo xtask demo`, `cargo xtask test`, `cargo xtask sim`.

pub mod proof;
