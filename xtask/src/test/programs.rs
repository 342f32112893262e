//! Test programs: built by cargo, run by us.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::counts::{Count, Place};
use crate::tools::{self, cargo, output_of, tail, target_dir, wait_for};

/// A test program may take so long here, ...
const TIME_MAX: Duration = Duration::from_secs(12 * 60);
/// ... and so long with emulated hosts.
const LAB_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// Lines of the output of a failed program that are shown.
const OUTPUT_LINES_MAX: usize = 200;

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The package.
    pub package: String,
    /// The target: the crate's own name for unit tests, the file's name for integration tests.
    pub target: String,
    /// "lib", "bin" or "test".
    pub kind: String,
    /// The directory of the package, in which it runs.
    pub directory: PathBuf,
    /// The program.
    pub path: PathBuf,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.as_str() {
            "test" => write!(f, "{}: tests/{}", self.package, self.target),
            kind => write!(f, "{}: unit tests ({kind} {})", self.package, self.target),
        }
    }
}

impl Program {
    /// Whether it uses /dev/kvm: those of the machine but for its images' formats,
    /// and integration tests named `kvm*`.
    pub(crate) fn needs_kvm(&self) -> bool {
        self.package == "kemari-vmm" && !self.is_test("formats") || self.is_test("kvm")
    }

    /// Whether it needs the KVM of this machine: integration tests named `scenarios*`, which need the
    /// namespaces too, and more speed than an emulated host has; and `corpus`, which needs the files of
    /// `fuzz/`.
    pub(crate) fn needs_local_kvm(&self) -> bool {
        self.is_test("scenarios") || self.is_test("corpus")
    }

    /// Where it runs, if tests that need KVM run at `kvm`.
    pub(crate) fn place(&self, kvm: Place) -> Place {
        match () {
            () if self.needs_kvm() => kvm,
            () if self.needs_lab() => Place::Lab,
            () => Place::Here,
        }
    }

    /// Whether it starts emulated machines: the lab's integration tests, and those named `lab*`.
    fn needs_lab(&self) -> bool {
        self.is_test("lab") || self.package == "lab" && self.kind == "test"
    }

    /// The beginning of the program's file name, before cargo's hash.
    pub(crate) fn stem(&self) -> String {
        self.target.replace('-', "_")
    }

    fn is_test(&self, prefix: &str) -> bool {
        self.kind == "test" && self.target.starts_with(prefix)
    }

    /// Runs it on this machine.
    pub(crate) fn run(&self) -> Result<Count> {
        let limit = if self.is_test("lab") {
            LAB_TIME_MAX
        } else {
            TIME_MAX
        };
        let mut command = Command::new(&self.path);
        command
            .current_dir(&self.directory)
            .env("CARGO_MANIFEST_DIR", &self.directory);
        run_harness(command, limit)
    }
}

/// Builds the test programs of some packages; of all if none is named.
pub(super) fn build(packages: &[String]) -> Result<Vec<Program>> {
    let mut command = cargo();
    command.args([
        "test",
        "--no-run",
        "--all-features",
        "--message-format=json-render-diagnostics",
    ]);
    if packages.is_empty() {
        command.arg("--workspace");
    }
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    parse_messages(&output_of(&mut command)?)
}

/// The unit tests of the bare guest's parts that run anywhere.
pub(super) fn bare_guest_tests() -> Result<Count> {
    let mut command = cargo();
    command
        .current_dir(tools::root().join("guests/bare"))
        .env_remove("CARGO_TARGET_DIR");
    command.args(["test", "--quiet", "--lib"]);
    run_harness(command, TIME_MAX)
}

/// The examples in the documentation.
pub(super) fn doc_tests() -> Result<Count> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--workspace", "--doc"]);
    run_harness(command, TIME_MAX)
}

