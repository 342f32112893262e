//! The agent inside an emulated host: runs programs, carries files. It trusts whoever reaches it, which in
//! the lab's private network namespace is only the lab.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::agent::{AGENT_PORT, Answer, Program, Request, read_message, write_message};
use rustix::process::{Pid, Signal, kill_process};

/// Interval between two looks at a running program.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Programs started by `Spawn`: exit status by process id, none while they run.
type Started = Arc<Mutex<HashMap<u32, Option<i32>>>>;

fn main() -> ExitCode {
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, AGENT_PORT)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("lab-agent: cannot listen on port {AGENT_PORT}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let started = Started::default();
    for stream in listener.incoming().flatten() {
        let started = started.clone();
        thread::spawn(move || {
            if let Err(error) = serve(stream, &started) {
                eprintln!("lab-agent: {error}");
            }
        });
    }
    ExitCode::SUCCESS
}

fn serve(mut stream: TcpStream, started: &Started) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (request, payload) = read_message(&mut stream)?;
    let (answer, payload) = carry_out(request, payload, started)
        .unwrap_or_else(|error| (Answer::Refused(error.to_string()), Vec::new()));
    write_message(&mut stream, &answer, &payload)
}

fn carry_out(request: Request, payload: Vec<u8>, started: &Started) -> io::Result<(Answer, Vec<u8>)> {
    match request {
        Request::Exec { program, limit_ms } => exec(&program, payload, Duration::from_millis(limit_ms)),
        Request::Spawn { program, log } => spawn(&program, &log, started),
        Request::State { pid } => {
            let states = started.lock().unwrap_or_else(PoisonError::into_inner);
            let state = states
                .get(&pid)
                .ok_or_else(|| io::Error::other(format!("{pid} was never started")))?;
            Ok((Answer::State(*state), Vec::new()))
        }
        Request::Signal { pid, signal } => {
            let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidInput)?;
            let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
            kill_process(pid, signal)?;
            Ok((Answer::Done, Vec::new()))
        }
        Request::Put { path, mode } => {
            if let Some(parent) = Path::new(&path).parent() {
                fs::create_dir_all(parent)?;
            }
            // A program that runs cannot be written to, but its name can be given to another file.
            let half = format!("{path}.half");
            fs::write(&half, payload)?;
            fs::set_permissions(&half, Permissions::from_mode(mode))?;
            fs::rename(&half, &path)?;
            Ok((Answer::Done, Vec::new()))
        }
        Request::Get { path } => Ok((Answer::Done, fs::read(path)?)),
    }
}

fn command(program: &Program) -> io::Result<Command> {
    let (name, args) = program
        .words
        .split_first()
        .ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(name);
    command
        .args(args)
        .envs(program.env.iter().cloned())
        .process_group(0);
    Ok(command)
}

fn start(command: &mut Command) -> io::Result<Child> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .map_err(|error| io::Error::other(format!("cannot start {name}: {error}")))
}

fn exec(program: &Program, input: Vec<u8>, limit: Duration) -> io::Result<(Answer, Vec<u8>)> {
    let mut command = command(program)?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(&mut command)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // A program need not read its input: a broken pipe is no failure.
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    let stdout = thread::spawn(move || read_all(stdout));
    let stderr = thread::spawn(move || read_all(stderr));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            // The whole group, or a grandchild would hold the pipes open.
            let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?;
            return Err(io::Error::other(format!(
                "`{}` ran longer than {limit:?}",
                program.words.join(" ")
            )));
        }
        thread::sleep(POLL_INTERVAL);
    };
    let mut output = stdout.join().unwrap_or_default();
    let stdout_bytes = output.len() as u32;
    output.extend(stderr.join().unwrap_or_default());
    Ok((
        Answer::Ended {
            status: number(status),
            stdout_bytes,
        },
        output,
    ))
}

fn read_all(stream: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error is still worth showing.
    let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
    bytes
}

fn spawn(program: &Program, log: &str, started: &Started) -> io::Result<(Answer, Vec<u8>)> {
    let mut command = command(program)?;
    let log = File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = start(&mut command)?;
    let pid = child.id();
    let started = started.clone();
    started
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(pid, None);
    thread::spawn(move || {
        let status = child.wait().map_or(-1, number);
        started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, Some(status));
    });
    Ok((Answer::Started { pid }, Vec::new()))
}

fn number(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
