//! libFuzzer's entry: `cargo xtask fuzz` builds and runs it.
//!
//! The environment says what is done: `KEMARI_FUZZ_TARGET` names the target; with `KEMARI_FUZZ_SEEDS` its
//! seeds are written into that directory, and nothing is run. With `KEMARI_FUZZ_LIST` the names of all
//! targets are printed.

#![no_main]

mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::Target;

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    CHOSEN.get_or_init(|| {
        let name = std::env::var("KEMARI_FUZZ_TARGET").unwrap_or_default();
        targets::find(&name).unwrap_or_else(|| {
            eprintln!("KEMARI_FUZZ_TARGET=`{name}` names none of {}", targets::names());
            std::process::exit(2);
        })
    })
}

fn begin() {
    if std::env::var_os("KEMARI_FUZZ_LIST").is_some() {
        println!("{}", targets::names());
        std::process::exit(0);
    }
    let target = chosen();
    let Some(directory) = std::env::var_os("KEMARI_FUZZ_SEEDS") else {
        return;
    };
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let path = Path::new(&directory).join(format!("seed-{number:03}"));
        if let Err(error) = std::fs::write(&path, seed) {
            eprintln!("the seed {} cannot be written: {error}", path.display());
            std::process::exit(2);
        }
    }
    std::process::exit(0);
}

fuzz_target!(init: begin(), |bytes: &[u8]| (chosen().run)(bytes));
