//! One measured VM: a pair, or a VM that nobody protects.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Process, guest_address};
use rustix::process::Signal;
use toml::Table;

use super::place::{CORE_OF_A, CORE_OF_B, Place, tap};
use super::service::{Caller, Clients};
use super::status::Status;
use crate::demo::config::{Arbiter, HostPlan, Plan};
use crate::demo::options::Flush;
use crate::demo::pair::{BARE_PORT, Side, bare_cmdline};
use crate::tools::{output_of, tail, wait_for};

/// First port of the links.
const LINK_PORT: u16 = 7700;
/// Until the guest's service answers.
const BOOT_MAX: Duration = Duration::from_secs(20);
/// Until a VM is protected; its memory is copied first.
const PROTECT_MAX: Duration = Duration::from_secs(90);
/// Size of the disk in bytes.
const DISK_BYTES: u64 = 16 << 20;
/// Lines of a program's log that are shown when it has ended.
const LOG_LINES_MAX: usize = 30;
const HEARTBEAT_INTERVAL_MS: u64 = 100;
/// The pairs' time-out of silence, in ms.
pub const SUSPICION_TIMEOUT_MS: u64 = 1000;
/// The pairs' time-out of a link that was reset, in ms.
pub const RECONNECT_TIMEOUT_MS: u64 = 300;

/// What a VM is to be.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Memory.
    pub memory_mib: u32,
    /// `protection.mode`; `None`: nobody protects it.
    pub mode: Option<&'static str>,
    /// Further keys of `[protection]`.
    pub tuning: Table,
    /// Further words for the guest.
    pub cmdline: String,
    /// When a guest's flush is done, if each side has an image of its own; `None`: both have the same one.
    pub replicated: Option<Flush>,
}

impl VmSpec {
    /// A small VM that is protected in this mode.
    pub fn protected(mode: &'static str) -> Self {
        Self {
            memory_mib: 128,
            mode: Some(mode),
            tuning: Table::new(),
            cmdline: String::new(),
            replicated: Some(Flush::Memory),
        }
    }

    /// A small VM that is protected in this mode, its pages sent as they are,
    /// and each sync as soon as may be.
    pub fn raw(mode: &'static str) -> Self {
        Self::protected(mode).with("delta", "off").with("gather", "off")
    }

    /// A small VM that is not.
    pub fn unprotected() -> Self {
        Self {
            mode: None,
            ..Self::protected("lockstep")
        }
    }

    /// With a further key of `[protection]`.
    pub fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.tuning.insert(key.into(), value.into());
        self
    }
}

/// A VM and its processes.
pub struct Vm<'a> {
    place: &'a Place,
    number: usize,
    program: PathBuf,
    directory: PathBuf,
    processes: [Option<Process>; 2],
    /// From the begin of protection to its end, the first copy.
    pub protect_s: Option<f64>,
}

impl<'a> Vm<'a> {
    /// Starts VM `number` of the place, and waits until it serves and is protected.
    pub fn start(place: &'a Place, number: usize, program: &Path, spec: &VmSpec) -> Result<Self> {
        let directory = place.directory().join(format!("vm{number}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("arbiter"))
            .with_context(|| format!("{} cannot be made", directory.display()))?;
        // The file arbiter wants a word that this directory is the storage that both hosts see.
        fs::write(directory.join("arbiter/kemari-arbiter"), "")
            .context("the arbiter's mark cannot be written")?;
        let mut vm = Self {
            place,
            number,
            program: program.to_owned(),
            directory,
            processes: [None, None],
            protect_s: None,
        };
        for side in Side::BOTH {
            let disk = fs::File::create(vm.disk(side, spec)).context("the disk cannot be made")?;
            disk.set_len(DISK_BYTES).context("the disk cannot be made")?;
        }
        fs::write(vm.config(), vm.plan(spec).to_toml()?).context("the configuration cannot be written")?;
        vm.spawn(Side::A, "run")?;
        wait_for("an answer of the guest's service", BOOT_MAX, || {
            vm.check_alive()?;
            Ok(vm.caller().and_then(|mut caller| caller.ask(&["PING"])).ok())
        })?;
        if spec.mode.is_some() {
            vm.protect()?;
        }
        Ok(vm)
    }

    fn protect(&mut self) -> Result<()> {
        let begin = Instant::now();
        self.spawn(Side::B, "secondary")?;
        wait_for("protection", PROTECT_MAX, || {
            self.check_alive()?;
            let status = self.status(Side::A).ok();
            Ok(status.filter(Status::is_protected).map(drop))
        })?;
        self.protect_s = Some(begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn spawn(&mut self, side: Side, subcommand: &str) -> Result<()> {
        let log = self.log(side);
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("{} cannot be written", log.display()))?;
        let core = [CORE_OF_A, CORE_OF_B][side.number()];
        let mut command = self.place.netns().command("taskset");
        command
            .args(["--cpu-list", &core.to_string()])
            .arg(&self.program)
            .arg(subcommand)
            .arg(self.config())
            .args(["--host", side.name()])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let process = Process::spawn(format!("kemari {subcommand}"), command)?;
        fs::write(self.pid_file(side), process.pid().to_string())?;
        self.processes[side.number()] = Some(process);
        Ok(())
    }

    /// Fails, with the end of its log, if a process has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        for side in Side::BOTH {
            let log = self.log(side);
            if let Some(process) = &mut self.processes[side.number()]
                && !process.is_running()
            {
                let text = fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "`{}` of VM {} has ended; the end of its log:\n{}",
                    process.name(),
                    self.number,
                    tail(&text, LOG_LINES_MAX)
                );
            }
        }
        Ok(())
    }

