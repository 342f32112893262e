//! The steps of a change of roles that can fail.
//!
//! Between a won term and the running guest, and on the way back to a secondary, the VM depends on this
//! process: what fails there is tried again. So that this can be proved of every such call, each passes
//! through [`step`]: a test's build lists them, and a scenario has each of them fail (`KEMARI_FAULTS`, see
//! `faults`).

use std::fmt::Display;

use super::faults;

/// Does something that can fail and is tried again if it does. No two steps of a change have the same name.
pub fn step<T>(name: impl Display, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    faults::before_step(&name)?;
    let done = work()?;
    faults::after_step(&name)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    /// What is done between a won term and the running guest, and on the way back to a secondary.
    const CHANGES: [(&str, &[&str]); 7] = [
        (include_str!("secondary/restore.rs"), &["restore"]),
        (
            include_str!("life/roles.rs"),
            &["primary", "secondary", "attend", "take_over", "tell_takeover"],
        ),
        (include_str!("secondary.rs"), &["new"]),
        (include_str!("secondary/standby.rs"), &["build"]),
        (include_str!("secondary/disks.rs"), &["close"]),
        (include_str!("primary/disks.rs"), &["prepare_ask"]),
        (include_str!("primary.rs"), &["new", "run"]),
    ];

    /// The functions of a name, from their names to their ends.
    fn functions<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
        let head = format!("fn {name}(");
        let found = source.match_indices(&head).map(|(begin, _)| {
            let line = source[..begin].rfind('\n').map_or(0, |end| end + 1);
            let indent = source[line..].len() - source[line..].trim_start().len();
            let end = format!("\n{}}}\n", " ".repeat(indent));
            let length = source[begin..].find(&end).expect("a function has an end");
            &source[begin..begin + length]
        });
        found.collect()
    }

    /// A function without its calls of [`super::step`].
    fn without_steps(function: &str) -> String {
        let mut left = String::new();
        let mut rest = function;
        while let Some(begin) = rest.find("step(") {
            left.push_str(&rest[..begin]);
            rest = &rest[begin + "step".len()..];
            let mut depth = 0;
            let end = rest.find(|character| {
                depth += i32::from(character == '(') - i32::from(character == ')');
                depth == 0
            });
            rest = &rest[end.expect("a call has an end") + 1..];
            rest = rest.strip_prefix('?').unwrap_or(rest);
        }
        left + rest
    }

    #[test]
    fn nothing_fails_in_a_change_of_roles_that_is_no_step() {
        for (source, names) in CHANGES {
            for name in names {
                let functions = functions(source, name);
                assert!(!functions.is_empty(), "there is no function {name}");
                for function in functions {
                    let left = without_steps(function);
                    for word in ["?", "unwrap()", "expect(\"", "panic!", "bail!", "thread::spawn("] {
                        assert!(!left.contains(word), "`{word}` outside of a step:\n{left}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_call_outside_of_a_step_is_seen() {
        let left = without_steps("fn f() { step(\"a\", || Ok(g(1)?))?; let x = h()?; }");
        assert_eq!(left, "fn f() { ; let x = h()?; }");
    }
}
