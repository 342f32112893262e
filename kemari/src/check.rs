//! The preflight: whether this host can run or take over the VM, before anything is started.
//!
//! Changes nothing. A finding is an error when a start would fail or a takeover would be unsafe, a warning
//! when it may be as intended (a peer that is not started yet).

mod arbiter;
mod disk;
mod host;
mod kvm;
mod limits;
mod link;
mod peer;
mod tap;

pub use kvm::kvm;

use std::fmt;

use serde::Serialize;

use crate::config::Config;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// To be looked at; a start is possible.
    Warning,
    /// A start would fail, or be unsafe.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub sentence: String,
    /// What to do about it; empty if nothing.
    pub(crate) advice: String,
}

impl Finding {
    /// Something that is as it should be.
    pub fn ok(sentence: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            sentence: sentence.into(),
            advice: String::new(),
        }
    }

    /// Something to look at.
    pub fn warning(sentence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            sentence: sentence.into(),
            advice: advice.into(),
        }
    }

    /// Something that prevents a start.
    pub fn error(sentence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            sentence: sentence.into(),
            advice: advice.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "error  ",
        };
        write!(f, "{word}  {}", self.sentence)?;
        match self.advice.as_str() {
            "" => Ok(()),
            advice => write!(f, "\n         -> {advice}"),
        }
    }
}

/// Looks at everything that `config` needs on the host `name`.
/// Takes a few seconds at most when others are silent.
pub fn check(config: &Config, name: &str) -> Vec<Finding> {
    let running = host::runs_here(config.host(name));
    let mut findings = host::check(config, name, running);
    for disk in config.disks_of(name) {
        findings.push(disk::check(&disk, running));
        if config.replicates(disk.disk) {
            findings.extend(disk::check_record(
                &config.vm,
                &disk,
                config.host(name).state_dir(),
            ));
        }
    }
    for net in config.nets_of(name) {
        findings.push(tap::check(&net, running));
    }
    findings.extend(tap::check_ways(config, name));
    if config.protection.enabled {
        findings.push(link::check(config, name));
    }
    findings.extend(arbiter::check(config, name, running));
    if config.protection.enabled {
        findings.extend(peer::check(config, name, running));
    }
    findings
}

/// The worst of `findings`.
pub(crate) fn worst(findings: &[Finding]) -> Level {
    findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Ok)
}
