//! Hosts as network namespaces on this machine.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lab::{Etcd, LocalNet, Netns, Network, Process, guest_address, replication_address};
use rustix::process::Signal;
use tempfile::TempDir;
use toml::Table;

use super::config::{Arbiter, HostPlan, Plan};
use super::forgetful::ForgetfulFile;
use super::options::{Cut, Disk, Fault, Flush, Options, Pace};
use super::pair::{
    FORGET_HOST, FORGET_OUTSIDE, GUEST_MAC, Image, LINK_PORT, Pair, Place, Role, STOP_MAX, Side, Status,
    run_dir, term_in,
};
use crate::tools::{output_of, tail, wait_for};

/// Lines of a program's log that are shown when it has ended.
const LOG_LINES_MAX: usize = 30;
/// Where the control sockets lie: a file system in memory, without which a side notes no step.
const IN_MEMORY: &str = "/dev/shm";
/// Starts of a VM whose hosts were both dead, at most: the record may change once more.
const BOOTS_MAX: u32 = 3;
/// Extension of the file beside the control socket in which a side notes its step: number and epoch, as
/// little-endian u64. It is mapped, so that what was noted last outlives a SIGKILL.
const STEP_EXTENSION: &str = "step";
/// Names of the steps by number (`Step` in kemari/src/side/trace.rs).
const STEPS: [(u64, &str); 6] = [
    (1, "running"),
    (2, "copying"),
    (3, "capturing"),
    (4, "sending"),
    (5, "awaiting ack"),
    (6, "releasing"),
];

/// This machine: two namespaces and an etcd, used for one run after the other.
// The order of the fields is the order of their end.
#[derive(Debug)]
pub struct LocalPlace {
    program: PathBuf,
    image: Image,
    etcd: Etcd,
    net: LocalNet,
}

impl LocalPlace {
    /// Runs `program` with VMs that boot `image`.
    pub fn new(program: PathBuf, image: Image) -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        ensure!(
            root,
            "network namespaces need root: run the demo as root (for example with sudo)"
        );
        let net = LocalNet::new(2, 1)?;
        let etcd = Etcd::start(net.outside())?;
        Ok(Self {
            program,
            image,
            etcd,
            net,
        })
    }
}

impl Place for LocalPlace {
    fn name(&self) -> &'static str {
        "local"
    }

    fn pace(&self) -> Pace {
        Pace::LOCAL
    }

    fn make(&mut self, number: u64, options: &Options) -> Result<Box<dyn Pair + '_>> {
        for side in Side::BOTH {
            let host = self.net.host(side.number());
            // Administratively up: its carrier comes when the program opens it.
            host.netns()
                .ip(&format!("link set {} up\n{FORGET_HOST}", host.tap(0)))?;
            self.net.up(side.number())?;
        }
        self.net.outside().ip(FORGET_OUTSIDE)?;
        Ok(Box::new(LocalPair::new(self, number, options)?))
    }
}

/// Two namespaces with a VM between them.
// The order of the fields is the order of their end.
struct LocalPair<'a> {
    place: &'a LocalPlace,
    directory: PathBuf,
    /// The image of each side.
    images: Vec<PathBuf>,
    fault: Option<Fault>,
    processes: [Option<Process>; 2],
    link_cut: bool,
    /// Those of the images that forget.
    forgetful: Vec<ForgetfulFile>,
    _images_dir: TempDir,
    sockets: TempDir,
}

