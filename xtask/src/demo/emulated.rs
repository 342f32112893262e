//! Emulated hosts: the lab.

mod keyboard;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, Lab, LabConfig, Netns, Network, guest_address, replication_address};
use rustix::process::Signal;
use tempfile::TempDir;
use toml::Table;

use super::config::{Arbiter, HostPlan, Plan};
use super::options::{self, Cut, Disk, Fault, Flush, Options, Pace};
use super::pair::{
    self, FORGET_OUTSIDE, GUEST_MAC, Image, LINK_PORT, Pair, Place, Role, STOP_MAX, Side, Status, run_dir,
    term_in,
};
use crate::tools::{tail, wait_for};

/// Lines of a program's log that are shown when it has ended.
const LOG_LINES_MAX: usize = 30;

const PROGRAM: &str = "/bin/kemari";
const CONFIG: &str = "/demo.toml";
const KERNEL: &str = "/guest-kernel";
const INITRD: &str = "/guest-initrd";
const LOG: &str = "/kemari.log";
/// Where the control socket and the guest's console are. A side may make no files in the root directory.
const RUN: &str = "/run/kemari";
const CONTROL: &str = "/run/kemari/control.sock";
const CONSOLE: &str = "/run/kemari/console.log";
const DISK: &str = "/dev/vda";
/// Where the program keeps what must outlive it: on a disk of the host's own, which is kept over a power cut.
const STATE: &str = "/state";
const STATE_DISK: &str = "/dev/vdb";
/// Size of that disk.
const STATE_MIB: u64 = 16;
/// Where an arbiter of files is mounted, and the file that marks it as the one.
const ARBITER: &str = "/arbiter";
const ARBITER_MARKER: &str = "kemari-arbiter";

/// Two emulated hosts, used for one run after the other.
#[derive(Debug)]
pub struct EmulatedPlace {
    lab: Lab,
    program: PathBuf,
    image: Image,
    disk: GuestDisk,
    _directory: TempDir,
}

/// Where the guest's disk is, seen from outside.
#[derive(Debug)]
enum GuestDisk {
    /// A file that both hosts have.
    Shared(PathBuf),
    /// A disk of its own in each host.
    Replicated(Flush),
}

impl GuestDisk {
    /// The number of a host's own disk for its state.
    fn state_number(&self) -> usize {
        match self {
            GuestDisk::Shared(_) => 0,
            GuestDisk::Replicated(_) => 1,
        }
    }
}

impl EmulatedPlace {
    /// Boots the hosts. `program` must need no library, and the disk has the size of that of `image` for
    /// good. `volatile`: the hosts' own disks forget at a power cut what was not flushed.
    pub fn new(program: PathBuf, image: Image, options: &Options, volatile: bool) -> Result<Self> {
        let directory = lab::scratch_dir()?;
        let mut config = LabConfig {
            volatile,
            etcd: options.arbiter == options::Arbiter::Etcd,
            nfs: options.arbiter == options::Arbiter::Nfs,
            ..LabConfig::default()
        };
        let disk = match options.disk {
            Disk::Shared => {
                let disk = directory.path().join("shared-disk.img");
                image.disk.write_to(&disk)?;
                config.shared_disks.push(disk.clone());
                GuestDisk::Shared(disk)
            }
            Disk::Replicated => {
                config.own_disks_mib.push(image.disk.bytes()? >> 20);
                GuestDisk::Replicated(options.flush)
            }
        };
        config.own_disks_mib.push(STATE_MIB);
        let lab = Lab::start(config)?;
        if let Some(nfs) = lab.nfs() {
            let marker = nfs.directory().join(ARBITER_MARKER);
            fs::write(&marker, []).with_context(|| format!("{} cannot be made", marker.display()))?;
        }
        Ok(Self {
            lab,
            program,
            image,
            disk,
            _directory: directory,
        })
    }

    pub(crate) fn host(&self, side: Side) -> &Host {
        self.lab.host(side.number())
    }

