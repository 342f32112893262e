//! What the documents name is there: files, functions beside them, and the targets of links.

use anyhow::Result;

use super::Tree;

/// Checks README, CONTRIBUTING and `docs/`.
pub(super) fn check(tree: &Tree) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let is_document = |path: &&str| path.starts_with("docs/") || !path.contains('/');
    for document in tree.ending(".md").filter(is_document) {
        let text = tree.text(document)?;
        let sources = |path: &str| -> Result<Vec<String>> {
            let files = tree.paths.iter().filter(|file| matches(file, path));
            files.map(|file| tree.text(file)).collect()
        };
        wrong.extend(spans(document, &text, &tree.paths, sources)?);
        wrong.extend(links(document, &text, &tree.paths));
    }
    Ok(wrong)
}

/// Findings among the words in backticks: paths, and behind a path (``` `a.rs`: `f`, `T::g` ```) what is
/// declared there. `sources`: the texts of the files that a path means.
fn spans(
    document: &str,
    text: &str,
    tree: &[String],
    sources: impl Fn(&str) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (line, paragraph) in paragraphs(text) {
        let mut file: Option<&str> = None;
        let mut number = line;
        let parts: Vec<&str> = paragraph.split('`').collect();
        for (index, part) in parts.iter().enumerate() {
            let at = number;
            number += part.matches('\n').count();
            if index % 2 == 0 {
                if ![":", ","].contains(&part.trim()) {
                    file = None;
                }
            } else if is_path(part, tree) {
                if !tree.iter().any(|file| matches(file, part)) {
                    wrong.push(format!("{document}:{at}: there is no `{part}` in the tree"));
                }
                file = part.ends_with(".rs").then_some(part);
            } else if let Some(file) = file {
                let sources = sources(file)?;
                let is_declared = |name| sources.iter().any(|source| declares(source, name));
                if !part.split("::").all(is_declared) {
                    wrong.push(format!("{document}:{at}: `{file}` declares no `{part}`"));
                }
            }
        }
    }
    Ok(wrong)
}

/// The paragraphs of a document and their first lines, but for what is shown as it is typed. A line of a
/// table is one of its own.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_fenced = false;
    let mut goes_on = false;
    for (number, line) in (1..).zip(text.lines()) {
        is_fenced ^= line.trim_start().starts_with("```");
        let is_shown = is_fenced || line.starts_with("    ") && !goes_on || line.contains("```");
        if is_shown || line.trim().is_empty() {
            goes_on = false;
            continue;
        }
        match found.last_mut() {
            Some((_, paragraph)) if goes_on => paragraph.push_str(line),
            _ => found.push((number, line.to_owned())),
        }
        if let Some((_, paragraph)) = found.last_mut() {
            paragraph.push('\n');
        }
        goes_on = !line.starts_with('|');
    }
    found
}

/// Whether a word means a place in the tree: a source file, or below a directory at its root.
fn is_path(word: &str, tree: &[String]) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-*@".contains(c);
    let Some((first, _)) = word.split_once('/') else {
        return word.ends_with(".rs") && word.chars().all(is_plain);
    };
    let is_root = tree
        .iter()
        .any(|file| file.split_once('/').is_some_and(|(root, _)| root == first));
    word.chars().all(is_plain) && (is_root || first == "src" || first == "tests" || word.ends_with(".rs"))
}

/// Whether a path as documents have it, which may lack its beginning, means this file or a directory above
/// it. `*`, `NAME` and `TARGET` stand for any part of a name.
fn matches(file: &str, path: &str) -> bool {
    let wanted: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let parts: Vec<&str> = file.split('/').collect();
    let is_same = |(part, wanted): (&&str, &&str)| {
        let wanted = wanted.replace("NAME", "*").replace("TARGET", "*");
        match wanted.split_once('*') {
            Some((start, end)) => part.starts_with(start) && part.ends_with(end),
            None => **part == wanted,
        }
    };
    parts
        .windows(wanted.len())
        .any(|window| window.iter().zip(&wanted).all(is_same))
}