fn run_harness(mut command: Command, limit: Duration) -> Result<Count> {
    let log = target_dir().join("test-output.log");
    let file = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let shown = tools::show(&command);
    let mut child = command
        .spawn()
        .with_context(|| format!("`{shown}` cannot be started"))?;
    let ended = wait_for("the end of the tests", limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let output = std::fs::read(&log)?;
    judge(
        &String::from_utf8_lossy(&output),
        ended.map(|status| status.success()),
    )
}

/// Counts what a harness printed, and shows it if a test failed; what was not run in any case.
pub(super) fn judge(output: &str, success: Result<bool>) -> Result<Count> {
    let end = || tail(output, OUTPUT_LINES_MAX);
    not_run(output).for_each(|line| println!("{line}"));
    match (success, Count::of_harness(output)) {
        (Ok(true), Some(count)) if count.failed == 0 => Ok(count),
        (Ok(_), Some(count)) if count.failed > 0 => {
            println!("{}", end());
            Ok(count)
        }
        (Ok(_), _) => bail!("the test program died without a summary:\n{}", end()),
        (Err(e), _) => Err(e.context(format!(
            "the test program had to be ended; it printed:\n{}",
            end()
        ))),
    }
}

/// What tests said of themselves that this machine cannot run. The harness may have begun the line.
fn not_run(output: &str) -> impl Iterator<Item = &str> {
    output
        .lines()
        .filter_map(|line| Some(&line[line.find("NOT RUN: ")?..]))
}

/// A line of cargo's output, as far as it is of interest here.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    manifest_path: Option<PathBuf>,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

fn parse_messages(json_lines: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in json_lines.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("cargo's messages are not as expected")?;
        let Message {
            executable: Some(path),
            manifest_path: Some(manifest),
            target: Some(target),
            profile,
        } = message
        else {
            continue;
        };
        if !profile.is_some_and(|profile| profile.test) {
            continue;
        }
        let directory = manifest.parent().unwrap_or(Path::new("/")).to_owned();
        let package = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kind = target.kind.into_iter().next().unwrap_or_default();
        programs.push(Program {
            package,
            target: target.name,
            kind,
            directory,
            path,
        });
    }
    programs.sort_by(|a, b| a.path.cmp(&b.path));
    programs.sort_by_key(|program| program.to_string());
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(package: &str, kind: &str, target: &str) -> Program {
        Program {
            package: package.into(),
            target: target.into(),
            kind: kind.into(),
            directory: format!("/r/{package}").into(),
            path: "/r/target/x".into(),
        }
    }

    #[test]
    fn each_program_has_its_place() {
        let cases = [
            (program("kemari-vmm", "lib", "kemari_vmm"), Place::Lab),
            (program("kemari", "test", "kvm_takeover"), Place::Lab),
            (program("kemari", "test", "cli"), Place::Here),
            (program("kemari", "test", "lab_linux"), Place::Lab),
            (program("lab", "test", "guest"), Place::Lab),
            (program("lab", "lib", "lab"), Place::Here),
        ];
        for (program, without_kvm) in cases {
            assert_eq!(program.place(Place::Lab), without_kvm, "{program}");
        }
        assert_eq!(
            program("kemari-vmm", "lib", "kemari_vmm").place(Place::Here),
            Place::Here
        );
        assert_eq!(program("lab", "test", "lab").place(Place::Here), Place::Lab);
    }

    #[test]
    fn scenarios_run_where_their_namespaces_are() {
        let scenarios = program("kemari", "test", "scenarios");
        assert!(scenarios.needs_local_kvm() && !scenarios.needs_kvm());
        assert_eq!(scenarios.place(Place::Here), Place::Here);
        assert!(program("kemari", "test", "corpus").needs_local_kvm());
        assert!(!program("kemari", "test", "cli").needs_local_kvm());
    }

    #[test]
    fn programs_are_found_in_the_messages_of_cargo() {
        let line = |test: bool, executable: &str| {
            let target = r#""target":{"name":"lab","kind":["test"]}"#;
            let built = format!(r#""profile":{{"test":{test}}},"executable":{executable}"#);
            let manifest = r#""manifest_path":"/r/lab/Cargo.toml""#;
            format!(r#"{{"reason":"compiler-artifact",{manifest},{target},{built}}}"#)
        };
        let text = [
            line(true, r#""/r/target/x""#),
            line(false, r#""/r/target/y""#),
            line(true, "null"),
            "{}".into(),
        ];
        assert_eq!(
            parse_messages(&text.join("\n")).unwrap(),
            [program("lab", "test", "lab")]
        );
    }

    #[test]
    fn a_program_without_a_summary_has_failed() {
        assert!(judge("", Ok(true)).is_err());
        assert!(
            judge("test result: ok. 1 passed; 0 failed; 0 ignored", Ok(false)).is_err(),
            "died after its summary"
        );
        let count = judge("test result: FAILED. 1 passed; 2 failed; 0 ignored", Ok(false)).unwrap();
        assert_eq!(count, Count { passed: 1, failed: 2 });
    }

    #[test]
    fn what_was_not_run_is_told() {
        let output = "test one ... ok\ntest other ... NOT RUN: it needs a moon\nok\n";
        let told: Vec<&str> = not_run(output).collect();
        assert_eq!(told, ["NOT RUN: it needs a moon"]);
    }
}
