//! One emulated host: a QEMU with nested AMD-V, its network cards, and the agent inside.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::agent::{AGENT_PORT, Answer, Program, Request, read_message, write_message};
use crate::error::{Context, Error, Result, tail};
use crate::netns::Netns;
use crate::network::{NETMASK_BITS, Network, bridge_mac, control_address, replication_address};
use crate::packages::tool;
use crate::process::{Process, run};
use crate::qmp::Qmp;
use crate::tsc;
use crate::volatile::VolatileDisk;

/// Longest wait for the agent of a host that boots; measured: 5-15 s.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// Longest run of a program that is asked for without a limit of its own.
const EXEC_LIMIT: Duration = Duration::from_secs(60);
/// How much longer than its program an answer may take.
const ANSWER_MARGIN: Duration = Duration::from_secs(20);
/// Longest wait for a connection to the agent.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Lines of the serial log that an error shows.
const LOG_LINES: usize = 30;

/// What a host is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub vmlinux: PathBuf,
    pub initramfs: PathBuf,
    pub smp: u32,
    pub memory_mib: u32,
    pub taps: usize,
    /// How far its clock is ahead.
    pub clock_ahead: Duration,
    /// Disks that all hosts have.
    pub shared_disks: Vec<PathBuf>,
    /// Disks that no other host has.
    pub own_disks: Vec<PathBuf>,
    /// The same, if they forget at a power cut what was not flushed.
    pub volatile_disks: Vec<Arc<VolatileDisk>>,
}

/// What a program inside a host left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; 128 and the signal's number if a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A host's power supply, shared with the fence.
#[derive(Clone, Debug)]
pub(crate) struct Power {
    /// None while the power is off.
    qemu: Arc<Mutex<Option<Process>>>,
    disks: Vec<Arc<VolatileDisk>>,
}

impl Power {
    fn new(disks: &[Arc<VolatileDisk>]) -> Power {
        Power {
            qemu: Arc::default(),
            disks: disks.to_vec(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.qemu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it away: SIGKILL for QEMU, and back when the kernel has reaped it and its disks have forgotten.
    pub(crate) fn cut(&self) {
        let mut qemu = self.lock();
        if qemu.take().is_none() {
            return;
        }
        for disk in &self.disks {
            if let Err(error) = disk.lose_power() {
                tracing::error!(%error, "a disk kept more than it should");
            }
        }
    }
}

/// An emulated host.
#[derive(Debug)]
pub struct Host {
    index: usize,
    parts: Parts,
    outside: Netns,
    dir: PathBuf,
    power: Power,
}

impl Host {
    /// Lays out a host, with its ports on the outer bridges; it is still off.
    pub(crate) fn new(index: usize, parts: Parts, outside: &Netns, dir: PathBuf) -> Result<Host> {
        fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
        for network in Network::ALL {
            let (port, bridge) = (network.port(index), network.name());
            outside.ip(&format!(
                "tuntap add dev {port} mode tap vnet_hdr\nlink set {port} master {bridge} up"
            ))?;
        }
        let power = Power::new(&parts.volatile_disks);
        Ok(Host {
            index,
            parts,
            outside: outside.clone(),
            dir,
            power,
        })
    }

    /// Its name in messages.
    pub fn name(&self) -> String {
        format!("host {}", self.index)
    }

    /// Name of its TAP device for guest `guest` (from 0), on the host's bridge and down.
    pub fn tap(&self, guest: usize) -> String {
        format!("tap{guest}")
    }

    /// The file outside that is the content of a disk of its own, by the disk's number among
    /// [`crate::LabConfig::own_disks_mib`].
    pub fn own_disk(&self, number: usize) -> &Path {
        &self.parts.own_disks[number]
    }

    /// The same disk, if it forgets at a power cut what was not flushed ([`crate::LabConfig::volatile`]).
    pub fn volatile_disk(&self, number: usize) -> Option<&VolatileDisk> {
        self.parts.volatile_disks.get(number).map(Arc::as_ref)
    }

    /// Switches the power on; the host boots behind this call's back.
    pub fn power_on(&self) -> Result<()> {
        let mut power = self.power.lock();
        if power.as_mut().is_some_and(Process::is_running) {
            return Ok(());
        }
        let _ = fs::remove_file(self.serial_path());
        *power = Some(self.start_qemu()?);
        Ok(())
    }

    /// Waits until its agent answers.
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            if self.sh("test -c /dev/kvm && test -d /sys/class/net/br0").is_ok() {
                return Ok(());
            }
            if !self.is_on() || Instant::now() >= deadline {
                let mut log_tail = self.log_tail();
                log_tail.push_str(&fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default());
                let what = format!("{} did not come up", self.name());
                return Err(Error::Timeout {
                    what,
                    waited: BOOT_LIMIT,
                    log_tail,
                });
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Cuts the power: QEMU is killed and gone when this returns. Nobody hears a FIN or RST.
    pub fn power_cut(&self) {
        self.power.cut();
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.power.lock().as_mut().is_some_and(Process::is_running)
    }

    /// Pulls (`up` = false) or plugs the cable of one network card, as QEMU shows it to the host's driver.
    /// For a loss that the host does not notice see [`crate::Lab::cut`].
    pub fn set_link(&self, network: Network, up: bool) -> Result<()> {
        let mut qmp = Qmp::connect(&self.name(), &self.dir.join("qmp"))?;
        qmp.execute("set_link", json!({ "name": network.name(), "up": up }))?;
        Ok(())
    }

    /// Stops (`running` = false) or continues all of the host: a host that was paused and wakes up later.
    pub fn set_running(&self, running: bool) -> Result<()> {
        let mut qmp = Qmp::connect(&self.name(), &self.dir.join("qmp"))?;
        qmp.execute(if running { "cont" } else { "stop" }, json!({}))?;
        Ok(())
    }

    /// What the host printed on its serial console since its last start.
    pub fn serial_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.serial_path()).unwrap_or_default()).into_owned()
    }

    /// Runs a program to its end, at most a minute; any exit status is an answer.
    pub fn exec(&self, words: &[&str]) -> Result<Output> {
        self.exec_with(words, &[], EXEC_LIMIT)
    }

    /// Runs a program to its end with `input` as its standard input; it is killed after `limit`,
    /// which is an error.
    pub fn exec_with(&self, words: &[&str], input: &[u8], limit: Duration) -> Result<Output> {
        let request = Request::Exec {
            program: program(words),
            limit_ms: limit.as_millis() as u64,
        };
        match self.ask(&request, input, limit)? {
            (Answer::Ended { status, stdout_bytes }, payload) => {
                let (stdout, stderr) = payload
                    .split_at_checked(stdout_bytes as usize)
                    .unwrap_or((&payload, &[]));
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                Ok(Output {
                    status,
                    stdout: text(stdout),
                    stderr: text(stderr),
                })
            }
            (other, _) => Err(self.strange(&other)),
        }
    }

    /// Runs a line of shell and returns its standard output; an exit status other than 0 is an error.
    pub fn sh(&self, line: &str) -> Result<String> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.exec(&["/bin/sh", "-c", line])?;
        if status == 0 {
            return Ok(stdout);
        }
        let command = format!("{line} (on {})", self.name());
        Err(Error::Command {
            command,
            status: format!("exit status {status}"),
            output: stdout + &stderr,
        })
    }

