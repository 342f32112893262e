//! The life of a process: start, primary or secondary, takeover, and back.

mod boot;
mod roles;

use std::fs::{self, File, TryLockError};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kemari_sync::{Incarnation, Timing};
use kemari_vmm::machine::{Machine, MachineSpec};

use super::alarms::Alarms;
use super::arbiter_thread::{ArbiterThread, NO_ARBITER};
use super::assembly;
use super::board::Board;
use super::certificates::Certificates;
use super::clock::Clock;
use super::health::HealthWatch;
use super::primary::{self, PrimarySide};
use super::readiness::Source;
use super::secondary::{self, SecondarySide};
use super::signals::{self, Leaving};
use super::terminal::Terminal;
use super::trace::Trace;
use crate::arbiter::{ArbiterWatch, ConfiguredArbiter};
use crate::config::{self, Config};
use crate::control::{self, Counters, Protection, Role, Status, Timings, Waits};
use crate::files;
use crate::link::Security;
use crate::threads::helpers;

/// A side that may either run the VM or follow waits so long for a primary before it tries to run it, in
/// milliseconds: the shortest time, and the length of the range that it is drawn from, so that two hosts do
/// not try at once for ever.
const IDLE_MS: u64 = 1_500;
const IDLE_RANGE_MS: u64 = 2_000;

/// As what a process starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// It boots the VM.
    Primary {
        /// The operator's word that whoever owns this term is dead.
        assert_dead: Option<u64>,
        /// The operator's word that the images here are the right ones.
        adopt_disks: bool,
    },
    /// It waits for a primary.
    Secondary {
        /// The operator's word that images of this history may be overwritten.
        overwrite_disks: Option<String>,
    },
    /// It boots the VM if nobody has it and it may, and follows whoever has it.
    Either,
}

/// What lasts for the process's life: a role begins with it, and needs nothing of it anew.
struct Life {
    config: Arc<Config>,
    host: String,
    spec: MachineSpec,
    digest: u64,
    clock: Clock,
    board: Arc<Board>,
    /// The guest's console, where that is this terminal.
    terminal: Option<Terminal>,
    /// Held as long as the process lives: proves to the next one that this one is dead.
    _lock: File,
    arbiter: ArbiterThread,
    health: HealthWatch,
    trace: Arc<Trace>,
    /// How the link is protected, if there may be one.
    security: Option<Security>,
    /// See [`StartAs::Secondary`].
    overwrite_disks: Option<String>,
    /// Whether this side may boot the VM by itself.
    may_start: bool,
    /// Why it did not do so when it last tried.
    not_booted: Option<String>,
    /// How often in a row a boot has failed that was not refused.
    failed_boots: u32,
    leaving: Leaving,
    alarms: Option<Arc<Alarms>>,
    _server: control::Server,
}

/// Runs a side until the VM is stopped. Only what goes wrong before its first role ends it with an error.
pub fn run(config: Config, host: String, start_as: StartAs) -> anyhow::Result<ExitCode> {
    super::faults::set_up()?;
    signals::ignore_trifles();
    helpers::begin()?;
    let mut life = Life::begin(config, host)?;
    let mut next = life.first(start_as)?;
    life.alarms.iter().for_each(|alarms| alarms.begin());
    super::faults::note_role();
    loop {
        next = match next {
            Next::Execute(side) => match side.run() {
                primary::End::Stopped(reason) => {
                    tracing::info!("the VM is stopped: {reason}");
                    return Ok(life.end(&format!("the VM is stopped: {reason}")));
                }
                primary::End::Halted(reason) => {
                    tracing::warn!("the VM does not run here any more: {reason}");
                    if life.leaving.is_wanted() {
                        return Ok(life.end(&format!("the VM does not run here any more: {reason}")));
                    }
                    if life.security.is_none() {
                        let why =
                            "the VM has ended here, and there is no link by which to follow another host";
                        life.say_last(&format!("{why}: {reason}"));
                        bail!(why);
                    }
                    Next::Follow(life.attend())
                }
            },
            Next::Follow(side) => match side.run() {
                secondary::End::TookOver(reign, standby, last_sign) => {
                    Next::Execute(life.take_over(reign, *standby, &last_sign))
                }
                secondary::End::Stopped(reason) => {
                    tracing::info!("the VM is stopped: {reason}");
                    return Ok(life.end(&format!("the VM is stopped: {reason}")));
                }
                secondary::End::Left => return Ok(life.end("this host was told to let go of the VM")),
                secondary::End::Idle => life.try_to_boot(),
            },
        };
    }
}

