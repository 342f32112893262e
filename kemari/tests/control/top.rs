//! `kemari top` on a terminal: what stands on the screen is what a terminal emulator makes of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::names::Run;

const PATIENCE: Duration = Duration::from_secs(20);

/// `kemari top` on a terminal of its own.
struct Shown {
    program: Child,
    terminal: File,
    line: OwnedFd,
    output: Receiver<Vec<u8>>,
    reader: JoinHandle<()>,
    emulator: vt100::Parser,
}

fn size(lines: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Shown {
    fn new(run: &Path, lines: u16, columns: u16) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let line = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&line, size(lines, columns)).unwrap();
        let stdio = || Stdio::from(line.try_clone().unwrap());
        // In a session of its own, whose terminal this is: it is told of another size.
        let program = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_kemari"), "top"])
            .env("KEMARI_RUN", run)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let terminal = File::from(terminal);
        let mut screen = terminal.try_clone().unwrap();
        let (bytes, output) = channel();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if bytes.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            program,
            terminal,
            line,
            output,
            reader,
            emulator: vt100::Parser::new(lines, columns, 0),
        }
    }

    /// Takes the program's output in until the screen is as wanted.
    fn wait_until(&mut self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self.emulator.screen()) {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else {
                panic!("{what}: {}", self.emulator.screen().contents());
            };
            self.emulator.process(&bytes);
        }
    }

    fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |screen| screen.contents().contains(text));
    }

    fn type_in(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&mut self, lines: u16, columns: u16) {
        self.emulator.set_size(lines, columns);
        tcsetwinsize(&self.terminal, size(lines, columns)).unwrap();
    }

    /// Waits for its end; the terminal is then as it was.
    fn end(mut self) -> ExitStatus {
        let status = await_end(&mut self.program);
        self.wait_until("the former screen, and a cursor", |screen| {
            !screen.alternate_screen() && !screen.hide_cursor()
        });
        let modes = tcgetattr(&self.line).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        status
    }
}

fn await_end(program: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        match program.try_wait().unwrap() {
            Some(status) => return status,
            None if begin.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
            None => {
                program.kill().unwrap();
                panic!("it goes on");
            }
        }
    }
}

#[test]
fn vms_are_shown_on_screens_of_any_size_until_a_key_ends_it() {
    let run = Run::with(&[("web.sock", "web", "a"), ("db.sock", "db", "b")]);
    let mut shown = Shown::new(run.path(".").as_path(), 24, 80);
    shown.wait_for("2 VMs, 2 not protected");
    shown.wait_until("the first VM in detail", |screen| {
        screen.contents().contains("\n db: syncs a second")
    });
    assert!(shown.emulator.screen().alternate_screen());
    shown.type_in("j");
    shown.wait_for("\n web: syncs a second");
    for (lines, columns) in [(5, 30), (1, 1), (50, 200), (24, 80)] {
        shown.resize(lines, columns);
    }
    shown.wait_for("KiB/s");
    shown.type_in("q");
    assert!(shown.end().success());
}

#[test]
fn a_control_c_and_a_signal_end_it_as_well_and_leave_a_terminal_that_can_be_used() {
    let run = Run::with(&[]);
    let mut shown = Shown::new(run.path(".").as_path(), 24, 80);
    shown.wait_for("no VM runs here");
    shown.type_in("\x03");
    assert!(shown.end().success());
    let mut shown = Shown::new(run.path(".").as_path(), 24, 80);
    shown.wait_for("no VM runs here");
    kill_process(Pid::from_child(&shown.program), Signal::TERM).unwrap();
    assert!(shown.end().success());
}

#[test]
fn a_terminal_that_hangs_up_ends_it() {
    let run = Run::with(&[]);
    let mut shown = Shown::new(run.path(".").as_path(), 24, 80);
    shown.wait_for("no VM runs here");
    let Shown {
        mut program,
        mut terminal,
        output,
        reader,
        ..
    } = shown;
    drop(output);
    // Whatever it draws then is the last that is read.
    terminal.write_all(b"j").unwrap();
    reader.join().unwrap();
    drop(terminal);
    assert!(!await_end(&mut program).success());
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let run = Run::with(&[]);
    let sentence =
        "kemari: `kemari top` shows the VMs on a terminal; for programs there is `kemari list --json`";
    run.fails("top", 1, sentence);
}
