//! What manifests declare is used, crates say what they are, and licences are those of deny.toml.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::Table;

use super::Tree;
use crate::tools::{cargo, output_of};

/// Checks every Cargo.toml, and the licences of what the workspace is built of.
pub(super) fn check(tree: &Tree) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut of_workspace = BTreeSet::new();
    let mut declared = BTreeSet::new();
    for path in tree.ending("Cargo.toml") {
        let manifest: Table = toml::from_str(&tree.text(path)?).with_context(|| path.to_owned())?;
        let shared = table(&manifest, "workspace").and_then(|workspace| table(workspace, "dependencies"));
        declared.extend(shared.into_iter().flat_map(Table::keys).cloned());
        if !manifest.contains_key("package") {
            continue;
        }
        let directory = path.strip_suffix("Cargo.toml").unwrap_or_default();
        let mut code = Code::default();
        for file in tree.ending(".rs").filter(|file| file.starts_with(directory)) {
            let is_test = !file[directory.len()..].starts_with("src/") || file.ends_with("_test.rs");
            let of = if is_test {
                &mut code.tests
            } else {
                &mut code.program
            };
            let text = tree.text(file)?;
            for directory in borrowed(&text) {
                for file in tree.ending(".rs").filter(|file| file.starts_with(directory)) {
                    of.push_str(&tree.text(file)?);
                }
            }
            of.push_str(&text);
        }
        let found = unused(&manifest, &code);
        wrong.extend(found.into_iter().map(|what| format!("{path}: {what}")));
        for (name, _) in dependencies(&manifest) {
            of_workspace.insert(name);
        }
    }
    let spare = declared.difference(&of_workspace);
    wrong.extend(spare.map(|name| format!("Cargo.toml: no crate depends on `{name}`")));
    let deny: Deny = toml::from_str(&tree.text("deny.toml")?).context("deny.toml")?;
    wrong.extend(licences(&deny.licenses.allow)?);
    Ok(wrong)
}

/// The directories of modules that lie in another crate: `#[path = "../../fuzz/src/targets/mod.rs"]`.
fn borrowed(text: &str) -> impl Iterator<Item = &str> {
    let paths = text.split("#[path = \"").skip(1);
    let files = paths.filter_map(|rest| rest.split('"').next());
    files.filter_map(|file| {
        let inner = file.trim_start_matches("../");
        let (directory, _) = inner.rsplit_once('/')?;
        (inner != file).then_some(directory)
    })
}

/// A crate's code.
#[derive(Default)]
struct Code {
    program: String,
    tests: String,
}

fn table<'a>(of: &'a Table, name: &str) -> Option<&'a Table> {
    of.get(name)?.as_table()
}

/// The dependencies of a package, and whether they are for its tests alone.
fn dependencies(manifest: &Table) -> Vec<(String, bool)> {
    let kinds = [
        ("dependencies", false),
        ("build-dependencies", true),
        ("dev-dependencies", true),
    ];
    let of = |(kind, is_for_tests)| {
        let names = table(manifest, kind).into_iter().flat_map(Table::keys);
        names.map(move |name| (name.clone(), is_for_tests))
    };
    kinds.into_iter().flat_map(of).collect()
}

/// What a package says, and does not need or keep.
fn unused(manifest: &Table, code: &Code) -> Vec<String> {
    let mut wrong = Vec::new();
    let package = table(manifest, "package");
    let description = package.and_then(|package| package.get("description")?.as_str());
    if description.unwrap_or_default().is_empty() {
        wrong.push("the package has no description".to_owned());
    }
    for (name, is_for_tests) in dependencies(manifest) {
        let ident = name.replace('-', "_");
        let is_used = names(&code.program, &ident) || is_for_tests && names(&code.tests, &ident);
        if !is_used {
            wrong.push(format!("`{name}` is declared, and nothing uses it"));
        }
    }
    for (name, enables) in table(manifest, "features").into_iter().flatten() {
        let asked = format!("feature = \"{name}\"");
        let does_something = enables.as_array().is_some_and(|enables| !enables.is_empty());
        if !does_something && !code.program.contains(&asked) {
            wrong.push(format!(
                "the feature `{name}` is declared, and nothing depends on it"
            ));
        }
    }
    wrong
}

