//! The edits: `xtask/mutants/*.toml`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::tools::root;

/// A wrong edit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutant {
    /// The rule that it breaks.
    pub rule: String,
    /// The file, from the root of the repository.
    pub file: String,
    /// What stands there, exactly once.
    pub old: String,
    /// What stands there wrongly.
    pub new: String,
    /// The tests that must notice: what `cargo test --package PACKAGE` is given, a word each.
    pub tests: Vec<String>,
    /// Why no test can notice: the code means the same with the edit. It is made all the same,
    /// and must not be noticed.
    #[serde(default)]
    pub equal: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mutant: Vec<Mutant>,
}

impl Mutant {
    /// The package that the file belongs to: its directory.
    pub(crate) fn package(&self) -> &str {
        self.file.split('/').next().unwrap_or_default()
    }

    /// What it is called: its file, and the rule.
    pub(crate) fn name(&self) -> String {
        format!("{}: {}", self.file, self.rule)
    }

    /// The text of the file with the edit made.
    pub(crate) fn apply(&self, text: &str) -> Result<String> {
        let found = text.matches(&self.old).count();
        ensure!(
            found == 1,
            "what is to be edited stands {found} times in {}, not once: bring the edit up to date",
            self.file
        );
        Ok(text.replacen(&self.old, &self.new, 1))
    }
}

/// All edits, in the order of their files' names.
pub(super) fn read() -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for path in files()? {
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("{} is not as expected", path.display()))?;
        mutants.extend(file.mutant);
    }
    Ok(mutants)
}

fn files() -> Result<Vec<PathBuf>> {
    let directory = root().join("xtask/mutants");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// What all of a directory's Rust files say.
    fn code_below(directory: &Path) -> String {
        let paths = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let texts = paths.map(|path| match path.extension() {
            Some(rs) if rs == "rs" => fs::read_to_string(&path).unwrap(),
            _ if path.is_dir() => code_below(&path),
            _ => String::new(),
        });
        texts.collect()
    }

    #[test]
    fn the_tests_that_must_notice_are_there() {
        let mut packages: BTreeMap<String, String> = BTreeMap::new();
        for mutant in read().unwrap() {
            let package = mutant.package();
            let code = packages
                .entry(package.to_owned())
                .or_insert_with(|| code_below(&root().join(package)));
            let is_there = |name: &str| {
                ["mod ", "fn "]
                    .iter()
                    .any(|of| code.contains(&format!("{of}{name}")))
            };
            for filter in mutant.tests.iter().skip_while(|word| *word != "--").skip(1) {
                assert!(
                    filter.split("::").all(is_there),
                    "{package} has no tests {filter}: {}",
                    mutant.rule
                );
            }
        }
    }

    #[test]
    fn every_edit_can_still_be_made() {
        let mutants = read().unwrap();
        assert!(mutants.len() >= 60, "there are only {} edits", mutants.len());
        for mutant in mutants {
            let text = fs::read_to_string(root().join(&mutant.file)).expect(&mutant.file);
            let edited = mutant
                .apply(&text)
                .unwrap_or_else(|e| panic!("{}: {e:#}", mutant.rule));
            assert_ne!(edited, text, "{}: {}", mutant.file, mutant.rule);
        }
    }

    #[test]
    fn an_edit_of_what_stands_twice_is_refused() {
        let mutant = Mutant {
            rule: "a rule".into(),
            file: "kemari/src/lib.rs".into(),
            old: "a".into(),
            new: "b".into(),
            tests: Vec::new(),
            equal: None,
        };
        assert_eq!(mutant.apply("cat").unwrap(), "cbt");
        assert!(mutant.apply("banana").is_err() && mutant.apply("").is_err());
        assert_eq!(mutant.package(), "kemari");
    }
}
