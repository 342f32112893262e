//! `kemari list`: all VMs of this host, a line each.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::sides::Side;
use crate::control::{Role, Verdict, duration};

/// One side, as it is listed.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    vm: String,
    host: Option<String>,
    socket: PathBuf,
    role: Option<Role>,
    /// The term that it lives in.
    term: Option<u64>,
    /// Whether the other side would go on if the primary died now.
    ready: bool,
    /// How it stands, in two words.
    state: String,
    /// For how long role and protection are what they are, in s.
    since_s: Option<u64>,
    /// What waits, and what is in the way, as sentences.
    waits: Vec<String>,
}

impl From<Side> for Row {
    fn from(side: Side) -> Self {
        let (vm, host) = (side.vm(), side.host().map(str::to_owned));
        let unknown = Self {
            vm,
            host,
            socket: side.socket,
            role: None,
            term: None,
            ready: false,
            state: "does not answer".to_owned(),
            since_s: None,
            waits: Vec::new(),
        };
        match side.answer {
            Err(error) => Self {
                waits: vec![format!("{:#}", anyhow::Error::from(error))],
                ..unknown
            },
            Ok(status) => Self {
                role: Some(status.role),
                term: Some(status.term),
                ready: status.verdict() == Verdict::Ready,
                state: status.state(),
                since_s: Some(status.since_s),
                waits: status.troubles(),
                ..unknown
            },
        }
    }
}

/// A table for people.
pub(crate) struct Table<'a>(pub &'a [Row]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no VM runs here");
        }
        let heads = ["VM", "HOST", "ROLE", "STATE", "FOR"].map(str::to_owned);
        let lines: Vec<[String; 5]> = std::iter::once(heads).chain(self.0.iter().map(cells)).collect();
        let width = |column: usize| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; 5] = std::array::from_fn(width);
        for (index, line) in lines.iter().enumerate() {
            for (cell, width) in line.iter().zip(widths) {
                write!(f, "{cell:width$}  ")?;
            }
            match index.checked_sub(1) {
                None => f.write_str("WAITS")?,
                Some(row) => f.write_str(&one_line(&self.0[row].waits))?,
            }
            if index + 1 < lines.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 5] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        row.vm.clone(),
        or_dash(row.host.clone()),
        or_dash(row.role.map(|role| role.to_string())),
        row.state.clone(),
        or_dash(row.since_s.map(duration)),
    ]
}

/// The sentences in a line; what would break it, or steer a terminal, is left out.
fn one_line(sentences: &[String]) -> String {
    match sentences.is_empty() {
        true => "-".to_owned(),
        false => sentences
            .join("; ")
            .replace(|letter: char| letter.is_control(), " "),
    }
}
