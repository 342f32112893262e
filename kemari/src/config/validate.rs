//! Whether the values make sense, each alone and together. Looks at no file,
//! device or address of the machine.

mod hosts;
mod machine;
mod protection;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use kemari_sync::NAME_BYTES_MAX;

use super::Config;

/// Longest name of a network device in Linux, in bytes.
const TAP_BYTES_MAX: usize = 15;
/// Time-outs that other hosts are waited for, in ms.
const TIMEOUT_MS: RangeInclusive<u32> = 10..=600_000;

/// Where (the keys from the top of the file) and what.
pub(crate) type Finding = (Vec<String>, String);

/// All that is wrong with the values of `config`.
pub(crate) fn validate(config: &Config) -> Vec<Finding> {
    let mut wrong = Wrong(Vec::new());
    wrong.name(&["vm"], "the VM's name", &config.vm, NAME_BYTES_MAX);
    machine::machine(config, &mut wrong);
    machine::devices(config, &mut wrong);
    protection::protection(config, &mut wrong);
    protection::arbiter(&config.arbiter, &mut wrong);
    hosts::hooks(&config.hooks, &mut wrong);
    hosts::hosts(config, &mut wrong);
    wrong.0
}

struct Wrong(Vec<Finding>);

impl Wrong {
    fn at(&mut self, path: &[&str], sentence: impl Into<String>) {
        self.0.push((
            path.iter().map(|part| (*part).to_owned()).collect(),
            sentence.into(),
        ));
    }

    fn range<T: PartialOrd + Display>(&mut self, path: &[&str], value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            // A number is that of a section, but in [hosts], where it is a name.
            let is_shown = |part: &&&str| path[0] == "hosts" || part.parse::<usize>().is_err();
            let key = path
                .iter()
                .filter(is_shown)
                .copied()
                .collect::<Vec<_>>()
                .join(".");
            self.at(
                path,
                format!(
                    "`{key}` is {value}, but must be {} to {}",
                    range.start(),
                    range.end()
                ),
            );
        }
    }

    fn name(&mut self, path: &[&str], what: &str, name: &str, bytes_max: usize) {
        if name.len() > bytes_max || !is_name(name) {
            self.at(
                path,
                format!(
                    "{what} is `{name}`, but must be 1 to {bytes_max} letters, digits, `_`, `-` or `.`, and \
                     not begin with `.`"
                ),
            );
        }
    }

    fn unique(&mut self, path: &[&str], what: &str, value: &str, seen: &mut BTreeSet<String>) {
        if !seen.insert(value.to_owned()) {
            self.at(
                path,
                format!("{what} `{value}` is given twice: each needs its own"),
            );
        }
    }
}

/// Whether a VM or a host may have that name.
pub(crate) fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let has_length = (1..=NAME_BYTES_MAX).contains(&name.len());
    has_length && !name.starts_with('.') && name.bytes().all(good)
}

fn tap_name(path: &[&str], tap: &str, wrong: &mut Wrong) {
    let good = |c: char| c.is_ascii_graphic() && c != '/' && c != ':' && c != '%';
    if tap.is_empty() || tap.len() > TAP_BYTES_MAX || tap == "." || tap == ".." || !tap.chars().all(good) {
        wrong.at(
            path,
            format!(
                "`{tap}` is no name of a network device: Linux takes 1 to {TAP_BYTES_MAX} \
                                characters without spaces, `/`, `:` and `%`"
            ),
        );
    }
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
