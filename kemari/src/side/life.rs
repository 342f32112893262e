//! The life of a process: start, primary or secondary, takeover, and back.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail};
use kemari_sync::{
    ArbiterRequest, CopyLimits, Incarnation, OnSecondaryLoss, PeerWord, PrimaryConfig, Record, Reign,
    SecondaryConfig, Start, StartAction, StartConfig, StartEvent, Timing,
};
use kemari_vmm::machine::{Machine, MachineSpec};

use super::arbiter_thread::ArbiterThread;
use super::assembly;
use super::board::Board;
use super::clock::Clock;
use super::mailbox::Mailbox;
use super::primary::{self, PrimarySide};
use super::query::ask_peer;
use super::readiness::Source;
use super::secondary::{self, LastSign, SecondarySide, Standby};
use super::signals::{self, Leaving};
use super::terminal::Terminal;
use super::trace::Trace;
use crate::arbiter::{ArbiterWatch, ConfiguredArbiter};
use crate::config::{self, Config};
use crate::control::{self, Counters, Protection, Role, Status, Takeover, Timings, Waits};
use crate::link::Security;
use crate::replica::{Image, Tracker};

/// A side that may either run the VM or follow waits so long for a primary before it tries to run it, in milliseconds:
/// the shortest time, and the length of the range that it is drawn from, so that two hosts do not try at once for ever.
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

/// What lasts for the process's life.
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
    /// How the link is protected, if there may be one.
    security: Option<Security>,
    /// See [`StartAs::Secondary`].
    overwrite_disks: Option<String>,
    leaving: Leaving,
    _server: control::Server,
}

/// Runs a side until the VM is stopped.
pub fn run(config: Config, host: String, start_as: StartAs) -> anyhow::Result<ExitCode> {
    super::faults::set_up()?;
    let mut life = Life::begin(config, host)?;
    let may_start = start_as == StartAs::Either;
    let mut next = match start_as {
        StartAs::Primary {
            assert_dead,
            adopt_disks,
        } => life
            .cold_boot(assert_dead, adopt_disks)?
            .map_err(anyhow::Error::msg)?,
        StartAs::Secondary { overwrite_disks } => {
            life.overwrite_disks = overwrite_disks;
            Next::Follow
        }
        StartAs::Either => Next::Try,
    };
    let mut refusal = String::new();
    loop {
        next = match next {
            Next::Execute(side) => match side.run() {
                primary::End::Stopped(reason) => {
                    tracing::info!("the VM is stopped: {reason}");
                    return Ok(ExitCode::SUCCESS);
                }
                primary::End::Halted(reason) => {
                    tracing::warn!("the VM does not run here any more: {reason}");
                    if life.leaving.is_wanted() {
                        return Ok(ExitCode::SUCCESS);
                    }
                    Next::Follow
                }
            },
            Next::Follow => match life.follow(may_start)? {
                secondary::End::TookOver(reign, standby, last_sign) => {
                    life.take_over(reign, *standby, &last_sign)?
                }
                secondary::End::Stopped(reason) => {
                    tracing::info!("the VM is stopped: {reason}");
                    return Ok(ExitCode::SUCCESS);
                }
                secondary::End::Left => return Ok(ExitCode::SUCCESS),
                secondary::End::Idle => Next::Try,
            },
            Next::Try => match life.cold_boot(None, false)? {
                Ok(next) => next,
                Err(reason) => {
                    if reason != refusal {
                        tracing::info!("the VM is not booted here: {reason}");
                        refusal = reason;
                    }
                    Next::Follow
                }
            },
        };
    }
}

enum Next {
    Execute(Box<PrimarySide>),
    Follow,
    /// Boots the VM, or follows if that is refused.
    Try,
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
        let board = Board::new(first_status(&config, &host));
        watch_arbiter(&config, &board)?;
        let server = control::Server::start(config.host(&host).control(), board.clone())?;
        let leaving = signals::take(board.clone())?;
        let terminal = match config.host(&host).console {
            config::Console::Stdio => Some(terminal(&board)?),
            _ => None,
        };
        Ok(Self {
            terminal,
            config: Arc::new(config),
            host,
            spec,
            digest,
            clock: Clock::start(),
            board,
            _lock: lock,
            security,
            overwrite_disks: None,
            leaving,
            _server: server,
        })
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

