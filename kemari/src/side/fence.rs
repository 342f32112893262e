//! The fence command: cuts the other host off from the shared disks, for certain.
//!
//! The other side waits until it cannot strike any more before it goes on in its place. So it ends in time:
//! it runs in a process group of its own, which is killed when its time is over. In case this process stands
//! still or is gone then, the kernel holds an alarm for it. That ends the command itself alone, and not what
//! it has begun: a script must `exec` what strikes.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::said::Said;
use crate::log::printable;

/// The alarm comes so long after the command should have been killed,
/// and before its time is over for the other side.
const ALARM_AFTER: Duration = Duration::from_millis(100);

/// How long a fence with this time-out may strike after it was ordered, in milliseconds.
pub fn strikes_ms_max(timeout_ms: u32) -> u64 {
    u64::from(timeout_ms) + ALARM_AFTER.as_millis() as u64
}

/// Letters of a command that are shown.
const SHOWN_LETTERS_MAX: usize = 200;

/// How often a running fence command is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Runs the command, which cannot strike any more at `until`; fails unless it ends with status 0 a bit
/// before. One that hangs is killed, with all that it has begun, and counts as failed; one whose time is over
/// already does not begin. Says how it succeeded.
pub fn fence(command: &[String], until: Instant) -> Result<String, String> {
    if command.is_empty() {
        return Err(
            "no fence command is configured, but disks are shared; set `fence` in this host's section".into(),
        );
    }
    let job = Job {
        what: "fence command",
        limit: "fence_timeout_ms",
        time: None,
        input: None,
    };
    run(&job, command, until)
}

/// Runs a hook in the same way, with this to read, for so long. What it has begun ends with it,
/// also when it succeeds.
pub fn run_hook(command: &[String], input: &[u8], timeout: Duration) -> Result<String, String> {
    let job = Job {
        what: "hook",
        limit: "timeout_ms",
        time: Some(timeout),
        input: Some(input),
    };
    run(&job, command, Instant::now() + timeout + ALARM_AFTER)
}

/// What a command is run for.
struct Job<'a> {
    what: &'static str,
    /// The key of its time.
    limit: &'static str,
    /// That time, where all of it is left.
    time: Option<Duration>,
    input: Option<&'a [u8]>,
}

fn run(job: &Job<'_>, command: &[String], until: Instant) -> Result<String, String> {
    let what = job.what;
    let [program, arguments @ ..] = command else {
        return Err(format!("a {what} names no program"));
    };
    let shown = printable(&command.join(" "), SHOWN_LETTERS_MAX);
    let now = Instant::now();
    let left = until.saturating_duration_since(now).saturating_sub(ALARM_AFTER);
    if left.is_zero() {
        return Err(format!(
            "this process stood still until the time of the {what} `{shown}` was over"
        ));
    }
    let (mut child, mut said) = start(program, arguments, left, job.input)
        .map_err(|error| format!("the {what} `{shown}` cannot be started: {error}"))?;
    let ended = wait_until(&child, now + left, &mut said);
    // As long as it is not reaped, nobody else can have its number.
    if job.input.is_some() || !matches!(&ended, Ok(true)) || !has_succeeded(&child) {
        kill_group(&child);
    }
    let status = child.wait();
    let said = match said.last_words() {
        words if words.is_empty() => words,
        words => format!("; it says: {words}"),
    };
    match (ended, status) {
        (Ok(true), Ok(status)) if status.success() => Ok(format!("the {what} `{shown}` has succeeded{said}")),
        (Ok(true), Ok(status)) => Err(format!("the {what} `{shown}` failed: {status}{said}")),
        (Ok(false), _) => Err(format!(
            "the {what} `{shown}` did not end within {} ms, `{}`{said}",
            job.time.unwrap_or(left).as_millis(),
            job.limit
        )),
        (Err(error), _) | (_, Err(error)) => Err(format!("the {what} `{shown}` cannot be watched: {error}")),
    }
}

/// Starts it, in a process group of its own, to be ended when so much time and a bit is over.
fn start(
    program: &str,
    arguments: &[String],
    left: Duration,
    input: Option<&[u8]>,
) -> io::Result<(Child, Said)> {
    let (said, mouth) = Said::pipe()?;
    let mut command = Command::new(program);
    let stdin = match input {
        Some(input) => Stdio::from(in_memory(input)?),
        None => Stdio::null(),
    };
    command.args(arguments).stdin(stdin).process_group(0);
    command.stdout(mouth.try_clone()?).stderr(mouth);
    // SAFETY: between fork and exec only a system call is made, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || set_alarm(left + ALARM_AFTER)) };
    Ok((command.spawn()?, said))
}

