//! The rules of the house that can be read off the tree: widths and lengths (here), names in the documents
//! (`names`), manifests and licences (`manifests`).
//!
//! Each finding is a line: the place, and a sentence. What may stay as it is stands in a list with its
//! reason; an entry that is needed no more is a finding, too.

mod manifests;
mod names;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tools::{output_of, root};

/// Most columns of a line, comments included: `max_width` of rustfmt.toml, which looks at neither comments
/// nor strings.
const COLUMNS_MAX: usize = 110;
/// Most lines of a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Most lines of a source file.
const FILE_LINES_MAX: usize = 500;

/// Functions that may be longer, of how many lines at most, and why.
const LONG_FUNCTIONS: [(&str, &str, usize, &str); 11] = [
    ("kemari-sync/src/sim/chaos.rs", "strike", 117, "a row a blow"),
    (
        "kemari-sync/src/sim/primary_driver.rs",
        "do_primary",
        95,
        "a row an action",
    ),
    (
        "kemari-sync/src/sim/secondary_driver.rs",
        "do_secondary",
        74,
        "a row an action",
    ),
    ("kemari-sync/tests/wire.rs", "messages", 77, "a row a message"),
    (
        "kemari-vmm/tests/machine/dirty.rs",
        "shadow_follows",
        88,
        "one story of a guest",
    ),
    (
        "kemari-vmm/tests/machine/state.rs",
        "a_state_of_another_kind_version_or_machine_is_refused_with_the_reason",
        81,
        "a row a refusal",
    ),
    ("kemari/src/cli/commands.rs", "perform", 97, "a row a command"),
    (
        "kemari/src/side/capture_test.rs",
        "run",
        149,
        "one run, told from its begin to its end",
    ),
    (
        "kemari/tests/scenarios/disk_status.rs",
        "both_sides_tell_how_a_replicated_disk_stands",
        80,
        "one story of a pair",
    ),
    ("lab/src/host.rs", "start_qemu", 87, "one command line"),
    ("xtask/src/soak/cut.rs", "apply", 84, "a row a cut"),
];

/// Files that may be longer, of how many lines at most, and why.
const LONG_FILES: [(&str, usize, &str); 8] = [
    (
        "kemari-sync/tests/switchover.rs",
        549,
        "the transitions of one change of roles",
    ),
    (
        "kemari-vmm/src/arch/on_kvm_test.rs",
        606,
        "one guest, on every KVM",
    ),
    (
        "kemari-vmm/src/boot/boot_test.rs",
        532,
        "what each way to boot puts where",
    ),
    (
        "kemari-vmm/tests/formats.rs",
        559,
        "one set of images, by every tool",
    ),
    ("kemari/tests/cli.rs", 540, "a test a command"),
    (
        "kemari/tests/link.rs",
        521,
        "one link, and each way in which it ends",
    ),
    (
        "kemari/tests/scenarios/support/scene.rs",
        572,
        "one type: what a scenario does to a pair",
    ),
    (
        "xtask/src/demo/emulated.rs",
        584,
        "one type: a pair in emulated hosts",
    ),
];

/// The files that belong to the repository, with paths from its root.
struct Tree {
    paths: Vec<String>,
}

impl Tree {
    fn read() -> Result<Self> {
        let mut git = Command::new("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        let listed = output_of(git.current_dir(root()))?;
        let is_there = |path: &&str| root().join(path).exists();
        let paths = listed.lines().filter(is_there).map(str::to_owned).collect();
        Ok(Self { paths })
    }

    /// The paths that end so.
    fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = &'a str> {
        let paths = self.paths.iter().map(String::as_str);
        paths.filter(move |path| path.ends_with(end))
    }

    fn text(&self, path: &str) -> Result<String> {
        fs::read_to_string(root().join(path)).with_context(|| format!("{path} cannot be read"))
    }
}

