//! From text to [`Config`], with every mistake at its line.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fields::{fields_of, nearest};
use super::types;
use super::{Arbiter, Config, ConfigError, Disk, Hook, Host, Machine, Net, Problem, Protection, validate};

/// Parses and checks `text`. All unknown keys are reported at once; then the first wrong type;
/// then all wrong values.
pub(super) fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
    let invalid = |mut problems: Vec<Problem>| {
        problems.sort_by_key(|problem| problem.line);
        ConfigError::Invalid {
            origin: origin.to_owned(),
            problems,
        }
    };
    let document = Document::new(text).map_err(|problem| invalid(vec![problem]))?;
    let unknown = document.unknown_keys();
    if !unknown.is_empty() {
        return Err(invalid(unknown));
    }
    let config =
        toml::from_str::<Config>(text).map_err(|error| invalid(vec![document.wrong_type(&error)]))?;
    let wrong = validate::validate(&config)
        .into_iter()
        .map(|(path, sentence)| Problem {
            line: document.line_of(&path),
            sentence,
        })
        .collect::<Vec<_>>();
    if wrong.is_empty() {
        Ok(config)
    } else {
        Err(invalid(wrong))
    }
}

/// The file with the place of every key and value.
struct Document<'a> {
    text: &'a str,
    root: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    fn new(text: &'a str) -> Result<Self, Problem> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { text, root }),
            Err(error) => Err(Problem {
                line: error.span().map(|span| line_at(text, span.start)),
                sentence: format!("this is not TOML: {}", error.message().replace('\n', "; ")),
            }),
        }
    }

    fn unknown_keys(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let root = self.root.get_ref();
        self.check::<Config>(root, "at the top of the file", &mut problems);
        self.check_section::<Machine>("machine", &mut problems);
        self.check_section::<Protection>("protection", &mut problems);
        self.check_section::<Arbiter>("arbiter", &mut problems);
        self.check_list::<Disk>("disk", &mut problems);
        self.check_list::<Net>("net", &mut problems);
        self.check_list::<Hook>("hook", &mut problems);
        if let Some(hosts) = root.get("hosts").and_then(|hosts| hosts.get_ref().as_table()) {
            for (name, host) in hosts {
                if let Some(host) = host.get_ref().as_table() {
                    self.check::<Host>(host, &format!("in [hosts.{}]", name.get_ref()), &mut problems);
                }
            }
        }
        problems
    }

    fn check_section<'de, T: Deserialize<'de>>(&self, name: &str, problems: &mut Vec<Problem>) {
        if let Some(table) = self
            .root
            .get_ref()
            .get(name)
            .and_then(|value| value.get_ref().as_table())
        {
            self.check::<T>(table, &format!("in [{name}]"), problems);
        }
    }

    fn check_list<'de, T: Deserialize<'de>>(&self, name: &str, problems: &mut Vec<Problem>) {
        let Some(list) = self
            .root
            .get_ref()
            .get(name)
            .and_then(|value| value.get_ref().as_array())
        else {
            return;
        };
        for table in list.iter().filter_map(|value| value.get_ref().as_table()) {
            self.check::<T>(table, &format!("in [[{name}]]"), problems);
        }
    }

    fn check<'de, T: Deserialize<'de>>(&self, table: &DeTable<'_>, place: &str, problems: &mut Vec<Problem>) {
        let known = fields_of::<T>();
        for key in table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
        {
            let name = key.get_ref().as_ref();
            let hint = match nearest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("the keys there are: {}", known.join(", ")),
            };
            let line = Some(line_at(self.text, key.span().start));
            problems.push(Problem {
                line,
                sentence: format!("unknown key `{name}` {place}; {hint}"),
            });
        }
    }

    /// A sentence for an error of `serde`, with the key whose value it is about.
    fn wrong_type(&self, error: &toml::de::Error) -> Problem {
        let span = error.span();
        let path = span
            .as_ref()
            .map(|span| path_to(self.root.get_ref(), span))
            .unwrap_or_default();
        let place = if path.is_empty() {
            "the file".to_owned()
        } else {
            format!("`{}`", path.join("."))
        };
        let message = error.message();
        let given = span.as_ref().and_then(|span| self.text.get(span.clone()));
        let sentence = match (
            message.strip_prefix("missing field "),
            types::hint(message, given),
        ) {
            (Some(field), _) => format!("{place} lacks the key {field}"),
            (None, Some(hint)) => format!("{place} {hint}"),
            (None, None) => format!("{place}: {}", message.replace("unknown variant", "unknown value")),
        };
        // A missing key is missing from a whole table: at the top, that is no line.
        let line = span
            .filter(|_| !path.is_empty())
            .map(|span| line_at(self.text, span.start));
        Problem { line, sentence }
    }

    /// The line of the deepest part of `path` that the file has.
    fn line_of(&self, path: &[String]) -> Option<usize> {
        let mut line = None;
        let mut table = Some(self.root.get_ref());
        let mut list: Option<&toml::de::DeArray<'_>> = None;
        for part in path {
            let value = if let Some(inside) = table {
                let (key, value) = inside.get_key_value(part.as_str())?;
                line = Some(line_at(self.text, key.span().start));
                value
            } else {
                let value = list?.get(part.parse::<usize>().ok()?)?;
                line = Some(line_at(self.text, value.span().start));
                value
            };
            table = value.get_ref().as_table();
            list = value.get_ref().as_array();
            if table.is_none() && list.is_none() {
                break;
            }
        }
        line
    }
}

/// The keys that lead to the value at `span`.
fn path_to(table: &DeTable<'_>, span: &Range<usize>) -> Vec<String> {
    for (key, value) in table {
        let name = key.get_ref().to_string();
        if value.span() == *span {
            return vec![name];
        }
        let inner = match value.get_ref() {
            DeValue::Table(inner) => path_to(inner, span),
            DeValue::Array(list) => list
                .iter()
                .map(|item| match item.get_ref() {
                    _ if item.span() == *span => vec![],
                    DeValue::Table(inner) => path_to(inner, span),
                    _ => vec![],
                })
                .find(|path| !path.is_empty())
                .unwrap_or_default(),
            _ => vec![],
        };
        let covers = list_has(value.get_ref(), span);
        if !inner.is_empty() || covers {
            return std::iter::once(name).chain(inner).collect();
        }
    }
    vec![]
}

fn list_has(value: &DeValue<'_>, span: &Range<usize>) -> bool {
    value
        .as_array()
        .is_some_and(|list| list.iter().any(|item| item.span() == *span))
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}