/// Whether something of this name is declared in a source file: a function, a type, a field.
fn declares(source: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.into_iter().any(|line| {
        line.match_indices(name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let introduced = [
                "fn ",
                "struct ",
                "enum ",
                "trait ",
                "type ",
                "const ",
                "static ",
                "mod ",
                "macro_rules! ",
            ];
            let is_item = introduced.iter().any(|keyword| before.ends_with(keyword));
            let is_alone = ["", "pub", "pub(crate)", "pub(super)"].contains(&before.trim());
            let is_member = is_alone && after.starts_with(": ") && line.ends_with(',');
            !after.starts_with(word) && !before.ends_with(word) && (is_item || is_member)
        })
    })
}

/// Findings among the targets of links within the repository.
fn links(document: &str, text: &str, tree: &[String]) -> Vec<String> {
    let directory = document.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            let path = match path.strip_prefix("../") {
                Some(above) => above.to_owned(),
                None if directory.is_empty() => path.to_owned(),
                None => format!("{directory}/{path}"),
            };
            let is_elsewhere = target.contains("://") || target.starts_with('#');
            if !is_elsewhere
                && !tree
                    .iter()
                    .any(|file| matches(file, &path) && file.starts_with(&path))
            {
                wrong.push(format!("{document}:{number}: the link to {target} leads nowhere"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "/// fn old\npub fn new_one() {}\nimpl Machine {\n    fn release(&self) {}\n}\n\
                          pub struct Machine {\n";

    fn found(text: &str) -> Vec<String> {
        let tree = ["docs/a.md", "side/src/machine.rs", "side/tests/pair/x_test.rs"].map(str::to_owned);
        let sources = |_: &str| Ok(vec![SOURCE.to_owned()]);
        let mut wrong = spans("docs/a.md", text, &tree, sources).unwrap();
        wrong.extend(links("docs/a.md", text, &tree));
        wrong
    }

    #[test]
    fn a_path_that_is_not_there_is_found() {
        for there in [
            "machine.rs",
            "src/machine.rs",
            "side/tests/",
            "side/tests/*_test.rs",
            "NAME_test.rs",
            "side/src",
        ] {
            let is_there = found(&format!("see `{there}`")).is_empty();
            assert_eq!(is_there, there != "side/tests/*_test.rs", "{there}");
        }
        assert_eq!(
            found("a\n\n| `x` | b\n| `y` | `side/src/gone.rs`"),
            ["docs/a.md:4: there is no `side/src/gone.rs` in the tree"]
        );
        assert_eq!(
            found("one\ntwo `gone.rs` three"),
            ["docs/a.md:2: there is no `gone.rs` in the tree"]
        );
        // Not of this tree, and what is typed.
        assert!(
            found("`/run/x`, `set/a`, `kernel/mm.c`, `gone`\n\n    `gone.rs`\n\n```\n`gone.rs`\n```")
                .is_empty()
        );
    }

    #[test]
    fn a_name_that_its_file_does_not_declare_is_found() {
        assert!(found("| `machine.rs`: `new_one`, `Machine::release` |").is_empty());
        assert_eq!(
            found("`machine.rs`: `new_one`, `old`"),
            ["docs/a.md:1: `machine.rs` declares no `old`"]
        );
        assert_eq!(
            found("`machine.rs`: `Machine::new`"),
            ["docs/a.md:1: `machine.rs` declares no `Machine::new`"]
        );
        assert!(found("`machine.rs` is told `old`, and `old`").is_empty());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        assert!(found("[a](a.md#b), [m](../side/src/machine.rs), [w](https://w.org/), [h](#h)").is_empty());
        assert_eq!(
            found("\n[b](b.md#c)"),
            ["docs/a.md:2: the link to b.md#c leads nowhere"]
        );
    }
}
