//! Child processes that die with their guard, and with this process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::error::{Context, Error, Result, tail};

/// Lines of a failed command's output that are shown.
const OUTPUT_LINES_MAX: usize = 20;
/// Interval between two looks at a process that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running child process; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command`, whose parent-death signal is SIGKILL:
    /// it ends with this process even if that is killed.
    ///
    /// The signal is bound to the *thread* that forks, so all children are started by one thread that never
    /// ends.
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Result<Process> {
        let name = name.into();
        let shown = show(&command);
        // SAFETY: prctl and signal are async-signal-safe and allocate nothing.
        unsafe {
            command.pre_exec(|| {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // As from a terminal, also if the tests themselves were started by nohup.
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = on_spawner(move || command.spawn()).context(|| format!("start `{shown}`"))?;
        Ok(Process { name, child })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).context(|| format!("signal {}", self.name))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context(|| format!("kill {}", self.name))?;
        self.child.wait().context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Waits at most `limit` for its end; `None` if it still runs.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self
                .child
                .try_wait()
                .context(|| format!("wait for {}", self.name))?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end and returns what it printed; a status other than 0 is an error that carries the
/// end of its output.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(|| format!("start `{shown}`"))?;
    check(shown, output)
}

/// Makes an error of an exit status other than 0.
pub(crate) fn check(command: String, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let status = output.status.to_string();
    Err(Error::Command {
        command,
        status,
        output: tail(text.trim_end(), OUTPUT_LINES_MAX),
    })
}

/// The command line as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

type Task = Box<dyn FnOnce() + Send>;

/// Runs `task` on the thread that starts all children.
fn on_spawner(task: impl FnOnce() -> io::Result<Child> + Send + 'static) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Task>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = channel::<Task>();
        thread::spawn(move || receiver.iter().for_each(|task| task()));
        Mutex::new(sender)
    });
    let gone = || io::Error::other("the thread that starts children is gone");
    let (sender, receiver) = channel();
    let task: Task = Box::new(move || {
        let _ = sender.send(task());
    });
    spawner
        .lock()
        .map_err(|_| gone())?
        .send(task)
        .map_err(|_| gone())?;
    receiver.recv().map_err(|_| gone())?
}