    /// One connection to the guest.
    pub fn caller(&self) -> Result<Caller> {
        Caller::new(self.place.netns(), self.service())
    }

    /// Clients of the guest's service.
    pub fn clients(&self, count: usize) -> Result<Clients> {
        Clients::new(self.place.netns(), self.service(), count)
    }

    fn service(&self) -> std::net::SocketAddr {
        (guest_address(self.number), BARE_PORT).into()
    }

    /// What a side says of itself.
    pub fn status(&self, side: Side) -> Result<Status> {
        Status::parse(&output_of(self.order(side, "status").arg("--json"))?)
    }

    /// An order to a side, to be carried out.
    pub fn order(&self, side: Side, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(subcommand)
            .arg(self.config())
            .args(["--host", side.name()]);
        command
    }

    /// Processor time that a side has used, in ms.
    pub fn processor_ms(&self, side: Side) -> Result<f64> {
        let process = self.processes[side.number()]
            .as_ref()
            .context("nothing runs on that side")?;
        Ok(lab::processor_ticks(process.pid())? as f64 * 1000.0 / lab::TICKS_PER_S as f64)
    }

    /// SIGKILL: the connections are reset.
    pub fn kill(&mut self, side: Side) -> Result<()> {
        let process = self.processes[side.number()].take();
        Ok(process.context("nothing runs on that side")?.kill()?)
    }

    /// SIGSTOP: silence.
    pub fn freeze(&mut self, side: Side) -> Result<()> {
        let process = self.processes[side.number()].as_ref();
        Ok(process
            .context("nothing runs on that side")?
            .signal(Signal::STOP)?)
    }

    fn config(&self) -> PathBuf {
        self.directory.join("vm.toml")
    }

    fn disk(&self, side: Side, spec: &VmSpec) -> PathBuf {
        let owner = if spec.replicated.is_some() { side } else { Side::A };
        self.directory.join(format!("{}.img", owner.name()))
    }

    fn log(&self, side: Side) -> PathBuf {
        self.directory.join(format!("{}.log", side.name()))
    }

    fn pid_file(&self, side: Side) -> PathBuf {
        self.directory.join(format!("{}.pid", side.name()))
    }

    fn plan(&self, spec: &VmSpec) -> Plan {
        let directory = &self.directory;
        let host = |side: Side| HostPlan {
            listen: format!(
                "127.0.0.1:{}",
                LINK_PORT + 2 * self.number as u16 + side.number() as u16
            ),
            control: directory.join(format!("{}.sock", side.name())),
            console: Some(directory.join(format!("{}.console", side.name()))),
            fence: spec
                .replicated
                .is_none()
                .then(|| fence(&self.pid_file(side.other()))),
            state_dir: directory.join(format!("{}.state", side.name())),
            tap: tap(self.number, side.name()),
            disk: self.disk(side, spec),
        };
        Plan {
            vm: format!("bench-{}", self.number),
            kernel: self.place.guest().to_owned(),
            is_firmware: false,
            initrd: None,
            cmdline: format!("{} {}", bare_cmdline(self.number), spec.cmdline),
            memory_mib: spec.memory_mib,
            vcpus: 1,
            disk_queues: 1,
            replicated: spec.replicated,
            mac: format!("52:54:00:4b:10:{:02x}", self.number),
            direct: false,
            arbiter: Arbiter::File(directory.join("arbiter")),
            protected: spec.mode.is_some(),
            mode: spec.mode.unwrap_or("lockstep"),
            tuning: spec.tuning.clone(),
            suspicion_timeout_ms: SUSPICION_TIMEOUT_MS,
            heartbeat_interval_ms: HEARTBEAT_INTERVAL_MS,
            reconnect_timeout_ms: RECONNECT_TIMEOUT_MS,
            hosts: [host(Side::A), host(Side::B)],
        }
    }
}

/// Kills the other side. It need not wait: both sides have one kernel,
/// which writes nothing more for a dead process.
fn fence(pid_file: &Path) -> Vec<String> {
    let script = format!("kill -KILL $(cat '{}') 2>/dev/null; true", pid_file.display());
    ["/bin/sh", "-c", &script].map(String::from).to_vec()
}

/// Waits until side B executes the VM, and says how long after the last sign of side A its guest ran again,
/// in ms.
pub fn takeover_ms(vm: &Vm<'_>, limit: Duration) -> Result<f64> {
    let takeover = wait_for("the takeover", limit, || {
        Ok(vm.status(Side::B).ok().and_then(|status| status.takeover))
    })?;
    ensure!(takeover.ms > 0.0, "the takeover took {} ms", takeover.ms);
    Ok(takeover.ms)
}
