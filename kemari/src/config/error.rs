//! What is wrong with a configuration, in sentences that name the place.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub sentence: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no configuration: nobody writes so much.
    #[error(
        "{} has {bytes} bytes, more than the {} a configuration may have",
        path.display(),
        super::CONFIG_BYTES_MAX
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The file has mistakes; all that were found.
    #[error("{}", Listed(origin, problems))]
    Invalid {
        /// The file's name.
        origin: String,
        /// What is wrong, in the order of the file.
        problems: Vec<Problem>,
    },
    /// The name of a host leads nowhere.
    #[error("`hosts.{host}.listen`: {reason}")]
    NoAddress {
        /// Whose.
        host: String,
        /// Why, as a sentence.
        reason: String,
    },
    /// The name given with `--host`, or this machine's name, is not in `[hosts]`.
    #[error("{}", no_such_host(name, *from_machine, known))]
    NoSuchHost {
        /// The name looked for.
        name: String,
        /// Whether it is this machine's name, since none was given.
        from_machine: bool,
        /// The names there are.
        known: String,
    },
}

fn no_such_host(name: &str, from_machine: bool, known: &str) -> String {
    match from_machine {
        true => format!(
            "this machine is called `{name}`, but [hosts] knows only {known}: say with --host which of them \
             this is"
        ),
        false => format!("there is no host `{name}` in the configuration; it knows {known}"),
    }
}

struct Listed<'a>(&'a str, &'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.1.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match problem.line {
                Some(line) => write!(f, "{}, line {line}: {}", self.0, problem.sentence)?,
                None => write!(f, "{}: {}", self.0, problem.sentence)?,
            }
        }
        Ok(())
    }
}