/// Whether code names a crate.
fn names(code: &str, ident: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.into_iter().any(|line| {
        let mut places = line.match_indices(ident);
        places.any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + ident.len()..]);
            let is_path = after.starts_with("::") || before.ends_with("use ");
            is_path && !before.ends_with(word) && !before.ends_with("::") && !after.starts_with(word)
        })
    })
}

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
}

/// Packages whose licence is not allowed.
fn licences(allowed: &[String]) -> Result<Vec<String>> {
    let options = [
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ];
    let text = output_of(cargo().arg("metadata").args(options))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata is not as expected")?;
    let refused = metadata
        .packages
        .into_iter()
        .filter_map(|Package { name, license }| {
            let license = license.unwrap_or_default();
            (!may(&license, allowed))
                .then(|| format!("deny.toml: `{name}` has the licence `{license}`, which is not allowed"))
        });
    Ok(refused.collect())
}

/// Whether an expression of licences (SPDX) can be kept to with those that are allowed: `A AND (B OR C)`; in
/// old packages `B/C`. `A WITH exception` gives more than `A` does.
fn may(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut holds = all_of(rest, allowed);
    while rest.first() == Some(&"OR") {
        *rest = &rest[1..];
        holds |= all_of(rest, allowed);
    }
    holds
}

fn all_of(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut holds = true;
    loop {
        let Some((first, others)) = rest.split_first() else {
            return false;
        };
        *rest = others;
        holds &= match *first {
            "(" => {
                let inner = any_of(rest, allowed);
                *rest = rest.get(1..).unwrap_or_default();
                inner
            }
            licence => allowed.iter().any(|allowed| allowed == licence),
        };
        if rest.first() == Some(&"WITH") {
            *rest = rest.get(2..).unwrap_or_default();
        }
        if rest.first() != Some(&"AND") {
            return holds;
        }
        *rest = &rest[1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_and_not_used_is_found() {
        let manifest = "[package]\nname = \"x\"\ndescription = \"It does x\"\n[features]\nall = [\"one\"]\n\
                        one = []\n[dependencies]\nvm-memory = \"1\"\nserde.workspace = true\n\
                        [dev-dependencies]\nlab = \"1\"\n";
        let found = |manifest: &str, program: &str, tests: &str| {
            let [program, tests] = [program, tests].map(str::to_owned);
            unused(&toml::from_str(manifest).unwrap(), &Code { program, tests })
        };
        let good = "use vm_memory::Address;\n#[cfg(feature = \"one\")]\nfn f() { serde::x() }\n";
        assert!(found(manifest, good, "use lab::Host;").is_empty());
        assert!(found(manifest, &format!("{good}use lab;"), "").is_empty());
        let said = found(
            manifest,
            "// serde::x\nuse my::serde::x; my_vm_memory::x();",
            "use serde::x;",
        );
        let expected =
            ["serde", "vm-memory", "lab"].map(|of| format!("`{of}` is declared, and nothing uses it"));
        let [.., feature] = &said[..] else { panic!() };
        assert_eq!(
            (&said[..3], &feature[..]),
            (
                &expected[..],
                "the feature `one` is declared, and nothing depends on it"
            )
        );
        let mute = manifest.replace("It does x", "");
        assert_eq!(
            found(&mute, good, "use lab::Host;"),
            ["the package has no description"]
        );
    }

    #[test]
    fn modules_of_another_crate_are_followed() {
        let text =
            "#[path = \"../../fuzz/src/targets/mod.rs\"]\nmod targets;\n#[path = \"own/x.rs\"]\nmod x;";
        assert_eq!(borrowed(text).collect::<Vec<_>>(), ["fuzz/src/targets"]);
    }

    #[test]
    fn a_licence_that_is_not_allowed_is_found() {
        let allowed = ["MIT", "Unicode-3.0", "Apache-2.0"].map(str::to_owned);
        for good in [
            "MIT",
            "GPL-2.0/MIT",
            "(MIT OR X) AND Unicode-3.0",
            "X OR Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(may(good, &allowed), "{good}");
        }
        for bad in [
            "",
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "(MIT OR X) AND Y",
            "X WITH MIT",
            "MIT Y",
        ] {
            assert!(!may(bad, &allowed), "{bad}");
        }
    }
}