    /// Brings a host into the state in which it was booted.
    fn refresh(&self, side: Side) -> Result<()> {
        self.bring_up(side)?;
        // The TAP is administratively up: its carrier comes when the program opens it.
        self.host(side).sh(&format!(
            "pidof kemari >/dev/null && kill -9 $(pidof kemari); while pidof kemari >/dev/null; do sleep \
             0.1; done; ip link set {} up; echo 1 >/sys/class/net/br0/bridge/flush; mkdir -p {RUN}; rm -f \
             {LOG} {CONSOLE} {CONTROL}; while grep -q ' {STATE} ' /proc/mounts; do umount {STATE} || sleep \
             0.1; done",
            self.host(side).tap(0)
        ))?;
        Ok(())
    }

    /// Power and networks, and the program's files, which are in the host's memory.
    fn bring_up(&self, side: Side) -> Result<()> {
        let host = self.host(side);
        if !host.is_on() {
            host.power_on()?;
        }
        for network in Network::ALL {
            self.lab.join(side.number(), network)?;
        }
        host.wait_ready()?;
        if self.lab.nfs().is_some() {
            host.sh(&format!("lab-nfs {ARBITER}"))?;
        }
        host.sh(&format!("mkdir -p {RUN}"))?;
        host.put(&self.program, PROGRAM)?;
        host.put(&self.image.kernel, KERNEL)?;
        if let Some(initrd) = &self.image.initrd {
            host.put(initrd, INITRD)?;
        }
        Ok(())
    }

    /// Mounts the host's state, as it is.
    fn mount_state(&self, side: Side) -> Result<()> {
        let line = format!(
            "set -e; mkdir -p {STATE}; grep -q ' {STATE} ' /proc/mounts || mount -t ext4 {STATE_DISK} \
             {STATE}; ip link set {} up",
            self.host(side).tap(0)
        );
        Ok(self.host(side).sh(&line).map(drop)?)
    }

    /// The images of the guest's disk, outside; that of `first` before the other's.
    fn images(&self, first: Side) -> Vec<PathBuf> {
        match &self.disk {
            GuestDisk::Shared(path) => vec![path.clone()],
            GuestDisk::Replicated(_) => [first, first.other()]
                .map(|side| self.host(side).own_disk(0).to_owned())
                .to_vec(),
        }
    }
}

impl Place for EmulatedPlace {
    fn name(&self) -> &'static str {
        "lab"
    }

    fn pace(&self) -> Pace {
        Pace::LAB
    }

    fn make(&mut self, number: u64, options: &Options) -> Result<Box<dyn Pair + '_>> {
        Ok(Box::new(self.pair(number, options.fault)?))
    }
}

impl EmulatedPlace {
    /// Makes two fresh hosts, with nothing started on them.
    pub(crate) fn pair(&self, number: u64, fault: Option<Fault>) -> Result<EmulatedPair<'_>> {
        for side in Side::BOTH {
            self.refresh(side)?;
        }
        self.lab.outside().ip(FORGET_OUTSIDE)?;
        // Only now does nobody use the disks any more.
        let mut images = self.images(Side::A).into_iter();
        for image in images.by_ref().take(1) {
            self.image.disk.write_to(&image)?;
        }
        // What is on the secondary's image at first does not matter.
        let empty = pair::Disk::Empty(self.image.disk.bytes()? >> 20);
        images.try_for_each(|image| empty.write_to(&image))?;
        for side in Side::BOTH {
            lab::make_ext4(self.host(side).own_disk(self.disk.state_number()))?;
            self.mount_state(side)?;
        }
        let plan = self.plan(number)?;
        let toml = plan.to_toml()?;
        let _ = fs::remove_dir_all(run_dir());
        fs::create_dir_all(run_dir()).with_context(|| format!("{} cannot be made", run_dir().display()))?;
        for side in Side::BOTH {
            self.host(side).put_text(&toml, CONFIG)?;
        }
        Ok(EmulatedPair {
            place: self,
            plan,
            toml,
            fault,
            words: fault.and_then(Fault::environment),
            at_terminal: false,
            programs: [None, None],
            link_cut: false,
        })
    }

    fn plan(&self, number: u64) -> Result<Plan> {
        let arbiter = match self.lab.etcd() {
            Some(etcd) => Arbiter::Etcd(etcd.endpoint()),
            None => Arbiter::File(ARBITER.into()),
        };
        let host = |side: Side, other: Side| HostPlan {
            listen: SocketAddr::from((replication_address(side.number()), LINK_PORT)).to_string(),
            control: CONTROL.into(),
            console: Some(CONSOLE.into()),
            fence: matches!(self.disk, GuestDisk::Shared(_))
                .then(|| vec!["/bin/lab-fence".into(), other.number().to_string()]),
            state_dir: format!("{STATE}/vm").into(),
            tap: self.host(side).tap(0),
            disk: DISK.into(),
        };
        Ok(Plan {
            vm: format!("demo-{number:016x}"),
            kernel: KERNEL.into(),
            is_firmware: self.image.is_firmware,
            initrd: self.image.initrd.as_ref().map(|_| Path::new(INITRD).to_owned()),
            cmdline: self.image.cmdline.clone(),
            memory_mib: self.image.memory_mib,
            replicated: match self.disk {
                GuestDisk::Shared(_) => None,
                GuestDisk::Replicated(flush) => Some(flush),
            },
            vcpus: self.image.vcpus,
            disk_queues: self.image.disk_queues,
            mac: GUEST_MAC.into(),
            direct: true,
            arbiter,
            protected: true,
            mode: "lockstep",
            tuning: Table::new(),
            suspicion_timeout_ms: Pace::LAB.suspicion_timeout.as_millis() as u64,
            heartbeat_interval_ms: 200,
            reconnect_timeout_ms: 1000,
            hosts: [host(Side::A, Side::B), host(Side::B, Side::A)],
        })
    }
}