    /// Wins a term, builds the machine and boots it. The inner error is why the VM may not be started here.
    fn cold_boot(&self, assert_dead: Option<u64>, adopt_disks: bool) -> anyhow::Result<Result<Next, String>> {
        let images = Image::open_all(&self.config, &self.host, None)?;
        let mailbox = Mailbox::new()?;
        let sink = mailbox.clone();
        let events = Arc::new(move |event| sink.post(primary::Input::Machine(event)));
        let machine = Arc::new(assembly::build(
            &self.config,
            &self.host,
            self.spec.clone(),
            events,
        )?);
        let me = self.incarnation();
        let record = match self.win(&me, assert_dead, &images, adopt_disks)? {
            Ok(record) => record,
            Err(reason) => return Ok(Err(reason)),
        };
        for image in &images {
            image.start(record.term, adopt_disks)?;
        }
        let trackers = assembly::watch_disks(&machine, &self.config, &images)?;
        assembly::attach_disks(&machine, &self.config, &self.host, false)?;
        assembly::attach_nets(&machine, &self.config, &self.host)?;
        machine.boot()?;
        Ok(Ok(Next::Execute(Box::new(self.primary(
            me,
            Reign {
                record,
                last_epoch: 0,
            },
            machine,
            mailbox,
            trackers,
        )?))))
    }

    /// Asks a host what it holds of the VM.
    fn ask(&self, host: &str, address: SocketAddr) -> PeerWord {
        match &self.security {
            Some(security) => ask_peer(security, host, address),
            None => PeerWord::Silent(
                "the configuration names neither `certificates` nor `plaintext = true`".into(),
            ),
        }
    }

    /// Asks the arbiter for a term. The inner error is why it is refused.
    fn win(
        &self,
        me: &Incarnation,
        assert_dead: Option<u64>,
        images: &[Arc<Image>],
        adopt_images: bool,
    ) -> anyhow::Result<Result<Record, String>> {
        let (sender, inputs) = channel();
        let answers = sender.clone();
        let arbiter = ArbiterThread::start(
            Box::new(ConfiguredArbiter::open(&self.config)?),
            move |ask, answer| {
                // The start may have ended already.
                let _ = answers.send(StartEvent::Arbiter { ask, answer });
            },
        )?;
        let mut start = Start::new(StartConfig {
            me: me.clone(),
            vm: self.config.vm.clone(),
            store: rand::random(),
            assert_dead,
            // The lock on the state directory is held: every older process of this host is dead.
            alone_on_host: true,
            ask_retry_ms: Timing::default().ask_retry_ms,
            images: images.iter().map(|image| image.offer()).collect(),
            adopt_images,
        });
        let mut event = StartEvent::Tick;
        loop {
            let mut actions = Vec::new();
            start.handle(self.clock.now_ms(), event, &mut actions);
            for action in actions {
                match action {
                    StartAction::Ask { ask, request } => {
                        if let ArbiterRequest::Swap { new, .. } = &request {
                            for image in images {
                                image.announce(new.term)?;
                            }
                        }
                        arbiter.ask(ask, request);
                    }
                    StartAction::AskPeer(peer) => {
                        let word = match self.config.hosts.get(&peer.host) {
                            Some(host) => self.ask(&peer.host, host.listen),
                            None => PeerWord::Silent("it is not in the configuration".into()),
                        };
                        // This function holds the receiver.
                        let _ = sender.send(StartEvent::Peer(word));
                    }
                    StartAction::Run(record) => return Ok(Ok(record)),
                    StartAction::Refuse(reason) => return Ok(Err(reason)),
                }
            }
            let now_ms = self.clock.now_ms();
            let wait_ms = start
                .next_deadline()
                .map_or(1000, |due_ms| due_ms.saturating_sub(now_ms));
            event = inputs
                .recv_timeout(Duration::from_millis(wait_ms))
                .unwrap_or(StartEvent::Tick);
        }
    }

    fn primary(
        &self,
        me: Incarnation,
        reign: Reign,
        machine: Arc<Machine>,
        mailbox: Arc<Mailbox<primary::Input>>,
        trackers: Vec<Arc<Tracker>>,
    ) -> anyhow::Result<PrimarySide> {
        self.type_to(Some(&machine));
        let protection = &self.config.protection;
        let mut arbiter = ConfiguredArbiter::open(&self.config)?;
        arbiter.assume(&reign.record);
        let answers = mailbox.clone();
        let arbiter = ArbiterThread::start(Box::new(arbiter), move |ask, answer| {
            answers.post(primary::Input::Arbiter(ask, answer));
        })?;
        PrimarySide::new(primary::Setup {
            config: self.config.clone(),
            host: self.host.clone(),
            mechanism: PrimaryConfig {
                me,
                config_digest: self.digest,
                mode: protection.mode.into(),
                timing: self.timing(),
                copy: CopyLimits::default(),
                on_secondary_loss: match protection.on_secondary_loss {
                    config::OnSecondaryLoss::Continue => OnSecondaryLoss::Continue,
                    config::OnSecondaryLoss::Stop => OnSecondaryLoss::Stop,
                },
                protect: protection.enabled,
                sources: trackers
                    .iter()
                    .filter_map(|tracker| tracker.image().source())
                    .collect(),
            },
            reign,
            machine,
            mailbox,
            arbiter,
            board: self.board.clone(),
            security: self.security.clone(),
            clock: self.clock,
            trace: Trace::create(self.config.host(&self.host).state_dir())?,
            trackers,
        })
    }

