//! What a newcomer types: `cargo xtask demo`, `cargo xtask test`, `cargo xtask sim`, `cargo xtask soak`,
//! `cargo xtask bench`, `cargo xtask disks`, `cargo xtask weather`, `cargo xtask fuzz`,
//! `cargo xtask mutants`.

pub mod bench;
pub mod boots;
pub mod demo;
pub mod disks;
mod fuse;
pub mod fuzz;
pub mod hostile;
pub mod mutants;
pub mod own_directory;
pub mod own_file;
pub mod packages;
pub mod proof;
pub mod rehearsal;
pub mod sim;
pub mod soak;
pub mod test;
pub mod tools;
pub mod ui;
pub mod weather;