/// Two emulated hosts with a VM between them.
pub(crate) struct EmulatedPair<'a> {
    place: &'a EmulatedPlace,
    plan: Plan,
    toml: String,
    fault: Option<Fault>,
    /// What `KEMARI_FAULTS` says to programs that are started.
    words: Option<&'static str>,
    /// Whether the guest's console is at a terminal.
    at_terminal: bool,
    programs: [Option<u32>; 2],
    link_cut: bool,
}

/// A process that was killed gives its memory back before it is gone,
/// and the next one would find the VM in use.
fn await_end_of_the_killed(host: &Host) -> Result<()> {
    host.sh("while pidof kemari >/dev/null; do sleep 0.05; done")?;
    Ok(())
}

impl EmulatedPair<'_> {
    fn launch(&mut self, side: Side, role: Role, more: &[&str]) -> Result<()> {
        let words = [PROGRAM, role.subcommand(), CONFIG, "--host", side.name()];
        let (words, env) = self.words(&[&words[..], more].concat());
        let host = self.place.host(side);
        await_end_of_the_killed(host)?;
        self.programs[side.number()] = Some(host.spawn(&words, &env, LOG)?);
        Ok(())
    }

    /// Programs that are started from here on behave as these words of `KEMARI_FAULTS` say.
    pub(crate) fn break_programs(&mut self, words: &'static str) {
        self.words = Some(words);
    }

    /// A secondary whose image is a new file on a file system that is far too small for it.
    pub(crate) fn start_with_full_disk(&mut self, side: Side) -> Result<()> {
        self.equip(side)?;
        let mut plan = self.plan.clone();
        let image = format!("{STATE}/too-large.img");
        let host = self.place.host(side);
        host.sh(&format!("truncate -s {} {image}", self.place.image.disk.bytes()?))?;
        plan.hosts[side.number()].disk = image.into();
        host.put_text(&plan.to_toml()?, CONFIG)?;
        self.start(side, Role::Secondary)
    }

    /// Ends a secondary as an operator does, and what [`EmulatedPair::start_with_full_disk`] has made.
    pub(crate) fn end(&mut self, side: Side) -> Result<()> {
        let host = self.place.host(side);
        if let Some(pid) = self.programs[side.number()].take()
            && host.state(pid)?.is_none()
        {
            host.signal(pid, Signal::KILL.as_raw())?;
        }
        await_end_of_the_killed(host)?;
        host.sh(&format!("rm -f {STATE}/too-large.img*"))?;
        Ok(())
    }

    /// The last lines of what a side has logged.
    pub(crate) fn log(&self, side: Side) -> String {
        self.read(side, LOG)
    }

    /// Switches a host on and gives it what it needs, but starts nothing.
    fn equip(&self, side: Side) -> Result<()> {
        self.place.bring_up(side)?;
        self.place.mount_state(side)?;
        Ok(self.place.host(side).put_text(&self.toml, CONFIG)?)
    }

    fn read(&self, side: Side, path: &str) -> String {
        let bytes = self.place.host(side).get(path).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes), LOG_LINES_MAX)
    }
}