    /// Waits for primaries, until one dies.
    fn follow(&self, may_start: bool) -> anyhow::Result<secondary::End> {
        self.type_to(None);
        let security = self.security.clone().context(
            "a secondary needs a link: name `certificates`, or say `plaintext = true`, in [protection]",
        )?;
        let mailbox = Mailbox::new()?;
        let answers = mailbox.clone();
        let arbiter = ArbiterThread::start(
            Box::new(ConfiguredArbiter::open(&self.config)?),
            move |ask, answer| {
                answers.post(secondary::Input::Arbiter(ask, answer));
            },
        )?;
        let shares_disk = self
            .config
            .disks
            .iter()
            .any(|disk| disk.shared && !disk.read_only);
        let side = SecondarySide::new(secondary::Setup {
            config: self.config.clone(),
            host: self.host.clone(),
            spec: self.spec.clone(),
            mechanism: SecondaryConfig {
                me: self.incarnation(),
                vm: self.config.vm.clone(),
                config_digest: self.digest,
                timing: self.timing(),
                fence: shares_disk,
                // Known once the staging is there.
                staging_pages_max: 0,
            },
            mailbox,
            arbiter,
            board: self.board.clone(),
            security,
            clock: self.clock,
            overwrite_disks: self.overwrite_disks.clone(),
            idle_ms_max: may_start.then(|| rand::random_range(IDLE_MS..IDLE_MS + IDLE_RANGE_MS)),
        })?;
        Ok(side.run())
    }

    /// The term is won and the state is restored: the VM goes on here.
    fn take_over(&self, reign: Reign, standby: Standby, last_sign: &LastSign) -> anyhow::Result<Next> {
        let Standby {
            machine,
            mailbox,
            trackers,
            ..
        } = standby;
        // Noted at the restore already, unless the term was lost and won again since.
        for tracker in &trackers {
            tracker.image().rule(reign.record.term, false)?;
        }
        machine.open_gate();
        machine.wake();
        let me = reign.record.owner.clone();
        let mut side = self.primary(me, reign, machine.clone(), mailbox, trackers)?;
        side.note_takeover();
        machine.resume();
        let ms = (self.clock.now_us() - last_sign.heard_us) as f64 / 1000.0;
        let planned_pause_ms = last_sign.paused_ms.map(|paused_ms| paused_ms as f64 + ms);
        match planned_pause_ms {
            Some(ms) => {
                tracing::info!("the VM goes on here, as planned; the guest stood still for {ms:.1} ms")
            }
            None => tracing::info!("the VM goes on here, {ms:.1} ms after the last sign of the old primary"),
        }
        let cut_in_step = Some(last_sign.step.to_owned());
        self.board.show(|status| {
            status.takeover = Some(Takeover {
                ms,
                cut_in_step,
                planned_pause_ms,
            })
        });
        Ok(Next::Execute(Box::new(side)))
    }
}

/// Ctrl-A x leaves the console by stopping the VM where it runs, or by ending a secondary.
fn terminal(board: &Arc<Board>) -> anyhow::Result<Terminal> {
    let board = board.clone();
    Terminal::take(move || {
        use control::Control;
        match board.status().role {
            // What came of it is in the log.
            Role::Primary => drop(board.command(control::Command::Stop)),
            _ => std::process::exit(0),
        }
    })
}

/// Begins to watch the arbiter for the life of the process. What is wrong with it would keep this host from taking over.
fn watch_arbiter(config: &Config, board: &Arc<Board>) -> anyhow::Result<()> {
    let Some(prober) = ConfiguredArbiter::open(config)?.prober() else {
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
    let file = File::create(&path).with_context(|| format!("cannot make the lock {}", path.display()))?;
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

fn first_status(config: &Config, host: &str) -> Status {
    Status {
        vm: config.vm.clone(),
        host: host.to_owned(),
        version: crate::VERSION.to_owned(),
        role: Role::Starting,
        term: 0,
        epoch: 0,
        protection: Protection::Off,
        readiness: None,
        since_s: 0,
        waiting_because: None,
        peer: None,
        arbiter: String::new(),
        arbiter_answered_ms: None,
        counters: Counters::default(),
        pace: None,
        waits: Waits::default(),
        timings: Timings::default(),
        disks: Vec::new(),
        takeover: None,
    }
}