/// Checks the whole tree.
pub(super) fn check() -> Result<()> {
    let tree = Tree::read()?;
    let mut wrong = Vec::new();
    let mut unneeded: Vec<(String, usize)> = LONG_FUNCTIONS
        .iter()
        .map(|(path, name, lines, _)| (format!("{path}: `{name}`"), *lines))
        .chain(
            LONG_FILES
                .iter()
                .map(|(path, lines, _)| ((*path).to_owned(), *lines)),
        )
        .collect();
    for path in tree.ending(".rs") {
        for finding in source(&tree.text(path)?) {
            let entry = match &finding.of {
                Of::Line => None,
                Of::Function(name, lines) => Some((format!("{path}: `{name}`"), *lines)),
                Of::File(lines) => Some((path.to_owned(), *lines)),
            };
            let listed = entry.and_then(|(place, lines)| {
                let at = unneeded
                    .iter()
                    .position(|(listed, most)| *listed == place && lines <= *most);
                at.map(|at| unneeded.swap_remove(at))
            });
            if listed.is_none() {
                wrong.push(format!("{path}:{}: {}", finding.line, finding.what));
            }
        }
    }
    wrong.extend(unneeded.iter().map(|(place, lines)| {
        format!("{place} is short enough, or longer than {lines} lines: correct the list in tidy.rs")
    }));
    wrong.extend(names::check(&tree)?);
    wrong.extend(manifests::check(&tree)?);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Something in a source file that is against a rule.
#[derive(Debug)]
struct Finding {
    line: usize,
    of: Of,
    what: String,
}

/// What is too wide or too long, and of how many lines it is.
#[derive(Debug)]
enum Of {
    Line,
    Function(String, usize),
    File(usize),
}

/// Looks at the widths and lengths of one source file, which rustfmt has been through: what begins with some
/// indentation ends at the first line that closes with the same.
fn source(text: &str) -> Vec<Finding> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in (1..).zip(&lines) {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            found.push(Finding {
                line: number,
                of: Of::Line,
                what: format!("the line has {columns} columns, and {COLUMNS_MAX} are allowed"),
            });
        }
        let Some(name) = function(line) else { continue };
        let indentation = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indentation}}}");
        // A signature without a body ends in a semicolon, before any line that closes.
        let rest = &lines[number - 1..];
        let closes = |line: &&str| {
            let closed = line
                .strip_prefix(indentation)
                .filter(|rest| rest.starts_with(')'));
            **line == end || closed.is_some_and(|rest| rest.ends_with(';'))
        };
        let length = rest.iter().position(closes).map_or(1, |at| at + 1);
        if !line.ends_with(['}', ';']) && length > FUNCTION_LINES_MAX {
            found.push(Finding {
                line: number,
                what: format!("`{name}` has {length} lines, and a function has at most {FUNCTION_LINES_MAX}"),
                of: Of::Function(name, length),
            });
        }
    }
    if lines.len() > FILE_LINES_MAX {
        found.push(Finding {
            line: FILE_LINES_MAX + 1,
            of: Of::File(lines.len()),
            what: format!(
                "the file has {} lines, and at most {FILE_LINES_MAX} are allowed",
                lines.len()
            ),
        });
    }
    found
}

/// The name of the function that begins in this line.
fn function(line: &str) -> Option<String> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let is_qualifier = |word: &str| {
        let word = word.split('(').next().unwrap_or_default();
        ["pub", "const", "async", "unsafe", "extern", "\"C\"", "default"].contains(&word)
    };
    // `pub(in some::module)` has a space within.
    let before = before.replace("(in ", "(");
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (end > 0 && before.split_whitespace().all(is_qualifier)).then(|| after[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let found = source(text).into_iter();
        found.map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn a_line_that_is_too_wide_is_found_be_it_a_comment() {
        let wide = format!("// {}", "ü".repeat(COLUMNS_MAX - 2));
        let [(2, what)] = &found(&format!("\n{wide}\n"))[..] else {
            panic!()
        };
        assert_eq!(what, "the line has 111 columns, and 110 are allowed");
        assert!(found(&wide[..wide.len() - "ü".len()]).is_empty());
    }

    #[test]
    fn a_function_that_is_too_long_is_found() {
        let text = |head: &str, lines: usize| {
            format!(
                "mod m {{\n{head} {{\n{}    }}\n}}\n",
                "        x();\n".repeat(lines)
            )
        };
        for head in [
            "    fn long()",
            "    pub(crate) const unsafe fn long<T>(x: T) -> T",
            "    pub(in a::b) async fn long()",
        ] {
            let [(2, what)] = &found(&text(head, FUNCTION_LINES_MAX - 1))[..] else {
                panic!("{head}")
            };
            assert_eq!(what, "`long` has 71 lines, and a function has at most 70");
            assert!(found(&text(head, FUNCTION_LINES_MAX - 2)).is_empty());
        }
        // Signatures, types, prose, one line.
        for head in [
            "    fn short();\n    struct S",
            "    fn short(\n        x: u8,\n    ) -> u8;\n    enum E",
            "    // fn prose()\n    impl S",
            "    static F: fn () =",
            "    fn one() {}\n    impl S",
        ] {
            assert!(found(&text(head, FUNCTION_LINES_MAX)).is_empty(), "{head}");
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_found() {
        assert!(found(&"\n".repeat(FILE_LINES_MAX)).is_empty());
        let [(501, what)] = &found(&"\n".repeat(FILE_LINES_MAX + 1))[..] else {
            panic!()
        };
        assert_eq!(what, "the file has 501 lines, and at most 500 are allowed");
    }
}