impl<'a> LocalPair<'a> {
    /// Makes two fresh hosts, with nothing started on them; with a shared disk,
    /// or images that are replicated.
    fn new(place: &'a LocalPlace, number: u64, options: &Options) -> Result<Self> {
        let directory = run_dir();
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).with_context(|| format!("{} cannot be made", directory.display()))?;
        let replicated = (options.disk == Disk::Replicated).then_some(options.flush);
        let (disk, images_dir) = (&place.image.disk, tempfile::tempdir()?);
        let (mut forgetful, mut images) = (Vec::new(), Vec::new());
        for side in Side::BOTH {
            match (replicated, disk) {
                (Some(_), super::pair::Disk::Empty(mib)) if options.cut == Cut::Both => {
                    let path = disk_of(images_dir.path(), side, true);
                    images.push(path.clone());
                    let ignores_flushes = options.fault == Some(Fault::NoFsync);
                    forgetful.push(ForgetfulFile::mount(path, mib << 20, ignores_flushes)?);
                }
                _ => images.push(disk_of(&directory, side, replicated.is_some())),
            }
        }
        if forgetful.is_empty() {
            disk.write_to(&images[0])?;
            if replicated.is_some() {
                // What is on the secondary's image at first does not matter.
                super::pair::Disk::Empty(disk.bytes()? >> 20).write_to(&images[1])?;
            }
        }
        let sockets = tempfile::tempdir_in(IN_MEMORY)
            .with_context(|| format!("no directory for sockets can be made in {IN_MEMORY}"))?;
        let plan = place.plan(&directory, sockets.path(), number, replicated, &images);
        fs::write(directory.join("demo.toml"), plan.to_toml()?)?;
        Ok(Self {
            place,
            directory,
            images,
            fault: options.fault,
            processes: [None, None],
            link_cut: false,
            forgetful,
            _images_dir: images_dir,
            sockets,
        })
    }

    fn config(&self) -> PathBuf {
        self.directory.join("demo.toml")
    }

    /// Starts a side; what it says is added to its log.
    fn launch(&mut self, side: Side, role: Role) -> Result<()> {
        self.launch_with(side, role, &[])
    }

    fn launch_with(&mut self, side: Side, role: Role, more: &[&str]) -> Result<()> {
        let subcommand = role.subcommand();
        let log = self.log(side);
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("{} cannot be written", log.display()))?;
        let mut command = self
            .place
            .net
            .host(side.number())
            .netns()
            .command(&self.place.program);
        command
            .arg(subcommand)
            .arg(self.config())
            .args(["--host", side.name()])
            .args(more);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        if let Some(words) = self.fault.and_then(Fault::environment) {
            command.env("KEMARI_FAULTS", words);
        }
        let process = Process::spawn(format!("kemari {subcommand}"), command)?;
        fs::write(self.directory.join(side.pid_file()), process.pid().to_string())?;
        self.processes[side.number()] = Some(process);
        Ok(())
    }

    /// SIGKILL, if the side still runs.
    fn kill(&mut self, side: Side) -> Result<()> {
        if let Some(mut process) = self.processes[side.number()].take() {
            process.kill()?;
        }
        Ok(())
    }

    /// The step that a side noted last.
    fn step_of(&self, side: Side) -> Option<String> {
        let bytes = fs::read(socket(self.sockets.path(), side).with_extension(STEP_EXTENSION)).ok()?;
        let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let name = STEPS.iter().find(|(of, _)| *of == number);
        Some(name.map_or(format!("step {number}"), |(_, name)| (*name).to_owned()))
    }

    fn asking(&self, side: Side, order: &[&str]) -> Command {
        let mut command = Command::new(&self.place.program);
        command
            .args(order)
            .arg(self.config())
            .args(["--host", side.name()]);
        command
    }

    fn log(&self, side: Side) -> PathBuf {
        self.directory.join(format!("{}.log", side.name()))
    }
}