/// A role.
enum Next {
    Execute(Box<PrimarySide>),
    Follow(Box<SecondarySide>),
}

impl Life {
    fn begin(config: Config, host: String) -> anyhow::Result<Self> {
        let spec = assembly::machine_spec(&config)?;
        let digest = assembly::common_digest(&config, &spec);
        let state_dir = config.host(&host).state_dir();
        fs::create_dir_all(state_dir)
            .with_context(|| format!("cannot make the state directory {}", state_dir.display()))?;
        let lock = lock_host(state_dir, &config.vm)?;
        let security = Security::of(&config, &host)?;
        let board = Board::new(first_status(&config, &host), still_max(&config));
        let mut arbiter = ConfiguredArbiter::open(&config)?;
        arbiter.keep_in(state_dir, &config.vm)?;
        watch_arbiter(&config, &arbiter, &board)?;
        if let Some(security @ Security::Tls(_)) = &security {
            let watch = Certificates::watch(security.clone(), host.clone(), board.findings().clone())?;
            board.watch_certificates(watch);
        }
        let arbiter = ArbiterThread::start(Box::new(arbiter))?;
        let server = control::Server::start(config.host(&host).control(), board.clone())?;
        let trace = Arc::new(Trace::create(config.host(&host).control()));
        let alarms = Alarms::start(&config, board.clone())?;
        let leaving = signals::take(board.clone(), alarms.clone())?;
        let terminal = match config.host(&host).console {
            config::Console::Stdio => Some(terminal(&board, alarms.clone())?),
            _ => None,
        };
        let config = Arc::new(config);
        let health = HealthWatch::start(config.clone(), host.clone(), &board)?;
        Ok(Self {
            terminal,
            config,
            host,
            spec,
            digest,
            clock: Clock::start(),
            board,
            _lock: lock,
            arbiter,
            health,
            trace,
            security,
            overwrite_disks: None,
            may_start: false,
            not_booted: None,
            failed_boots: 0,
            leaving,
            alarms,
            _server: server,
        })
    }

    /// The process ends as it should: whoever wants to know is told why.
    fn end(&self, reason: &str) -> ExitCode {
        self.say_last(reason);
        ExitCode::SUCCESS
    }

    fn say_last(&self, reason: &str) {
        self.alarms.iter().for_each(|alarms| alarms.end(reason));
    }

    /// The first role.
    fn first(&mut self, start_as: StartAs) -> anyhow::Result<Next> {
        match start_as {
            StartAs::Primary {
                assert_dead,
                adopt_disks,
            } => {
                let side = self.cold_boot(assert_dead, adopt_disks)?;
                return Ok(Next::Execute(side.map_err(anyhow::Error::msg)?));
            }
            StartAs::Secondary { overwrite_disks } => self.overwrite_disks = overwrite_disks,
            StartAs::Either => {
                self.may_start = true;
                match self.cold_boot(None, false)? {
                    Ok(side) => return Ok(Next::Execute(side)),
                    Err(reason) => self.note_not_booted(reason),
                }
            }
        }
        Ok(Next::Follow(self.secondary()?))
    }

    /// Boots the VM, which nobody seems to have, or follows whoever has it.
    fn try_to_boot(&mut self) -> Next {
        match self.cold_boot(None, false) {
            Ok(Ok(side)) => {
                (self.not_booted, self.failed_boots) = (None, 0);
                return Next::Execute(side);
            }
            Ok(Err(reason)) => {
                self.failed_boots = 0;
                self.note_not_booted(reason);
            }
            Err(error) => {
                self.failed_boots = self.failed_boots.saturating_add(1);
                self.note_not_booted(format!("{error:#}"));
            }
        }
        Next::Follow(self.attend())
    }

    fn note_not_booted(&mut self, reason: String) {
        if self.not_booted.as_ref() != Some(&reason) {
            tracing::info!("the VM is not booted here: {reason}");
        }
        self.not_booted = Some(reason);
    }

    /// Says which guest is typed to.
    fn type_to(&self, machine: Option<&Arc<Machine>>) {
        if let Some(terminal) = &self.terminal {
            terminal.type_to(machine.cloned());
        }
    }

    fn incarnation(&self) -> Incarnation {
        Incarnation {
            host: self.host.clone(),
            nonce: rand::random(),
        }
    }

