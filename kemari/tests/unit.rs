//! The unit for systemd, as systemd itself sees it. Where there is no systemd there is nothing to see.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that `systemd-analyze security` may say of the unit: 5.0, in tenths.
const EXPOSURE_MAX: &str = "50";

/// A copy of the unit whose program is there.
fn unit(directory: &Path) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/kemari@.service");
    let text = fs::read_to_string(path).expect("the unit");
    let program = env!("CARGO_BIN_EXE_kemari");
    let copy = directory.join("kemari@db.service");
    fs::write(&copy, text.replace("/usr/bin/kemari", program)).expect("a copy");
    copy
}

#[test]
fn systemd_takes_the_unit_and_finds_it_confined() {
    let directory = tempfile::tempdir().expect("a directory");
    let unit = unit(directory.path());
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    for words in [
        &["verify", "--man=no"][..],
        &["security", "--offline=true", "--no-pager", &threshold],
    ] {
        let asked = Command::new("systemd-analyze").args(words).arg(&unit).output();
        if let Err(error) = &asked
            && error.kind() == ErrorKind::NotFound
        {
            return eprintln!("there is no systemd-analyze: the unit was not looked at");
        }
        let answer = asked.expect("it can be started");
        let said = [answer.stdout, answer.stderr].concat();
        assert!(
            answer.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&said)
        );
    }
}
