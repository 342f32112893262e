//! Who may know whom: the crates by their manifests, the modules of a crate by what their code names.
//!
//! Dependencies run downward (CONTRIBUTING.md, "Rules"). What a test alone names is its own affair.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::tools::root;

/// A crate, and those that it must not know.
const CRATES: [(&str, &[&str]); 3] = [
    ("kemari-sync", &["kemari", "kemari-vmm"]),
    ("kemari-vmm", &["kemari", "kemari-sync"]),
    ("lab", &["kemari", "kemari-sync", "kemari-vmm"]),
];

/// A module of a crate, those beside it that it must not know, and why.
const MODULES: [(&str, &str, &[&str], &str); 14] = [
    (
        "kemari-vmm",
        "disk",
        &["virtio", "devices", "vcpu", "arch", "boot", "machine"],
        "a disk knows no device: it tells ends by a function",
    ),
    (
        "kemari-vmm",
        "arch",
        &["boot", "virtio", "devices", "disk", "vcpu", "machine"],
        "an architecture knows no boot protocol",
    ),
    (
        "kemari-vmm",
        "boot",
        &["virtio", "disk", "vcpu", "machine"],
        "what is loaded is told which devices there are",
    ),
    (
        "kemari-vmm",
        "memory",
        &["virtio", "devices", "disk", "boot", "vcpu", "machine"],
        "memory is under everything",
    ),
    (
        "kemari-vmm",
        "release",
        &["virtio", "devices", "disk", "arch", "boot", "vcpu", "machine"],
        "the rule by which output is let go knows no output",
    ),
    (
        "kemari-vmm",
        "state",
        &["virtio", "devices", "disk", "arch", "boot", "vcpu", "machine"],
        "a state's type says what it is",
    ),
    (
        "kemari-vmm",
        "devices",
        &["virtio", "disk", "boot", "vcpu", "machine"],
        "what all devices share knows none of them",
    ),
    (
        "kemari-vmm",
        "virtio",
        &["boot", "vcpu", "machine"],
        "a device is a guest of the machine",
    ),
    ("kemari-vmm", "vcpu", &["machine"], "a machine is told by its bus"),
    (
        "kemari",
        "config",
        &[
            "link", "arbiter", "control", "replica", "sandbox", "side", "steward",
        ],
        "a configuration is read before anything is there",
    ),
    (
        "kemari",
        "link",
        &["arbiter", "control", "replica", "side", "steward"],
        "a link carries frames",
    ),
    (
        "kemari",
        "arbiter",
        &["link", "control", "replica", "side", "steward"],
        "an arbiter keeps a record",
    ),
    (
        "kemari",
        "replica",
        &["link", "arbiter", "control", "side", "steward"],
        "an image and its record know no side",
    ),
    // Everything but the trials themselves.
    (
        "kemari-sync",
        "",
        &["sim", "model"],
        "the mechanism knows nothing of its trials",
    ),
];

/// Checks the whole tree.
pub(super) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for (of, banned) in CRATES {
        let path = root().join(of).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let known = dependencies(&toml::from_str(&manifest)?);
        for name in banned.iter().filter(|name| known.contains(**name)) {
            wrong.push(format!("{of} depends on {name}"));
        }
    }
    for (of, module, banned, why) in MODULES {
        let source = root().join(of).join("src");
        for path in files(&source)? {
            let place = module_path(path.strip_prefix(&source)?);
            let is_meant = match module {
                "" => !banned.contains(&place.first().map_or("", String::as_str)),
                module => place.first().is_some_and(|first| first == module),
            };
            if !is_meant {
                continue;
            }
            for (line, name) in named(&fs::read_to_string(&path)?, place.len()) {
                if banned.contains(&name.as_str()) {
                    let shown = path.strip_prefix(root())?.display().to_string();
                    wrong.push(format!("{shown}:{line} names `{name}`: {why}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The packages that a manifest names in any table of dependencies.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if !key.ends_with("dependencies") {
            found.extend(dependencies(table));
            continue;
        }
        for (name, how) in table {
            let package = how.get("package").and_then(|package| package.as_str());
            found.insert(package.unwrap_or(name).to_owned());
        }
    }
    found
}

/// The source files below a directory, but for those of tests.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let is_test = stem.ends_with("_test") || stem == "tests";
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
            found.push(path);
        }
    }
    Ok(found)
}

