//! A run of the demo with stand-ins for the hosts: a real Redis in the place of the guest,
//! and statuses made up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::{Netns, Network, Process};
use rustix::process::Signal;
use xtask::demo::options::{Cut, Disk, Guest, Hosts, Options, Pace};
use xtask::demo::pair::{BARE_PORT, Pair, Place, Role, Side, Status, Takeover};
use xtask::demo::result::{Records, Report};
use xtask::demo::run::Session;
use xtask::ui::Ui;

/// What happens at the cut.
#[derive(Clone, Copy)]
enum Fate {
    /// Nobody notices: a takeover as it should be.
    Unnoticed,
    /// The service dies for good.
    Death,
    /// The service forgets what it was told.
    Amnesia,
    /// The service forgets what it was told before its host came back.
    AmnesiaBefore,
    /// The service never answers.
    Stillborn,
}

struct Stage(Fate);

struct StandIn {
    fate: Fate,
    netns: Netns,
    redis: Option<Process>,
    lives: Side,
    cut: bool,
}

impl StandIn {
    fn forget(&self) -> Result<()> {
        let flush = || std::process::Command::new("redis-cli").arg("flushall").output();
        assert!(self.netns.run(flush)??.status.success());
        Ok(())
    }
}

impl Place for Stage {
    fn name(&self) -> &'static str {
        "local"
    }

    fn pace(&self) -> Pace {
        Pace {
            boot_max: Duration::from_secs(2),
            before_cut_min: Duration::from_millis(100),
            before_cut_max: Duration::from_millis(200),
            after_cut_min: Duration::from_millis(100),
            recover_max: Duration::from_secs(3),
            ..Pace::LOCAL
        }
    }

    fn make(&mut self, _number: u64, _options: &Options) -> Result<Box<dyn Pair + '_>> {
        Ok(Box::new(StandIn {
            fate: self.0,
            netns: Netns::new("redis")?,
            redis: None,
            lives: Side::A,
            cut: false,
        }))
    }
}

impl Pair for StandIn {
    fn service(&self) -> SocketAddr {
        ([127, 0, 0, 1], BARE_PORT).into()
    }

    fn clients(&self) -> Netns {
        self.netns.clone()
    }

    fn start(&mut self, _side: Side, role: Role) -> Result<()> {
        if role == Role::Secondary || matches!(self.fate, Fate::Stillborn) {
            return Ok(());
        }
        let args = ["--bind", "127.0.0.1", "--save", "", "--logfile", "/dev/null"];
        self.redis = Some(self.netns.spawn("redis", "redis-server", &args)?);
        Ok(())
    }

    fn check_alive(&mut self) -> Result<()> {
        Ok(())
    }

    fn status(&mut self, side: Side) -> Result<Option<Status>> {
        let takeover = self.cut.then(|| Takeover {
            ms: 12.5,
            cut_in_step: Some("released".into()),
        });
        Ok((side == self.lives).then(|| Status {
            role: "primary".into(),
            protection: if self.cut { "off" } else { "on" }.into(),
            waiting_because: None,
            epoch: 3,
            takeover,
        }))
    }

    fn cut(&mut self, side: Side, _cut: Cut) -> Result<()> {
        (self.lives, self.cut) = (side.other(), true);
        match self.fate {
            Fate::Unnoticed | Fate::AmnesiaBefore | Fate::Stillborn => {}
            Fate::Death => self.redis = None,
            Fate::Amnesia => self.forget()?,
        }
        Ok(())
    }

    fn step_at_cut(&self, _side: Side) -> Option<String> {
        None
    }

    fn mend(&mut self, _side: Side) -> Result<()> {
        self.cut = false;
        match self.fate {
            Fate::AmnesiaBefore => self.forget(),
            _ => Ok(()),
        }
    }

    fn is_running(&mut self, _side: Side) -> Result<bool> {
        Ok(self.redis.is_some())
    }

    fn signal(&mut self, _side: Side, _signal: Signal) -> Result<()> {
        unreachable!("only the soak sends signals")
    }

    fn order(&self, _side: Side, _order: &[&str]) -> Result<String> {
        unreachable!("only the soak and the bench give orders")
    }

    fn set_joined(&self, _side: Side, _network: Network, _joined: bool) -> Result<()> {
        unreachable!("only the soak cuts networks one by one")
    }

    fn set_plugged(&self, _side: Side, _plugged: bool) -> Result<()> {
        unreachable!("only the soak pulls cables")
    }

    fn set_bridged(&self, _side: Side, _bridged: bool) -> Result<()> {
        unreachable!("only the soak pulls TAPs off")
    }

    fn set_bridge_up(&self, _side: Side, _up: bool) -> Result<()> {
        unreachable!("only the soak takes bridges down")
    }

    fn set_host_running(&self, _side: Side, _running: bool) -> Result<()> {
        unreachable!("only the soak stops hosts")
    }

