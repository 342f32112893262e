//! Steps that a test lists, and has fail.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

/// The steps that were passed, a line each.
const PASSED: &str = "passed";
/// Those that are to fail, a line each.
const FAIL: &str = "fail";

static TURN: Mutex<()> = Mutex::new(());

/// A step is passed. It fails if the file says so, and its line goes: the next attempt succeeds,
/// unless it has another.
pub fn pass(directory: &Path, name: &str) -> anyhow::Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut passed = File::options()
        .create(true)
        .append(true)
        .open(directory.join(PASSED))?;
    writeln!(passed, "{name}")?;
    let path = directory.join(FAIL);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut left: Vec<&str> = text.lines().collect();
    let Some(place) = left.iter().position(|line| *line == name) else {
        return Ok(());
    };
    left.remove(place);
    fs::write(
        &path,
        left.iter().map(|line| format!("{line}\n")).collect::<String>(),
    )?;
    bail!("the step `{name}` was to fail, for a test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_fails_as_often_as_it_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FAIL), "b\na\na\n").unwrap();
        let pass = |name| pass(directory.path(), name).is_ok();
        assert_eq!([pass("a"), pass("a"), pass("a")], [false, false, true]);
        assert_eq!([pass("c"), pass("b"), pass("b")], [true, false, true]);
        let passed = fs::read_to_string(directory.path().join(PASSED)).unwrap();
        assert_eq!(passed, "a\na\na\nc\nb\nb\n");
    }
}