impl Pair for LocalPair<'_> {
    fn service(&self) -> SocketAddr {
        (guest_address(0), self.place.image.port).into()
    }

    fn clients(&self) -> Netns {
        self.place.net.outside().clone()
    }

    fn start(&mut self, side: Side, role: Role) -> Result<()> {
        self.launch(side, role)
    }

    fn check_alive(&mut self) -> Result<()> {
        for side in Side::BOTH {
            let log = self.log(side);
            if let Some(process) = &mut self.processes[side.number()]
                && !process.is_running()
            {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let (name, end) = (process.name().to_owned(), tail(&text, LOG_LINES_MAX));
                self.processes[side.number()] = None;
                if self.link_cut && self.processes.iter().any(Option::is_some) {
                    continue;
                }
                bail!(
                    "`{name}` on host {} has ended; the end of {}:\n{end}",
                    side.name(),
                    log.display()
                );
            }
        }
        Ok(())
    }

    fn status(&mut self, side: Side) -> Result<Option<Status>> {
        if self.processes[side.number()].is_none() {
            return Ok(None);
        }
        match output_of(&mut self.asking(side, &["status", "--json"])) {
            Ok(json) => Status::parse(&json).map(Some),
            // It has not come so far, or it has just ended, which `check_alive` tells.
            Err(_) => Ok(None),
        }
    }

    fn cut(&mut self, side: Side, cut: Cut) -> Result<()> {
        let number = side.number();
        if let Some(before) = self.fault.and_then(Fault::link_dies_before) {
            self.place.net.cut(number, Network::Replication)?;
            std::thread::sleep(before);
        }
        match cut {
            Cut::None => return Ok(()),
            Cut::Link => {
                self.link_cut = true;
                return Ok(self.place.net.cut(number, Network::Replication)?);
            }
            Cut::Power => self.place.net.down(number)?,
            Cut::Both => {
                // At once: neither sees the other one die.
                self.signal(side, Signal::KILL)?;
                self.kill(side.other())?;
            }
            Cut::Kill => {}
        }
        self.kill(side)?;
        if cut == Cut::Both {
            self.forgetful.iter().for_each(ForgetfulFile::lose_power);
        }
        Ok(())
    }

    fn mend(&mut self, side: Side) -> Result<()> {
        self.place.net.up(side.number())?;
        self.link_cut = false;
        match self.is_running(side)? {
            true => Ok(()),
            false => self.launch(side, Role::Secondary),
        }
    }

    fn is_running(&mut self, side: Side) -> Result<bool> {
        let process = self.processes[side.number()].as_mut();
        Ok(process.is_some_and(Process::is_running))
    }

    fn signal(&mut self, side: Side, signal: Signal) -> Result<()> {
        let living = self.is_running(side)?;
        match self.processes[side.number()].as_ref().filter(|_| living) {
            Some(process) => Ok(process.signal(signal)?),
            None => Ok(()),
        }
    }

    fn order(&self, side: Side, order: &[&str]) -> Result<String> {
        output_of(&mut self.asking(side, order))
    }

    fn set_joined(&self, side: Side, network: Network, joined: bool) -> Result<()> {
        match joined {
            true => self.place.net.join(side.number(), network)?,
            false => self.place.net.cut(side.number(), network)?,
        }
        Ok(())
    }

    fn set_plugged(&self, side: Side, plugged: bool) -> Result<()> {
        match plugged {
            true => self.place.net.plug(side.number(), Network::Guests)?,
            false => self.place.net.unplug(side.number(), Network::Guests)?,
        }
        Ok(())
    }

    fn set_bridged(&self, side: Side, bridged: bool) -> Result<()> {
        let host = self.place.net.host(side.number());
        let end = if bridged { "master br0" } else { "nomaster" };
        Ok(host.netns().ip(&format!("link set {} {end}", host.tap(0)))?)
    }

    fn set_bridge_up(&self, side: Side, up: bool) -> Result<()> {
        let host = self.place.net.host(side.number());
        let end = if up { "up" } else { "down" };
        Ok(host.netns().ip(&format!("link set br0 {end}"))?)
    }

    fn set_host_running(&self, _: Side, _: bool) -> Result<()> {
        bail!("a namespace is no host that could stand still: this takes emulated hosts")
    }

    fn set_arbiter_answering(&self, answering: bool) -> Result<()> {
        match answering {
            true => self.place.etcd.resume()?,
            false => self.place.etcd.pause()?,
        }
        Ok(())
    }

    fn boot_anew(&mut self, side: Side) -> Result<()> {
        for _ in 0..BOOTS_MAX {
            // It may find errors, as that the peer does not answer.
            let check = self.asking(side, &["check"]).stdin(Stdio::null()).output()?;
            let term = term_in(&String::from_utf8_lossy(&check.stdout))?.to_string();
            self.launch_with(side, Role::Primary, &["--assert-dead", &term])?;
            let has_begun = wait_for("a start or a refusal", Pace::LOCAL.boot_max, || {
                let runs = self.is_running(side)?;
                Ok((!runs || self.status(side)?.is_some()).then_some(runs))
            })?;
            // Else the record has changed meanwhile: of the dead one's asks one was still on its way to the
            // arbiter.
            if has_begun {
                break;
            }
        }
        Ok(())
    }

    fn loss(&self, side: Side) -> Option<lab::Loss> {
        self.forgetful.get(side.number()).map(ForgetfulFile::loss)
    }

    fn stop(&mut self, primary: Side) -> Result<Vec<PathBuf>> {
        self.order(primary, &["stop"])?;
        for side in Side::BOTH {
            let Some(mut process) = self.processes[side.number()].take() else {
                continue;
            };
            let status = process.wait(STOP_MAX)?;
            let status = status.with_context(|| format!("kemari on host {} does not end", side.name()))?;
            ensure!(
                status.success(),
                "kemari on host {} has ended with {status}; the end of its log:\n{}",
                side.name(),
                tail(
                    &fs::read_to_string(self.log(side)).unwrap_or_default(),
                    LOG_LINES_MAX
                )
            );
        }
        let image = |side: Side| self.images[side.number()].clone();
        let mut images = vec![image(primary), image(primary.other())];
        images.dedup();
        Ok(images)
    }

    fn step_at_cut(&self, side: Side) -> Option<String> {
        self.step_of(side)
    }

    fn save_logs(&mut self) {
        // They are there from the beginning.
    }
}

