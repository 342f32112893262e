//! Emulated hosts: the lab.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{Lab, LabConfig, Netns, Network, guest_address, replication_address};
use tempfile::TempDir;

use super::config::{HostPlan, Plan};
use super::options::{Cut, Fault, Pace};
use super::pair::{FORGET_OUTSIDE, Image, LINK_PORT, Pair, Place, SERVICE_PORT, Side, Status, run_dir};
use crate::tools::tail;

/// Lines of a program's log that are shown when it has ended.
const LOG_LINES_MAX: usize = 30;
/// The number of SIGKILL.
const SIGKILL: i32 = 9;

const PROGRAM: &str = "/bin/kemari";
const CONFIG: &str = "/demo.toml";
const KERNEL: &str = "/guest-kernel";
const INITRD: &str = "/guest-initrd";
const LOG: &str = "/kemari.log";
const CONSOLE: &str = "/console.log";
const DISK: &str = "/dev/vda";

/// Two emulated hosts, used for one run after the other.
#[derive(Debug)]
pub struct EmulatedPlace {
    lab: Lab,
    program: PathBuf,
    image: Image,
    disk: PathBuf,
    _directory: TempDir,
}

impl EmulatedPlace {
    /// Boots the hosts. `program` must need no library, and the disk has the size of that of `image` for good.
    pub fn new(program: PathBuf, image: Image) -> Result<Self> {
        let directory = lab::scratch_dir()?;
        let disk = directory.path().join("shared-disk.img");
        image.disk.write_to(&disk)?;
        let lab = Lab::start(LabConfig {
            shared_disks: vec![disk.clone()],
            ..LabConfig::default()
        })?;
        Ok(Self {
            lab,
            program,
            image,
            disk,
            _directory: directory,
        })
    }

    /// Brings a host into the state in which it was booted.
    fn refresh(&self, side: Side) -> Result<()> {
        let host = self.lab.host(side.number());
        if !host.is_on() {
            host.power_on()?;
        }
        for network in Network::ALL {
            self.lab.join(side.number(), network)?;
        }
        host.wait_ready()?;
        // The TAP is administratively up: its carrier comes when the program opens it.
        host.sh(&format!(
            "pidof kemari >/dev/null && kill -9 $(pidof kemari); while pidof kemari >/dev/null; do sleep 0.1; done; \
             ip link set {} up; echo 1 >/sys/class/net/br0/bridge/flush; rm -rf /state {LOG} {CONSOLE} /kemari.sock",
            host.tap(0)
        ))?;
        host.put(&self.program, PROGRAM)?;
        host.put(&self.image.kernel, KERNEL)?;
        if let Some(initrd) = &self.image.initrd {
            host.put(initrd, INITRD)?;
        }
        Ok(())
    }
}

impl Place for EmulatedPlace {
    fn name(&self) -> &'static str {
        "lab"
    }

    fn pace(&self) -> Pace {
        Pace::LAB
    }

    fn make(&mut self, number: u64, fault: Option<Fault>) -> Result<Box<dyn Pair + '_>> {
        for side in Side::BOTH {
            self.refresh(side)?;
        }
        self.lab.outside().ip(FORGET_OUTSIDE)?;
        // Only now does nobody use the disk any more.
        self.image.disk.write_to(&self.disk)?;
        let toml = self.plan(number)?.to_toml()?;
        let _ = fs::remove_dir_all(run_dir());
        fs::create_dir_all(run_dir()).with_context(|| format!("{} cannot be made", run_dir().display()))?;
        for side in Side::BOTH {
            self.lab.host(side.number()).put_text(&toml, CONFIG)?;
        }
        Ok(Box::new(EmulatedPair {
            place: self,
            fault,
            programs: [None, None],
            link_cut: false,
        }))
    }
}

impl EmulatedPlace {
    fn plan(&self, number: u64) -> Result<Plan> {
        let etcd = self.lab.etcd().context("the lab has no etcd")?.endpoint();
        let host = |side: Side, other: Side| HostPlan {
            listen: SocketAddr::from((replication_address(side.number()), LINK_PORT)).to_string(),
            control: "/kemari.sock".into(),
            console: CONSOLE.into(),
            fence: ["/bin/lab-fence".into(), other.number().to_string()].to_vec(),
            state_dir: "/state".into(),
            tap: self.lab.host(side.number()).tap(0),
            disk: DISK.into(),
        };
        Ok(Plan {
            vm: format!("demo-{number:016x}"),
            kernel: KERNEL.into(),
            initrd: self.image.initrd.as_ref().map(|_| Path::new(INITRD).to_owned()),
            cmdline: self.image.cmdline.clone(),
            memory_mib: self.image.memory_mib,
            direct: true,
            etcd,
            suspicion_timeout_ms: 3000,
            heartbeat_interval_ms: 200,
            reconnect_timeout_ms: 1000,
            hosts: [host(Side::A, Side::B), host(Side::B, Side::A)],
        })
    }
}

struct EmulatedPair<'a> {
    place: &'a EmulatedPlace,
    fault: Option<Fault>,
    programs: [Option<u32>; 2],
    link_cut: bool,
}

impl EmulatedPair<'_> {
    fn start(&mut self, side: Side, subcommand: &str) -> Result<()> {
        let env: Vec<_> = self
            .fault
            .iter()
            .map(|fault| ("KEMARI_FAULTS", fault.environment()))
            .collect();
        let words = [PROGRAM, subcommand, CONFIG, "--host", side.name()];
        self.programs[side.number()] = Some(self.place.lab.host(side.number()).spawn(&words, &env, LOG)?);
        Ok(())
    }

    fn read(&self, side: Side, path: &str) -> String {
        let bytes = self.place.lab.host(side.number()).get(path).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes), LOG_LINES_MAX)
    }
}

impl Pair for EmulatedPair<'_> {
    fn service(&self) -> SocketAddr {
        (guest_address(0), SERVICE_PORT).into()
    }

    fn clients(&self) -> Netns {
        self.place.lab.outside().clone()
    }

    fn start_primary(&mut self) -> Result<()> {
        self.start(Side::A, "run")
    }

    fn start_secondary(&mut self) -> Result<()> {
        self.start(Side::B, "secondary")
    }

    fn check_alive(&mut self) -> Result<()> {
        for side in Side::BOTH {
            let Some(pid) = self.programs[side.number()] else {
                continue;
            };
            let host = self.place.lab.host(side.number());
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
        let host = self.place.lab.host(side.number());
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

    fn cut(&mut self, cut: Cut) -> Result<()> {
        let a = Side::A.number();
        let host = self.place.lab.host(a);
        if let Some(fault) = self.fault {
            self.place.lab.cut(a, Network::Replication)?;
            std::thread::sleep(fault.link_dies_before());
        }
        match (cut, self.programs[a]) {
            (Cut::Link, _) => {
                self.link_cut = true;
                return Ok(self.place.lab.cut(a, Network::Replication)?);
            }
            (Cut::Power, _) => host.power_cut(),
            (Cut::Kill, Some(pid)) => host.signal(pid, SIGKILL)?,
            _ => return Ok(()),
        }
        self.programs[a] = None;
        Ok(())
    }

    fn step_at_cut(&self) -> Option<String> {
        // What the dead host knew is gone with its memory; the survivor tells what had arrived.
        None
    }

    fn save_logs(&mut self) {
        for side in Side::BOTH {
            let host = self.place.lab.host(side.number());
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
