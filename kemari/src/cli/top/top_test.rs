use std::path::PathBuf;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::json;

use super::view;
use super::watch::{Quantiles, RATES_MAX, Watch};
use crate::cli::sides::Side;
use crate::control::{ClientError, DiskState, DiskStatus, Readiness, Status};

const INTERVAL: Duration = Duration::from_secs(2);

fn status(vm: &str) -> Status {
    let status = json!({
        "vm": vm, "host": "a", "version": "0.1.0", "role": "primary", "term": 3, "epoch": 7, "since_s": 180,
        "protection": "on", "arbiter": "grants term 3", "counters": {},
    });
    let mut status: Status = serde_json::from_value(status).expect("a status");
    status.readiness = Some(Readiness {
        ready: true,
        reasons: Vec::new(),
        checked_ms: 1,
    });
    status
}

fn side(status: Status) -> Side {
    Side {
        socket: format!("/run/kemari/{}.sock", status.vm).into(),
        owner: 0,
        answer: Ok(status),
    }
}

fn hanging(vm: &str) -> Side {
    let socket = PathBuf::from(format!("/run/kemari/{vm}.sock"));
    Side {
        socket: socket.clone(),
        owner: 0,
        answer: Err(ClientError::OtherVersion(socket)),
    }
}

/// What a screen of that size shows, a string a line.
fn screen(watch: &Watch, columns: u16, lines: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).expect("a terminal");
    terminal
        .draw(|frame| view::draw(frame, watch, INTERVAL))
        .expect("a drawing");
    let buffer = terminal.backend().buffer().clone();
    let symbols = buffer.content().chunks(columns.into());
    symbols
        .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>())
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// The line with that word.
fn line<'a>(screen: &'a [String], word: &str) -> &'a str {
    screen
        .iter()
        .find(|line| line.contains(word))
        .unwrap_or_else(|| panic!("{word}: {screen:#?}"))
}

#[test]
fn how_fast_a_vm_is_is_told_from_one_look_to_the_next() {
    let (mut watch, begin) = (Watch::default(), Instant::now());
    let mut web = status("web");
    web.counters.syncs = 1000;
    web.timings.sync_us.note(5000);
    watch.look(begin, Ok(vec![side(web.clone())]));
    assert_eq!(watch.rows()[0].pace, None, "there is nothing to compare with");
    web.counters.syncs += 500;
    web.counters.wire_bytes += 2 << 20;
    (0..100).for_each(|_| web.timings.sync_us.note(16));
    (0..2).for_each(|_| web.timings.sync_us.note(30));
    watch.look(begin + INTERVAL, Ok(vec![side(web.clone())]));
    let pace = watch.rows()[0].pace.expect("two looks");
    assert_eq!(
        (pace.syncs_per_s, pace.wire_bytes_per_s),
        (250.0, f64::from(1 << 20))
    );
    let quantiles = Quantiles {
        half_us: 16,
        most_us: 30,
    };
    assert_eq!(
        (pace.sync_us, pace.pause_us),
        (Some(quantiles), None),
        "the 5 ms were before"
    );

    let screen = screen(&watch, 120, 30);
    assert_eq!(screen[0], "kemari top   1 VM, all protected");
    let web_line = line(&screen, "protected  primary");
    let cells: Vec<_> = web_line
        .split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect();
    let wanted = [
        "web",
        "protected",
        "primary",
        "3 min",
        "250",
        "16/30",
        "-",
        "1024",
        "none",
        "█",
        "a",
    ];
    assert_eq!(cells, wanted, "{web_line}");
    assert!(line(&screen, "at most").starts_with(" web: syncs a second, at most 250 "));
    assert!(line(&screen, "arbiter").contains("grants term 3"));
    assert!(screen[29].contains("looks every 2 s"));
}

#[test]
fn a_process_that_began_anew_and_one_that_hangs_have_no_pace() {
    let (mut watch, begin) = (Watch::default(), Instant::now());
    let mut web = status("web");
    web.counters.syncs = 1000;
    watch.look(begin, Ok(vec![side(web.clone())]));
    web.counters.syncs = 10;
    watch.look(begin + INTERVAL, Ok(vec![side(web.clone())]));
    assert_eq!(watch.rows()[0].pace, None);
    web.counters.syncs = 30;
    watch.look(begin + 2 * INTERVAL, Ok(vec![side(web.clone())]));
    assert_eq!(watch.rows()[0].rates, [10]);
    watch.look(begin + 3 * INTERVAL, Ok(vec![hanging("web")]));
    assert!(watch.rows()[0].rates.is_empty());
    let screen = screen(&watch, 80, 24);
    assert_eq!(screen[0], "kemari top   1 VM, 1 not protected");
    assert!(line(&screen, "does not answer").starts_with("web  does not answer  -"));
    line(
        &screen,
        "the process behind /run/kemari/web.sock answered in another way",
    );
}