/// A file in memory: unlike a pipe it holds up nobody, whether it is read or not.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("alarm", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// What the kernel does to the program that follows when so much time has passed: it ends it, though not its
/// children, which inherit no alarm.
fn set_alarm(left: Duration) -> io::Result<()> {
    let never = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: never,
        it_value: libc::timeval {
            tv_sec: left.as_secs() as libc::time_t,
            // Never 0: that would be no alarm.
            tv_usec: left.subsec_micros().max(1) as libc::suseconds_t,
        },
    };
    // SAFETY: the kernel reads `timer`, which outlives the call, and writes nothing.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether it has ended before `until`. It is not reaped.
fn wait_until(child: &Child, until: Instant, said: &mut Said) -> io::Result<bool> {
    loop {
        said.listen();
        if status_of(child)?.is_some() {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Its exit status, if it has ended; -1 if a signal ended it.
fn status_of(child: &Child) -> io::Result<Option<i32>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(Pid::from_child(child)), options)?;
    Ok(status.map(|status| status.exit_status().unwrap_or(-1)))
}

fn has_succeeded(child: &Child) -> bool {
    matches!(status_of(child), Ok(Some(0)))
}

fn kill_group(child: &Child) {
    // If all of it has ended already, all is well.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_within(time: Duration, words: &[&str]) -> Result<(), String> {
        let command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        fence(&command, Instant::now() + time + ALARM_AFTER).map(drop)
    }

    /// For what does not end by itself.
    fn run(words: &[&str]) -> Result<(), String> {
        run_within(Duration::from_millis(300), words)
    }

    /// For what must have its time, also on a busy host.
    fn run_to_its_end(words: &[&str]) -> Result<(), String> {
        run_within(Duration::from_millis(2_500), words)
    }

    #[test]
    fn only_a_fence_that_says_so_has_succeeded() {
        assert_eq!(run_to_its_end(&["true"]), Ok(()));
        assert!(run_to_its_end(&["false"]).unwrap_err().contains("failed"));
        assert!(run(&["sleep", "30"]).unwrap_err().contains("did not end"));
        assert!(
            run(&["/nonexistent/fence"])
                .unwrap_err()
                .contains("cannot be started")
        );
        assert!(run(&[]).unwrap_err().contains("no fence command"));
    }

    #[test]
    fn what_a_late_fence_has_begun_ends_with_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("struck");
        // A child of the command would strike after its time.
        let script = format!("(sleep 1; touch {}) & sleep 30", mark.display());
        assert!(run(&["sh", "-c", &script]).unwrap_err().contains("did not end"));
        let failing = format!("(sleep 1; touch {}) & exit 3", mark.display());
        assert!(
            run_to_its_end(&["sh", "-c", &failing])
                .unwrap_err()
                .contains("failed")
        );
        thread::sleep(Duration::from_millis(1_500));
        assert!(!mark.exists(), "it struck after its time");
    }

    #[test]
    fn what_a_fence_says_is_in_the_error_and_cannot_hold_it_up() {
        let error = run_to_its_end(&["sh", "-c", "echo no power switch >&2; exit 3"]).unwrap_err();
        assert!(
            error.contains("exit status: 3; it says: no power switch"),
            "{error}"
        );
        // Far more than a pipe takes, and lines that would be others' in the log.
        let talk = ["sh", "-c", "yes of no use at all | head -c 300000; exit 1"].map(str::to_owned);
        let error = fence(&talk, Instant::now() + Duration::from_secs(10)).unwrap_err();
        assert!(
            error.contains("exit status: 1") && !error.contains('\n'),
            "{error}"
        );
        assert!(error.len() < 5000);
        // One that leaves somebody behind who holds the pipe.
        assert_eq!(run_to_its_end(&["sh", "-c", "sleep 5 & echo done"]), Ok(()));
    }

    #[test]
    fn of_a_long_command_the_beginning_is_shown() {
        let word = "x".repeat(1_000);
        let error = run_to_its_end(&["false", &word]).unwrap_err();
        assert!(error.contains(&format!("`false {}…`", &word[..194])), "{error}");
    }

    #[test]
    fn a_fence_whose_time_is_over_does_not_begin() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("struck");
        let command = ["touch".to_owned(), mark.display().to_string()];
        let error = fence(&command, Instant::now()).expect_err("it has no time");
        assert!(error.contains("stood still"), "{error}");
        assert!(!mark.exists());
    }

    #[test]
    fn a_hook_has_all_of_its_time() {
        let command = ["sleep".to_owned(), "30".to_owned()];
        let begun = Instant::now();
        let error = run_hook(&command, b"", Duration::from_millis(100)).expect_err("it hangs");
        assert!(error.contains("did not end within"), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn the_kernel_ends_a_fence_whose_runner_stands_still() {
        let mut command = Command::new("sleep");
        command.arg("30");
        // SAFETY: as above.
        unsafe { command.pre_exec(|| set_alarm(Duration::from_millis(100))) };
        let status = command.status().expect("it is started");
        assert!(!status.success(), "{status}");
    }
}
