//! Carries out what was asked, except what runs a machine: that is handed back to `main`.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::time::Duration;

use anyhow::Context;
use clap::CommandFactory;

use super::list::{Row, Table};
use super::target::NothingHere;
use super::{Action, Cli, Here, Target, sides, top};
use crate::certs;
use crate::check::{self, Finding, Level};
use crate::config::Config;
use crate::control::{ClientError, Command, TapLine, TapRequest, TapTable, Verdict};
use crate::import::Import;

/// A side of a VM to be started.
#[derive(Clone, Debug)]
pub struct Start {
    /// The configuration, checked.
    pub config: Config,
    /// The name of this host in it.
    pub host: String,
}

/// What is left to do for `main`.
#[derive(Debug)]
pub enum Next {
    /// Nothing: the process ends.
    Exit(ExitCode),
    /// Run the VM as the primary.
    Run {
        /// Which, and as whom.
        start: Start,
        /// The term whose owner and peer are dead on the operator's word.
        assert_dead: Option<u64>,
        /// The images of this host are the right ones on the operator's word.
        adopt_disks: bool,
    },
    /// Hold the VM's state as the secondary.
    Secondary {
        /// Which, and as whom.
        start: Start,
        /// The history whose images may be overwritten on the operator's word.
        overwrite_disks: Option<String>,
    },
    /// Either, as the arbiter's record decides.
    Up(Start),
}

/// Carries out `action`. `machine` looks at what the machine needs (KVM, the processor), for `check`.
pub fn perform(action: Action, machine: impl Fn(&Config) -> Vec<Finding>) -> anyhow::Result<Next> {
    match action {
        Action::Run {
            here,
            assert_dead,
            adopt_disks,
        } => {
            return Ok(Next::Run {
                start: load(&here)?,
                assert_dead,
                adopt_disks,
            });
        }
        Action::Secondary {
            here,
            overwrite_disks,
        } => {
            return Ok(Next::Secondary {
                start: load(&here)?,
                overwrite_disks,
            });
        }
        Action::Up { here } => return Ok(Next::Up(load(&here)?)),
        Action::List { json } => list(json)?,
        Action::Top { interval } => top::run(Duration::from_secs(interval.into()))?,
        Action::Status { target, check, json } => return status(&target, check, json).map(Next::Exit),
        Action::Tap {
            channel,
            all,
            target,
            direction,
            seconds,
            events,
            json,
        } => {
            let (channel, target) = match all {
                true => (None, target.named_first(channel)?),
                false => (channel, target),
            };
            let request = TapRequest {
                channel,
                direction,
                seconds,
                events,
            };
            tap(&target, &request, json)?;
        }
        Action::Check { here, json } => {
            let start = load(&here)?;
            let mut findings = machine(&start.config);
            findings.extend(check::check(&start.config, &start.host));
            return report(&findings, json).map(Next::Exit);
        }
        Action::Protect { target } => order(&target, Command::Protect)?,
        Action::Resume { target } => order(&target, Command::Resume)?,
        Action::Resize { disk, size, target } => {
            let command = match disk.zip(size) {
                Some((disk, bytes)) => Command::Enlarge { disk, bytes },
                None => Command::Resize,
            };
            order(&target, command)?
        }
        Action::Unprotect { target } => order(&target, Command::Unprotect)?,
        Action::Takeover { target } => order(&target, Command::Takeover)?,
        Action::Drill { seconds, target } => order(&target, Command::Drill { seconds })?,
        Action::AdoptRecord { target } => order(&target, Command::AdoptRecord)?,
        Action::Switchover { target } => order(&target, Command::Switchover)?,
        Action::Mode { change, target } => {
            let (change, target) = change.resolve(target)?;
            order(&target, Command::Pace(change))?
        }
        Action::Stop { target } => order(&target, Command::Stop)?,
        Action::Import {
            image,
            destination,
            format,
            force,
            block_size,
        } => import(&Import {
            image,
            destination,
            format,
            force,
            block_bytes: block_size,
        })?,
        Action::Man { directory } => manual(&directory)?,
        Action::Certs {
            directory,
            hosts,
            days,
        } => {
            certs::make(&directory, &hosts, days)?;
            say(&certs::explain(&directory, &hosts))?;
        }
    }
    Ok(Next::Exit(ExitCode::SUCCESS))
}

