//! `cargo xtask demo`: a guest loses its host and goes on elsewhere, before your eyes.
//!
//! A run: bring up two hosts, start the VM on one, protect it by the other, let clients work, cut, let them
//! go on, stop them, read everything back, stop the VM, look at its disk, judge. Where and how the hosts live
//! is behind [`pair::Pair`]; [`run`] is the same for all.

pub mod config;
pub mod emulated;
pub mod ending;
mod forgetful;
pub mod local;
pub mod options;
pub mod pair;
pub mod result;
pub mod run;

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kemari_vmm::arch::preflight::{self, KvmAbility};

use crate::packages;
use crate::tools;
use crate::ui::Ui;
use options::{Guest, Hosts, Options};
use pair::{Image, Place};
use result::Records;
use run::Session;

/// How long GRUB counts down, in seconds.
const COUNTDOWN_S: u32 = 1;

/// What all hosts need.
const PACKAGES: [packages::Need; 2] = [packages::IP, packages::ETCD];

/// Runs the demo as often as asked for. Whether every run was ok;
/// an error means that the demo itself could not go on.
pub fn demo(options: &Options) -> Result<bool> {
    options.validate()?;
    let _lock = lock()?;
    let mut ui = Ui::default();
    let mut place = prepare(options, &ui)?;
    let mut records = Records::create(&tools::target_dir().join("demo"))?;
    let first_seed = options.seed.unwrap_or_else(rand::random);
    let mut all_ok = true;
    let mut number = 0;
    while number < options.repeat {
        let seed_of = |number: u32| first_seed.wrapping_add(u64::from(number));
        let prefix = |number| match options.repeat {
            1 => String::new(),
            runs => format!("run {} of {runs}: ", number + 1),
        };
        ui.set_prefix(prefix(number));
        let mut session = Session::new(place.as_mut(), options, seed_of(number), &ui)?;
        // With one VM until it fails, or with a fresh one each time.
        loop {
            ui.set_prefix(prefix(number));
            let seed = seed_of(number);
            let last = !options.same_vm || number + 1 == options.repeat;
            let report = session.run(seed, last, &ui);
            let ok = report.result.ok;
            all_ok &= ok;
            records.add(number, seed, options, &report)?;
            report.print(seed);
            number += 1;
            if !ok {
                keep_logs(seed);
            }
            if last || !ok {
                break;
            }
        }
    }
    records.summary(options.repeat);
    Ok(all_ok)
}

/// Makes sure that no other demo uses the same directory at the same time.
pub(crate) fn lock() -> Result<File> {
    let path = tools::target_dir().join("demo.lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => bail!(
            "another demo is running ({} is locked): wait until it has ended",
            path.display()
        ),
    }
}

/// Keeps what a run that was not ok has left.
pub(crate) fn keep_logs(seed: u64) {
    let kept = tools::target_dir().join(format!("demo/failed-{seed}"));
    let _ = fs::remove_dir_all(&kept);
    if fs::rename(pair::run_dir(), &kept).is_ok() {
        println!("  logs in {}", kept.display());
    }
}

/// Builds and makes what a place for the VM of `options` needs, and makes it.
pub(crate) fn prepare(options: &Options, ui: &Ui) -> Result<Box<dyn Place>> {
    let local = match options.hosts {
        Hosts::Local => true,
        Hosts::Lab => false,
        Hosts::Auto => kvm_runs(options.guest, ui),
    };
    let of_program = options.fault.and_then(options::Fault::environment);
    let features: &[&str] = if of_program.is_some() { &["faults"] } else { &[] };
    if local {
        ui.step("packages", |_| packages::ensure_installed(&PACKAGES))?;
        let program = ui.step("building kemari", |_| {
            keep(tools::build_kemari(features)?, "demo")
        })?;
        return Ok(Box::new(local::LocalPlace::new(program, image(options, ui)?)?));
    }
    let program = program_for_emulated_hosts(features, ui)?;
    let image = image(options, ui)?;
    let boot =
        |_: &_| emulated::EmulatedPlace::new(program, image, options, options.cut == options::Cut::Both);
    Ok(Box::new(ui.step("two emulated hosts boot", boot)?))
}

/// Builds the program for emulated hosts, and installs what they need.
pub(crate) fn program_for_emulated_hosts(features: &[&str], ui: &Ui) -> Result<PathBuf> {
    ui.step("packages", |_| {
        packages::ensure_installed(&PACKAGES)?;
        Ok(lab::ensure_packages()?)
    })?;
    ui.step("building kemari for emulated hosts", |_| {
        keep(
            lab::build::static_binary("kemari", "kemari", features, false)?,
            "demo",
        )
    })
}

/// Takes a copy of a program: whoever builds in the meantime must not change what is running here.
pub(crate) fn keep(program: PathBuf, directory: &str) -> Result<PathBuf> {
    let directory = tools::target_dir().join(directory);
    fs::create_dir_all(&directory)?;
    let copy = directory.join("kemari");
    let _ = fs::remove_file(&copy);
    fs::copy(program, &copy).with_context(|| format!("{} cannot be written", copy.display()))?;
    Ok(copy)
}

fn image(options: &Options, ui: &Ui) -> Result<Image> {
    let mut image = match options.guest {
        Guest::Bare => Image::bare(ui.step("building the bare guest", |_| tools::build_bare_guest())?),
        Guest::Linux => {
            let service = options.linux_service();
            ui.step(&format!("the guest: Debian's kernel and {service}"), |_| {
                lab::ensure_packages()?;
                let setting = options.fault.map_or("", options::Fault::guest_setting);
                Ok::<_, anyhow::Error>(Image::linux(&lab::guest_image(service)?, setting))
            })?
        }
        Guest::LinuxDisk => {
            let service = options.linux_service();
            ui.step(&format!("the guest: a disk with GRUB and {service}"), |_| {
                lab::ensure_packages()?;
                packages::ensure_installed(&[packages::SEABIOS])?;
                let setting = options.fault.map_or("", options::Fault::guest_setting);
                let arguments = format!("{}{setting}", pair::linux_address());
                let disk = lab::boot_disk(service, COUNTDOWN_S, &arguments)?;
                Ok::<_, anyhow::Error>(Image::linux_disk(&disk))
            })?
        }
    };
    image.vcpus = options.vcpus;
    Ok(image)
}

/// Whether this machine's KVM runs the guest, by measuring: some run privileged code far too slowly,
/// or not at all.
fn kvm_runs(guest: Guest, ui: &Ui) -> bool {
    let found = preflight::open().and_then(|kvm| preflight::measure(&kvm));
    let (runs, why) = match found {
        Ok(found) if found.ability == KvmAbility::Full => {
            (true, "this machine's KVM runs every guest".into())
        }
        Ok(_) if guest == Guest::Bare => (true, "this machine's KVM runs the bare guest".to_owned()),
        Ok(_) => (false, "this machine's KVM cannot run Linux".into()),
        Err(e) => (false, e.to_string()),
    };
    ui.say(&format!(
        "  · {why}: hosts are {}",
        if runs { "namespaces on it" } else { "emulated" }
    ));
    runs
}