/// The image of a side: with a shared disk both have the same.
fn disk_of(directory: &Path, side: Side, replicated: bool) -> PathBuf {
    match replicated {
        true => directory.join(format!("{}.disk.img", side.name())),
        false => directory.join("disk.img"),
    }
}

/// The control socket of a side, in the directory for them.
fn socket(sockets: &Path, side: Side) -> PathBuf {
    sockets.join(format!("{}.sock", side.name()))
}

impl LocalPlace {
    fn plan(
        &self,
        directory: &Path,
        sockets: &Path,
        number: u64,
        replicated: Option<Flush>,
        images: &[PathBuf],
    ) -> Plan {
        let disk = |side: Side| images[side.number()].clone();
        let host = |side: Side, other: Side| HostPlan {
            listen: SocketAddr::from((replication_address(side.number()), LINK_PORT)).to_string(),
            control: socket(sockets, side),
            console: Some(directory.join(format!("{}.console", side.name()))),
            fence: replicated
                .is_none()
                .then(|| fence(&directory.join(other.pid_file()))),
            state_dir: directory.join(side.state_dir()),
            tap: self.net.host(side.number()).tap(0),
            disk: disk(side),
        };
        Plan {
            vm: format!("demo-{number:016x}"),
            kernel: self.image.kernel.clone(),
            is_firmware: self.image.is_firmware,
            initrd: self.image.initrd.clone(),
            cmdline: self.image.cmdline.clone(),
            memory_mib: self.image.memory_mib,
            replicated,
            direct: takes_o_direct(&disk(Side::A)),
            vcpus: self.image.vcpus,
            disk_queues: self.image.disk_queues,
            mac: GUEST_MAC.into(),
            arbiter: Arbiter::Etcd(self.etcd.endpoint()),
            protected: true,
            mode: "lockstep",
            tuning: Table::new(),
            suspicion_timeout_ms: Pace::LOCAL.suspicion_timeout.as_millis() as u64,
            heartbeat_interval_ms: 100,
            reconnect_timeout_ms: 300,
            hosts: [host(Side::A, Side::B), host(Side::B, Side::A)],
        }
    }
}

/// A command that ends the other host's program and waits until it holds no file any more: here, where both
/// have one kernel, that is all of the other host that could still write.
pub(crate) fn fence(pid_file: &Path) -> Vec<String> {
    let script = format!(
        "p=$(cat '{}') || exit 0; kill -KILL $p 2>/dev/null; \
         while grep -q '^State:[[:space:]]*[^[:space:]ZX]' /proc/$p/task/*/status 2>/dev/null; do sleep \
         0.01; done",
        pid_file.display()
    );
    ["/bin/sh", "-c", &script].map(String::from).to_vec()
}

fn takes_o_direct(path: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(path)
        .is_ok()
}