/// The module that a file below `src/` holds, as its path in the crate.
fn module_path(file: &Path) -> Vec<String> {
    let file = file.with_extension("");
    let mut path: Vec<String> = file
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if path
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        path.pop();
    }
    path
}

/// The modules at the top of the crate that code names, with the lines where it does. `depth`: how far below
/// that top the code's own module is.
fn named(text: &str, depth: usize) -> Vec<(usize, String)> {
    let top = ["crate::".to_owned(), "super::".repeat(depth)];
    let mut found = Vec::new();
    for (number, code) in whole_lines(text) {
        for prefix in top.iter().filter(|prefix| !prefix.is_empty()) {
            for (at, _) in code.match_indices(prefix.as_str()) {
                let is_whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                let rest = &code[at + prefix.len()..];
                // `crate::{one, another::{Name, Other}}`
                let mut depth = 0;
                let between = |c: char| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    c == ',' && depth == 0
                };
                let group = rest.strip_prefix('{').unwrap_or_default().split(between);
                let names = [rest].into_iter().chain(group).filter_map(|name| {
                    let name = name.trim_start();
                    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                    let name = &name[..end.unwrap_or(name.len())];
                    (is_whole && !name.is_empty()).then(|| name.to_owned())
                });
                found.extend(names.map(|name| (number, name)));
            }
        }
    }
    found
}

/// The lines of a file, but for comments and its tests, with their numbers. A `use` of several lines is one.
fn whole_lines(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    // Tests are the last in a file.
    let lines = text.lines().take_while(|line| *line != "mod tests {");
    for (number, line) in (1..).zip(lines) {
        let code = line.split("//").next().unwrap_or_default();
        match found.last_mut() {
            Some((_, whole)) if goes_on => whole.push_str(code),
            _ => {
                let code = code.to_owned();
                goes_on = format!(" {code}").contains(" use ");
                found.push((number, code));
            }
        }
        goes_on &= !code.contains(';');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_is_found_however_it_is_written() {
        let names = |text: &str, depth| -> Vec<String> {
            let found = named(text, depth);
            found.into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(names("use crate::virtio::Completions;", 2), ["virtio"]);
        assert_eq!(names("    let x = crate::link::name_of(name)?;", 1), ["link"]);
        assert_eq!(names("use super::super::virtio::block;", 2), ["virtio"]);
        assert_eq!(names("use super::virtio;", 1), ["virtio"]);
        assert_eq!(names("use crate::{boot, disk::Disk};", 3), ["boot", "disk"]);
        assert_eq!(named("\n\nuse crate::boot;", 1), [(3, "boot".to_owned())]);
        let broken = "\npub(super) use crate::{\n    // Why.\n    boot::{self, Kernel},\n    \
                      disk::{\n        Disk, link,\n    }, vcpu\n};\nuse super::{\n    memory,\n};";
        let found = named(broken, 1);
        let found: Vec<(usize, &str)> = found.iter().map(|(line, name)| (*line, name.as_str())).collect();
        assert_eq!(found, [(2, "boot"), (2, "disk"), (2, "vcpu"), (9, "memory")]);
        // Its own modules, another crate's, prose, and what a test names.
        assert!(names("use super::virtio;", 2).is_empty());
        assert!(names("use other_crate::virtio; use a::super::virtio;", 1).is_empty());
        assert!(names("/// As [`crate::boot::Kernel`] has it.", 1).is_empty());
        assert!(names("#[cfg(test)]\nmod tests {\n    use crate::boot;", 1).is_empty());
    }

    #[test]
    fn a_dependency_is_found_in_any_table_and_by_any_name() {
        let manifest = "[package]\nname = \"kemari-vmm\"\n[dev-dependencies]\nkemari-sync.workspace = true\n\
                        [target.'cfg(unix)'.dependencies]\nmechanism = { package = \"kemari\", path = \
                        \"../kemari\" }\n";
        let known = dependencies(&toml::from_str(manifest).unwrap());
        assert_eq!(known.into_iter().collect::<Vec<_>>(), ["kemari", "kemari-sync"]);
    }

    #[test]
    fn a_file_is_a_module() {
        let of = |path: &str| module_path(Path::new(path)).join("::");
        assert_eq!(of("disk/mod.rs"), "disk");
        assert_eq!(of("disk/engine/uring.rs"), "disk::engine::uring");
        assert_eq!(of("config.rs"), "config");
        assert_eq!(of("lib.rs"), "");
    }
}