impl Pair for EmulatedPair<'_> {
    fn service(&self) -> SocketAddr {
        (guest_address(0), self.place.image.port).into()
    }

    fn clients(&self) -> Netns {
        self.place.lab.outside().clone()
    }

    fn start(&mut self, side: Side, role: Role) -> Result<()> {
        self.launch(side, role, &[])
    }

    fn check_alive(&mut self) -> Result<()> {
        for side in Side::BOTH {
            let Some(pid) = self.programs[side.number()] else {
                continue;
            };
            let host = self.place.host(side);
            let how = match host.is_on() {
                false => "with its host, which has lost its power".to_owned(),
                true => match host.state(pid)? {
                    None => continue,
                    Some(status) => format!(
                        "with status {status}; the end of its log:\n{}\nand of the guest's console:\n{}",
                        self.read(side, LOG),
                        self.read(side, CONSOLE)
                    ),
                },
            };
            self.programs[side.number()] = None;
            let one_may = self.link_cut && self.programs.iter().any(Option::is_some);
            ensure!(one_may, "kemari on host {} has ended {how}", side.name());
        }
        Ok(())
    }

    fn status(&mut self, side: Side) -> Result<Option<Status>> {
        let host = self.place.host(side);
        if self.programs[side.number()].is_none() || !host.is_on() {
            return Ok(None);
        }
        let answer = host.exec(&[PROGRAM, "status", CONFIG, "--host", side.name(), "--json"])?;
        // While it has not come so far it does not answer; that it has ended `check_alive` tells.
        if answer.status == 0 {
            Status::parse(&answer.stdout).map(Some)
        } else {
            Ok(None)
        }
    }

    fn cut(&mut self, side: Side, cut: Cut) -> Result<()> {
        let number = side.number();
        let host = self.place.host(side);
        if let Some(before) = self.fault.and_then(Fault::link_dies_before) {
            self.place.lab.cut(number, Network::Replication)?;
            std::thread::sleep(before);
        }
        match (cut, self.programs[number]) {
            (Cut::Link, _) => {
                self.link_cut = true;
                return Ok(self.place.lab.cut(number, Network::Replication)?);
            }
            (Cut::Power, _) => host.power_cut(),
            (Cut::Both, _) => {
                host.power_cut();
                self.place.host(side.other()).power_cut();
                self.programs[side.other().number()] = None;
            }
            (Cut::Kill, Some(pid)) => host.signal(pid, Signal::KILL.as_raw())?,
            _ => return Ok(()),
        }
        self.programs[number] = None;
        Ok(())
    }

    fn mend(&mut self, side: Side) -> Result<()> {
        self.link_cut = false;
        if self.place.host(side).is_on() {
            for network in Network::ALL {
                self.set_joined(side, network, true)?;
            }
            if self.is_running(side)? {
                return Ok(());
            }
        }
        self.equip(side)?;
        self.start(side, Role::Secondary)
    }

    fn is_running(&mut self, side: Side) -> Result<bool> {
        let host = self.place.host(side);
        match self.programs[side.number()] {
            Some(pid) if host.is_on() => Ok(host.state(pid)?.is_none()),
            _ => Ok(false),
        }
    }

    fn signal(&mut self, side: Side, signal: Signal) -> Result<()> {
        let living = self.is_running(side)?;
        match self.programs[side.number()].filter(|_| living) {
            Some(pid) => Ok(self.place.host(side).signal(pid, signal.as_raw())?),
            None => Ok(()),
        }
    }

    fn order(&self, side: Side, order: &[&str]) -> Result<String> {
        let words = [&[PROGRAM], order, &[CONFIG, "--host", side.name()]].concat();
        let answer = self.place.host(side).exec(&words)?;
        ensure!(
            answer.status == 0,
            "`kemari {}` failed: {}{}",
            order.join(" "),
            answer.stdout,
            answer.stderr
        );
        Ok(answer.stdout)
    }

    fn set_joined(&self, side: Side, network: Network, joined: bool) -> Result<()> {
        match joined {
            true => self.place.lab.join(side.number(), network)?,
            false => self.place.lab.cut(side.number(), network)?,
        }
        Ok(())
    }

    fn set_plugged(&self, side: Side, plugged: bool) -> Result<()> {
        let host = self.place.host(side);
        match host.is_on() {
            true => Ok(host.set_link(Network::Guests, plugged)?),
            // It comes back with its cables plugged.
            false => Ok(()),
        }
    }

    fn set_bridged(&self, side: Side, bridged: bool) -> Result<()> {
        let host = self.place.host(side);
        let word = if bridged { "addif" } else { "delif" };
        // One that is off comes back with its TAP where it belongs.
        if host.is_on() {
            host.sh(&format!("brctl {word} br0 {}", host.tap(0)))?;
        }
        Ok(())
    }

    fn set_bridge_up(&self, side: Side, up: bool) -> Result<()> {
        let host = self.place.host(side);
        let end = if up { "up" } else { "down" };
        if host.is_on() {
            host.sh(&format!("ip link set br0 {end}"))?;
        }
        Ok(())
    }

    fn set_host_running(&self, side: Side, running: bool) -> Result<()> {
        let host = self.place.host(side);
        match host.is_on() {
            true => Ok(host.set_running(running)?),
            false => Ok(()),
        }
    }

    fn set_arbiter_answering(&self, answering: bool) -> Result<()> {
        let lab = &self.place.lab;
        match (lab.etcd(), lab.nfs(), answering) {
            (Some(etcd), _, true) => etcd.resume()?,
            (Some(etcd), _, false) => etcd.pause()?,
            (None, Some(nfs), true) => nfs.resume()?,
            (None, Some(nfs), false) => nfs.pause()?,
            (None, None, _) => bail!("the lab has no arbiter"),
        }
        Ok(())
    }

    fn boot_anew(&mut self, side: Side) -> Result<()> {
        self.equip(side)?;
        // It may find errors, as that the peer does not answer.
        let words = [PROGRAM, "check", CONFIG, "--host", side.name()];
        let check = self.place.host(side).exec(&words)?;
        let term = term_in(&check.stdout)?.to_string();
        self.launch(side, Role::Primary, &["--assert-dead", &term])
    }

    fn loss(&self, side: Side) -> Option<lab::Loss> {
        self.place
            .host(side)
            .volatile_disk(0)
            .map(lab::VolatileDisk::loss)
    }

    fn stop(&mut self, primary: Side) -> Result<Vec<PathBuf>> {
        let order = [PROGRAM, "stop", CONFIG, "--host", primary.name()];
        let said = self.place.host(primary).exec(&order)?;
        ensure!(
            said.status == 0,
            "`kemari stop` failed: {}{}",
            said.stdout,
            said.stderr
        );
        for side in Side::BOTH {
            let Some(pid) = self.programs[side.number()] else {
                continue;
            };
            let host = self.place.host(side);
            let what = format!("the end of kemari on host {}", side.name());
            let status = wait_for(&what, STOP_MAX, || Ok(host.state(pid)?))?;
            ensure!(
                status == 0,
                "kemari on host {} has ended with status {status}; the end of its log:\n{}",
                side.name(),
                self.read(side, LOG)
            );
            self.programs[side.number()] = None;
        }
        Ok(self.place.images(primary))
    }

    fn step_at_cut(&self, _: Side) -> Option<String> {
        // What the dead host knew is gone with its memory; the survivor tells what had arrived.
        None
    }

    fn save_logs(&mut self) {
        for side in Side::BOTH {
            let host = self.place.host(side);
            for (path, kind) in [(LOG, "log"), (CONSOLE, "console")] {
                // Of a host without power nothing is left: that is as it should be.
                if let (true, Ok(bytes)) = (host.is_on(), host.get(path)) {
                    let _ = fs::write(run_dir().join(format!("{}.{kind}", side.name())), bytes);
                }
            }
            let _ = fs::write(
                run_dir().join(format!("{}.serial", side.name())),
                host.serial_log(),
            );
        }
    }
}