    /// Starts a program and leaves it running, its output in the file `log` inside the host;
    /// returns its process id.
    pub fn spawn(&self, words: &[&str], env: &[(&str, &str)], log: &str) -> Result<u32> {
        let mut program = program(words);
        program.env = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        match self.ask(
            &Request::Spawn {
                program,
                log: log.into(),
            },
            &[],
            EXEC_LIMIT,
        )? {
            (Answer::Started { pid }, _) => Ok(pid),
            (other, _) => Err(self.strange(&other)),
        }
    }

    /// The exit status of a program that [`Host::spawn`] started, none while it runs.
    pub fn state(&self, pid: u32) -> Result<Option<i32>> {
        match self.ask(&Request::State { pid }, &[], EXEC_LIMIT)? {
            (Answer::State(state), _) => Ok(state),
            (other, _) => Err(self.strange(&other)),
        }
    }

    /// Sends a signal (its number) to a process in the host.
    pub fn signal(&self, pid: u32, signal: i32) -> Result<()> {
        self.ask(&Request::Signal { pid, signal }, &[], EXEC_LIMIT)
            .map(drop)
    }

    /// Copies a file into the host, with its permissions.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        let content = crate::cache::read(from)?;
        let metadata = fs::metadata(from).context(|| format!("read {}", from.display()))?;
        self.put_bytes(&content, to, metadata.permissions())
    }

    /// Makes a file in the host.
    pub fn put_text(&self, text: &str, to: &str) -> Result<()> {
        self.put_bytes(text.as_bytes(), to, Permissions::from_mode(0o644))
    }

    /// Reads a file of the host.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.ask(&Request::Get { path: path.into() }, &[], EXEC_LIMIT)
            .map(|(_, content)| content)
    }

    pub(crate) fn power(&self) -> Power {
        self.power.clone()
    }

    fn put_bytes(&self, content: &[u8], to: &str, permissions: Permissions) -> Result<()> {
        let request = Request::Put {
            path: to.into(),
            mode: permissions.mode() & 0o7777,
        };
        self.ask(&request, content, EXEC_LIMIT).map(drop)
    }

    fn ask(&self, request: &Request, payload: &[u8], limit: Duration) -> Result<(Answer, Vec<u8>)> {
        let what = || format!("reach the agent of {}", self.name());
        let address = SocketAddr::from((control_address(self.index), AGENT_PORT));
        let connection = self
            .outside
            .run(|| TcpStream::connect_timeout(&address, CONNECT_LIMIT))?;
        let mut stream = connection.context(what)?;
        stream.set_nodelay(true).context(what)?;
        stream
            .set_read_timeout(Some(limit + ANSWER_MARGIN))
            .context(what)?;
        stream.set_write_timeout(Some(ANSWER_MARGIN)).context(what)?;
        write_message(&mut stream, request, payload).context(what)?;
        stream.flush().context(what)?;
        match read_message(&mut stream).context(what)? {
            (Answer::Refused(reason), _) => Err(Error::Agent {
                host: self.name(),
                reason,
            }),
            answered => Ok(answered),
        }
    }

    fn strange(&self, answer: &Answer) -> Error {
        Error::Agent {
            host: self.name(),
            reason: format!("an answer to another question: {answer:?}"),
        }
    }

    fn log_tail(&self) -> String {
        tail(&self.serial_log(), LOG_LINES)
    }

    fn serial_path(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    fn start_qemu(&self) -> Result<Process> {
        let Parts {
            vmlinux,
            initramfs,
            smp,
            memory_mib,
            taps,
            clock_ahead,
            shared_disks,
            own_disks,
            volatile_disks,
        } = &self.parts;
        let log_path = self.dir.join("qemu.log");
        let log = fs::File::create(&log_path).context(|| format!("make {}", log_path.display()))?;
        // A busy machine keeps an emulated timer waiting, which its kernel takes for a broken one.
        let cmdline = format!(
            "console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable tsc_early_khz={} mitigations=off \
             cryptomgr.notests lab.control={}/{NETMASK_BITS} lab.replication={}/{NETMASK_BITS} \
             lab.bridge_mac={} lab.taps={taps}",
            tsc::khz(),
            control_address(self.index),
            replication_address(self.index),
            bridge_mac(self.index),
        );
        let clock = date_in(*clock_ahead)?;
        let mut command = self.outside.command(tool("qemu-system-x86_64"));
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-M",
            "pc",
            "-cpu",
            "EPYC,+svm,+npt,-xsaves",
        ]);
        command.args(["-smp", &smp.to_string(), "-m", &memory_mib.to_string()]);
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-append",
            &cmdline,
            "-rtc",
            &format!("base={clock}"),
        ]);
        command.arg("-kernel").arg(vmlinux).arg("-initrd").arg(initramfs);
        command
            .arg("-serial")
            .arg(format!("file:{}", self.serial_path().display()));
        command.arg("-qmp").arg(format!(
            "unix:{},server=on,wait=off",
            self.dir.join("qmp").display()
        ));
        for network in Network::ALL {
            let (name, port, mac) = (network.name(), network.port(self.index), network.mac(self.index));
            command.args([
                "-netdev",
                &format!("tap,id={name},ifname={port},script=no,downscript=no"),
            ]);
            command.args([
                "-device",
                &format!("virtio-net-pci,netdev={name},mac={mac},romfile="),
            ]);
        }
        // Both hosts have the same disk, and no page cache of a host that died may stand between them.
        let file = |path: &PathBuf| format!("file.locking=off,file={}", path.display());
        let served = |disk: &Arc<VolatileDisk>| format!("file=nbd:unix:{}", disk.socket().display());
        let own: Vec<String> = match volatile_disks.is_empty() {
            true => own_disks.iter().map(file).collect(),
            false => volatile_disks.iter().map(served).collect(),
        };
        for (number, source) in shared_disks.iter().map(file).chain(own).enumerate() {
            // An error is told to the host, which is what is tested, and does not stop it. What it discards
            // is a hole in the file.
            let options = format!(
                "if=none,id=disk{number},format=raw,cache=none,discard=unmap,\
                 werror=report,rerror=report,{source}"
            );
            command.args(["-drive", &options]);
            command.args([
                "-device",
                &format!("virtio-blk-pci,drive=disk{number},share-rw=on"),
            ]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Process::spawn(format!("QEMU of {}", self.name()), command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_cut();
    }
}

/// The date (UTC) in a while from now, as QEMU reads it.
fn date_in(time: Duration) -> Result<String> {
    let seconds = format!("now + {} seconds", time.as_secs());
    let output = run(Command::new("date").args(["--utc", "--date", &seconds, "+%FT%T"]))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn program(words: &[&str]) -> Program {
    Program {
        words: words.iter().map(|word| word.to_string()).collect(),
        env: Vec::new(),
    }
}
