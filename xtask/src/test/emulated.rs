//! Tests that need KVM, on a machine that has none: they run inside an emulated host.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Host, Lab, LabConfig};

use super::counts::{Count, Place, Tally};
use super::programs::{Program, judge};
use crate::packages;
use crate::tools::build_bare_guest;

/// A test program may take so long inside an emulated host.
const TIME_MAX: Duration = Duration::from_secs(10 * 60);
/// Where a test program lies in the host.
const PROGRAM: &str = "/test-program";

/// Where tests that need KVM run: here if /dev/kvm can be opened.
pub(super) fn kvm_place() -> Place {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Place::Here,
        Err(_) => Place::Lab,
    }
}

/// Runs programs inside an emulated host.
pub(super) fn run_inside(tally: &mut Tally, programs: &[Program]) {
    let mut packages: Vec<&str> = programs.iter().map(|program| program.package.as_str()).collect();
    packages.dedup();
    let mut built = Vec::new();
    tally.stage(Place::Lab, "tests that need KVM: build", || {
        for package in packages {
            built.extend(lab::build::static_tests(package, &[])?);
        }
        Ok(())
    });
    let mut lab = None;
    tally.stage(Place::Lab, "tests that need KVM: an emulated host", || {
        lab = Some(Lab::start(LabConfig {
            hosts: 1,
            ..LabConfig::default()
        })?);
        Ok(())
    });
    let Some(lab) = lab else { return };
    for program in programs {
        tally.programs(Place::Lab, &program.to_string(), || {
            let is_it = |path: &&PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.rsplit_once('-')
                    .is_some_and(|(stem, _)| stem == program.stem())
            };
            let path = built
                .iter()
                .find(is_it)
                .context("cargo built no static program for it")?;
            run_in(lab.host(0), program, path)
        });
    }
}

fn run_in(host: &Host, program: &Program, path: &Path) -> Result<Count> {
    // Tests find the bare guest where it was built.
    let guest = build_bare_guest()?;
    let guest_directory = guest.parent().unwrap_or(Path::new("/")).display();
    host.sh(&format!(
        "mkdir -p '{guest_directory}' '{}'",
        program.directory.display()
    ))?;
    host.put(&guest, &guest.to_string_lossy())?;
    // And firmware where Debian has it.
    let firmware = Path::new(packages::SEABIOS.0);
    let firmware_directory = firmware.parent().unwrap_or(Path::new("/")).display();
    host.sh(&format!("mkdir -p '{firmware_directory}'"))?;
    host.put(firmware, packages::SEABIOS.0)?;
    host.put(path, PROGRAM)?;
    let line = format!(
        "cd '{}' && exec {PROGRAM} --test-threads=1 2>&1",
        program.directory.display()
    );
    let output = host.exec_with(&["/bin/sh", "-c", &line], &[], TIME_MAX)?;
    judge(&output.stdout, Ok(output.status == 0))
}