    fn set_arbiter_answering(&self, _answering: bool) -> Result<()> {
        unreachable!("only the soak silences the arbiter")
    }

    fn boot_anew(&mut self, _side: Side) -> Result<()> {
        unreachable!("no test cuts both")
    }

    fn loss(&self, _side: Side) -> Option<lab::Loss> {
        None
    }

    fn stop(&mut self, _primary: Side) -> Result<Vec<PathBuf>> {
        self.redis = None;
        Ok(vec![PathBuf::from("/dev/null")])
    }

    fn save_logs(&mut self) {}
}

fn options(cut: Cut) -> Options {
    Options {
        guest: Guest::Bare,
        disk: Disk::Shared,
        hosts: Hosts::Local,
        cut,
        seed: Some(5),
        ..Options::LAB
    }
}

fn run_with(fate: Fate, cut: Cut) -> Report {
    let options = options(cut);
    let mut stage = Stage(fate);
    let ui = Ui::default();
    let mut session = Session::new(&mut stage, &options, 5, &ui).unwrap();
    session.run(5, true, &ui)
}

#[test]
fn without_a_cut_what_a_cut_would_cause_is_null() {
    let Report { result, reasons, .. } = run_with(Fate::Unnoticed, Cut::None);
    assert!(result.ok, "{reasons:?}");
    let json = serde_json::to_value(&result).unwrap();
    for null in [
        "cut_in_step",
        "acknowledged_before",
        "acknowledged_after",
        "takeover_ms",
    ] {
        assert!(json[null].is_null(), "{null} is {}", json[null]);
    }
    assert_eq!(
        (&json["cut"], &json["syncs"], &json["lost"]),
        (&"none".into(), &3.into(), &0.into())
    );
}

#[test]
fn a_takeover_that_nobody_notices_is_ok() {
    let Report { result, reasons, .. } = run_with(Fate::Unnoticed, Cut::Power);
    assert!(result.ok, "{reasons:?}");
    assert_eq!(
        (result.takeover_ms, result.cut_in_step.as_deref()),
        (Some(12.5), Some("released"))
    );
    let (before, after) = (
        result.acknowledged_before.unwrap(),
        result.acknowledged_after.unwrap(),
    );
    assert!(before > 0 && after > 0 && before + after == result.acknowledged);
}

#[test]
fn a_guest_that_does_not_boot_is_a_run_that_is_not_ok() {
    let Report { result, reasons, .. } = run_with(Fate::Stillborn, Cut::Kill);
    assert!(!result.ok && reasons[0].contains("did not happen"), "{reasons:?}");
}

#[test]
fn a_service_that_dies_is_not_ok() {
    let Report { result, reasons, .. } = run_with(Fate::Death, Cut::Kill);
    assert!(!result.ok && result.connections_lost == 8, "{reasons:?}");
}

#[test]
fn a_service_that_forgets_is_not_ok() {
    let Report { result, reasons, .. } = run_with(Fate::Amnesia, Cut::Power);
    assert!(!result.ok && result.lost > 0, "{reasons:?}");
}

#[test]
fn the_result_has_exactly_the_promised_fields_and_the_first_failure_stays() {
    let report = run_with(Fate::Unnoticed, Cut::Kill);
    let directory = tempfile::tempdir().unwrap();
    let mut records = Records::create(directory.path()).unwrap();
    let mut failed = report.clone();
    failed.result.ok = false;
    failed.result.lost = 7;
    records.add(0, 5, &options(Cut::Kill), &report).unwrap();
    records.add(1, 6, &options(Cut::Kill), &failed).unwrap();
    records.add(2, 7, &options(Cut::Kill), &report).unwrap();
    let text = std::fs::read_to_string(directory.path().join("result.json")).unwrap();
    let names: Vec<&str> = text
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|name| text.contains(&format!("\"{name}\":")))
        .collect();
    assert_eq!(
        names.join(" "),
        "guest hosts cut cut_in_step acknowledged_before acknowledged_after acknowledged lost contradicted \
         connections_lost longest_gap_ms takeover_ms syncs ok"
    );
    assert!(
        text.contains("\"lost\":7"),
        "the first run that was not ok stays: {text}"
    );
    let lines = std::fs::read_to_string(directory.path().join("runs.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn what_an_earlier_run_of_the_same_vm_has_lost_since_is_noticed() {
    let options = Options {
        repeat: 2,
        same_vm: true,
        ..options(Cut::Power)
    };
    let mut stage = Stage(Fate::AmnesiaBefore);
    let ui = Ui::default();
    let mut session = Session::new(&mut stage, &options, 5, &ui).unwrap();
    let first = session.run(5, false, &ui);
    assert!(first.result.ok, "{:?}", first.reasons);
    let second = session.run(6, true, &ui);
    assert_eq!(second.result.lost, 0, "its own writes are all there");
    assert!(
        !second.result.ok && second.reasons[0].contains("earlier run"),
        "{:?}",
        second.reasons
    );
}