    fn timing(&self) -> Timing {
        let protection = &self.config.protection;
        Timing {
            heartbeat_ms: protection.heartbeat_interval_ms.into(),
            suspicion_ms: protection.suspicion_timeout_ms.into(),
            reconnect_ms: protection.reconnect_timeout_ms.into(),
            progress_ms: protection.progress_timeout_ms.into(),
            max_interval_ms: protection.max_interval_ms.into(),
            interval_ms: protection.interval_ms.into(),
            ..Timing::default()
        }
    }
}

/// Ctrl-A x leaves the console by stopping the VM where it runs, or by ending a secondary.
fn terminal(board: &Arc<Board>, alarms: Option<Arc<Alarms>>) -> anyhow::Result<Terminal> {
    let board = board.clone();
    Terminal::take(move || {
        use control::Control;
        match board.status().role {
            // What came of it is in the log.
            Role::Primary => drop(board.command(control::Command::Stop)),
            _ => {
                signals::leave(&board, alarms.as_deref());
            }
        }
    })
}

/// Begins to watch the arbiter for the life of the process.
/// What is wrong with it would keep this host from taking over.
fn watch_arbiter(config: &Config, arbiter: &ConfiguredArbiter, board: &Arc<Board>) -> anyhow::Result<()> {
    let Some(prober) = arbiter.prober() else {
        return Ok(());
    };
    let findings = board.findings().clone();
    findings.note(
        Source::Arbiter,
        None,
        ["the arbiter: it has not been asked yet".to_owned()],
    );
    let watch = ArbiterWatch::start(prober, config.arbiter.timeout(), move |trouble, valid| {
        let trouble = trouble.map(|trouble| format!("the arbiter: {trouble}"));
        findings.note(Source::Arbiter, Some(valid), trouble);
    });
    board.watch_arbiter(watch.context("cannot start the arbiter's watch")?);
    Ok(())
}

/// One process a host runs a VM. Its lock ends with it, whatever way it dies.
fn lock_host(state_dir: &std::path::Path, vm: &str) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let options = files::own().write(true).create(true).to_owned();
    let file = options
        .open(&path)
        .with_context(|| format!("cannot make the lock {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "the VM {vm} is already run or followed by another process of this host; stop that one first"
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// A loop sends heartbeats as it shows how things stand: who has shown nothing for so long may be suspected.
fn still_max(config: &Config) -> Duration {
    let protection = &config.protection;
    let suspicion_ms = protection.suspicion_timeout_ms;
    Duration::from_millis(
        suspicion_ms
            .saturating_sub(protection.heartbeat_interval_ms)
            .into(),
    )
}

pub(super) fn first_status(config: &Config, host: &str) -> Status {
    Status {
        vm: config.vm.clone(),
        host: host.to_owned(),
        version: crate::VERSION.to_owned(),
        config: Some(format!("{:016x}", config.digest())),
        role: Role::Starting,
        term: 0,
        epoch: 0,
        protection: Protection::Off,
        readiness: None,
        since_s: 0,
        waiting_because: None,
        peer: None,
        arbiter: match config.arbiter.kind {
            config::ArbiterKind::None => NO_ARBITER.to_owned(),
            _ => String::new(),
        },
        arbiter_answered_ms: None,
        arbiter_trouble: None,
        doubt: None,
        warnings: Vec::new(),
        counters: Counters::default(),
        pace: None,
        waits: Waits::default(),
        timings: Timings::default(),
        channels: Vec::new(),
        disks: Vec::new(),
        takeover: None,
        drill: None,
        sandbox: crate::sandbox::lacking(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_of_a_host_has_a_vm_and_the_next_one_when_it_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = lock_host(directory.path(), "demo").expect("nobody has it");
        let refused = lock_host(directory.path(), "demo").expect_err("somebody has it");
        assert!(
            refused.to_string().contains("already run or followed"),
            "{refused}"
        );
        drop(first);
        lock_host(directory.path(), "demo").expect("nobody has it any more");
    }

    #[test]
    fn a_loop_is_taken_for_still_before_the_other_side_suspects_it() {
        let text = include_str!("../../../docs/example.toml");
        let config = Config::parse(text, "test").expect("the example");
        let protection = &config.protection;
        let suspected = Duration::from_millis(protection.suspicion_timeout_ms.into());
        assert!(still_max(&config) < suspected && still_max(&config) > suspected / 2);
    }
}