#[test]
fn rates_have_a_limit() {
    let (mut watch, begin) = (Watch::default(), Instant::now());
    let mut web = status("web");
    for second in 0..2 * RATES_MAX as u64 {
        web.counters.syncs += second;
        watch.look(begin + Duration::from_secs(second), Ok(vec![side(web.clone())]));
    }
    let rates = &watch.rows()[0].rates;
    assert_eq!(
        (rates.len(), rates.back()),
        (RATES_MAX, Some(&(2 * RATES_MAX as u64 - 1)))
    );
}

#[test]
fn what_is_in_the_way_is_told_of_the_vm_that_is_chosen() {
    let (mut watch, begin) = (Watch::default(), Instant::now());
    let mut mail = status("mail");
    mail.readiness = Some(Readiness {
        ready: false,
        reasons: vec!["the log of the other host is full".to_owned()],
        checked_ms: 1,
    });
    mail.disks = vec![DiskStatus {
        disk: "blk0".to_owned(),
        state: DiskState::Failed,
        failure: Some("no space".to_owned()),
        ..DiskStatus::default()
    }];
    let all = || vec![side(status("db")), side(mail.clone()), side(status("web"))];
    watch.look(begin, Ok(all()));
    assert_eq!(watch.chosen(), Some(0));
    assert!(
        !screen(&watch, 100, 24)
            .join("\n")
            .contains("log of the other host")
    );
    watch.choose(1);
    let shown = screen(&watch, 100, 24);
    assert_eq!(shown[0], "kemari top   3 VMs, 1 not protected");
    assert!(line(&shown, "mail  not ready").contains("1 failed"));
    line(
        &shown,
        "  protection  not ready: the log of the other host is full",
    );
    // It stays chosen when others come before it and go.
    watch.look(
        begin + INTERVAL,
        Ok(vec![side(status("a")), side(status("db")), side(mail.clone())]),
    );
    assert_eq!(watch.rows()[watch.chosen().expect("one")].vm, "mail");
    watch.look(begin + 2 * INTERVAL, Ok(vec![side(status("a"))]));
    assert_eq!(watch.chosen(), Some(0));
    watch.choose(isize::MAX);
    watch.choose(isize::MIN);
    assert_eq!(watch.chosen(), Some(0));
    watch.look(begin + 3 * INTERVAL, Ok(Vec::new()));
    assert_eq!(
        (watch.chosen(), screen(&watch, 60, 5)[0].as_str()),
        (None, "kemari top   no VM runs here")
    );
}

#[test]
fn a_look_that_failed_is_told_and_keeps_what_was_known() {
    let mut watch = Watch::default();
    assert_eq!(screen(&watch, 60, 5)[0], "kemari top   looking");
    watch.look(Instant::now(), Ok(vec![side(status("web"))]));
    watch.look(
        Instant::now(),
        Err(anyhow::anyhow!("cannot look into /run/kemari")),
    );
    let shown = screen(&watch, 60, 20);
    assert_eq!(shown[0], "kemari top   cannot look into /run/kemari");
    line(&shown, "web  protected");
    watch.look(Instant::now(), Ok(vec![side(status("web"))]));
    assert_eq!(screen(&watch, 60, 20)[0], "kemari top   1 VM, all protected");
}

#[test]
fn of_disks_the_worst_is_told() {
    let disk = |state| DiskStatus {
        state,
        ..DiskStatus::default()
    };
    let shown = |states: &[DiskState]| {
        let mut watch = Watch::default();
        let mut web = status("web");
        web.disks = states.iter().copied().map(disk).collect();
        watch.look(Instant::now(), Ok(vec![side(web)]));
        line(&screen(&watch, 100, 20), "web  protected").to_owned()
    };
    let (failed, copying) = (DiskState::Failed, DiskState::Copying);
    assert!(shown(&[copying, failed, copying]).contains("1 failed"));
    assert!(shown(&[copying, DiskState::InSync, copying]).contains("2 copying"));
    assert!(shown(&[DiskState::Inconsistent, copying]).contains("1 inconsistent"));
    assert!(shown(&[DiskState::InSync, DiskState::Alone]).contains("1 alone"));
    assert!(shown(&[DiskState::InSync, DiskState::Whole, DiskState::InUse]).contains("3 good"));
    assert!(shown(&[DiskState::InSync]).contains("1 good"));
}

/// Columns that do not fit are left out from the right, and nothing is too small for it.
#[test]
fn any_screen_will_do() {
    let mut watch = Watch::default();
    watch.look(
        Instant::now(),
        Ok((0..40)
            .map(|number| side(status(&format!("vm{number:02}"))))
            .collect()),
    );
    watch.choose(isize::MAX);
    for columns in (1..200).step_by(7) {
        for lines in 0..40 {
            let shown = screen(&watch, columns, lines);
            // The chosen one is in sight wherever there is room for the list.
            if columns > 4 && lines > 3 {
                line(&shown, "vm39");
            }
        }
    }
    let shown = screen(&watch, 16, 10);
    assert_eq!(line(&shown, "vm39"), "vm39  protected");
    assert_eq!(shown[..2], ["kemari top   40", "VM    STATE"]);
}