/// Prints a line. If nobody reads any more, as behind `| head`, there is nothing left to say, which is no
/// error: the exit status is what it would be with a reader.
fn say(line: &dyn Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to the standard output"),
    }
}

/// Prints one of many lines, of which more are still to come: if nobody reads any more, the process ends.
fn say_next(line: &dyn Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit(0),
        result => result.context("cannot write to the standard output"),
    }
}

/// Says how a side stands, and if it is to `check`, gives the verdict as the exit status.
fn status(target: &Target, check: bool, json: bool) -> anyhow::Result<ExitCode> {
    let status = target.client().and_then(|client| Ok(client.status()?));
    let status = match status {
        Err(error) if check && tells_a_verdict(&error) => {
            eprintln!("kemari: {error:#}");
            return Ok(verdict_without_status(&error).into());
        }
        status => status?,
    };
    match json {
        true => say(&serde_json::to_string_pretty(&status)?)?,
        false => say(&status)?,
    }
    Ok(match check {
        true => status.verdict().into(),
        false => ExitCode::SUCCESS,
    })
}

/// Whether it was a side that could not be asked, and not the words that were wrong.
fn tells_a_verdict(error: &anyhow::Error) -> bool {
    error.is::<ClientError>() || error.is::<NothingHere>()
}

/// A side that is there and does not say how it stands may be anything.
fn verdict_without_status(error: &anyhow::Error) -> Verdict {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning { .. }) | None => Verdict::NothingHere,
        Some(_) => Verdict::Doubtful,
    }
}

/// Says how all sides of this machine stand.
fn list(json: bool) -> anyhow::Result<()> {
    let rows: Vec<Row> = sides::all()?.into_iter().map(Row::from).collect();
    match json {
        true => say(&serde_json::to_string_pretty(&rows)?),
        false => say(&Table(&rows)),
    }
}

fn order(target: &Target, command: Command) -> anyhow::Result<()> {
    say(&target.client()?.command(command)?)
}

fn import(import: &Import) -> anyhow::Result<()> {
    let made = import.run()?;
    say(&format_args!(
        "{}: {} bytes, of which {} MiB were no holes",
        import.destination.display(),
        made.disk_bytes,
        made.data_bytes.div_ceil(1 << 20)
    ))
}

/// Writes the manual pages.
fn manual(directory: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write the manual pages into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory).with_context(failed)
}

fn load(here: &Here) -> anyhow::Result<Start> {
    let mut config = Config::load(&here.config)?;
    let host = config.select_host(here.host.as_deref())?;
    config.resolve()?;
    Ok(Start { config, host })
}

/// Prints what passes while it does, and at the end the statistics: of all channels, a table.
fn tap(target: &Target, request: &TapRequest, json: bool) -> anyhow::Result<()> {
    let is_table = request.channel.is_none() && !json;
    let (mut failed, mut all) = (None, Vec::new());
    target.client()?.tap(request, |line| match line {
        TapLine::Statistics(statistics) if is_table => all.push(statistics),
        line => failed = failed.take().or(print(&line, json).err()),
    })?;
    match failed {
        Some(error) => Err(error),
        None if is_table => say(&TapTable(&all)),
        None => Ok(()),
    }
}

fn print(line: &TapLine, json: bool) -> anyhow::Result<()> {
    if json {
        return say_next(&serde_json::to_string(line).context("cannot print what the tap told")?);
    }
    match line {
        TapLine::Event { at_us, direction } => {
            say_next(&format_args!("{:>14.6} s  {direction}", *at_us as f64 / 1e6))
        }
        TapLine::Skipped { events } => say_next(&format_args!("             ...  {events} more")),
        TapLine::Statistics(statistics) => say_next(statistics),
    }
}

fn report(findings: &[Finding], json: bool) -> anyhow::Result<ExitCode> {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    if json {
        say(&serde_json::to_string_pretty(findings)?)?;
    } else {
        for finding in findings {
            say(finding)?;
        }
        say(&format_args!(
            "{}, {}",
            several(count(Level::Error), "error"),
            several(count(Level::Warning), "warning")
        ))?;
    }
    Ok(match check::worst(findings) {
        Level::Error => ExitCode::FAILURE,
        Level::Ok | Level::Warning => ExitCode::SUCCESS,
    })
}

/// So many of them, as people say it.
fn several(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}
