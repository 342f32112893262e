//! `cargo xtask demo`: a guest loses its host and goes on elsewhere, before your eyes.
//!
//! A run: bring up two hosts, start the VM on one, protect it by the other, let clients work, cut, let them go on,
//! stop them, read everything back, judge. Where and how the hosts live is behind [`pair::Pair`]; [`run`] is the same
//! for all.

pub mod config;
pub mod emulated;
pub mod local;
pub mod options;
pub mod pair;
pub mod result;
pub mod run;

use anyhow::{Result, ensure};

use crate::packages;
use crate::tools;
use crate::ui::Ui;
use options::{Guest, Hosts, Options};
use pair::{Image, Place};
use result::Records;

/// Runs the demo as often as asked for. Whether every run was ok; an error means that the demo itself could not go on.
pub fn demo(options: &Options) -> Result<bool> {
    let mut ui = Ui::default();
    let mut place = prepare(options, &ui)?;
    let mut records = Records::create(&tools::target_dir().join("demo"))?;
    let seed = options.seed.unwrap_or_else(rand::random);
    let mut all_ok = true;
    for number in 0..options.repeat {
        if options.repeat > 1 {
            ui.set_prefix(format!("run {} of {}: ", number + 1, options.repeat));
        }
        let seed = seed.wrapping_add(u64::from(number));
        let report = run::run(place.as_mut(), options, seed, &ui)?;
        all_ok &= report.result.ok;
        records.add(number, seed, &report)?;
        report.print(seed);
    }
    records.summary(options.repeat);
    Ok(all_ok)
}

fn prepare(options: &Options, ui: &Ui) -> Result<Box<dyn Place>> {
    ensure!(options.repeat > 0, "--repeat must be at least 1");
    ui.step("packages", |_| {
        packages::ensure_installed(&[packages::IP, packages::ETCD])
    })?;
    let features: &[&str] = if options.fault.is_some() { &["faults"] } else { &[] };
    let build = || ui.step("building kemari", |_| tools::build_kemari(features));
    let linux = || {
        ui.step("the guest: Debian's kernel and Redis", |_| {
            Ok(Image::linux(&lab::guest_image()?))
        })
    };
    match (options.guest, options.hosts) {
        (Guest::Bare, Hosts::Auto | Hosts::Local) => {
            let kernel = ui.step("building the bare guest", |_| tools::build_bare_guest())?;
            Ok(Box::new(local::LocalPlace::new(build()?, Image::bare(kernel))?))
        }
        (Guest::Linux, Hosts::Local) => Ok(Box::new(local::LocalPlace::new(build()?, linux()?)?)),
        (guest, Hosts::Auto | Hosts::Lab) => {
            ui.step("packages for emulated hosts", |_| Ok(lab::ensure_packages()?))?;
            let program = ui.step("building kemari for emulated hosts", |_| {
                Ok(lab::build::static_binary("kemari", "kemari", features, false)?)
            })?;
            let image = match guest {
                Guest::Linux => linux()?,
                Guest::Bare => {
                    Image::bare(ui.step("building the bare guest", |_| tools::build_bare_guest())?)
                }
            };
            let boot = |_: &_| emulated::EmulatedPlace::new(program, image);
            Ok(Box::new(ui.step("two emulated hosts boot", boot)?))
        }
    }
}
