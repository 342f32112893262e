//! A panic, in whatever thread, ends the process: a side whose state is half changed must not go on, and the
//! other host can. It is said in the log, though nobody waits for that longer than a moment.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};
use std::process;
use std::thread;
use std::time::Duration;

use super::own_line;
use super::queue::Queue;

/// Longest wait for the last words to be written, and again for a backtrace, if one is asked for: until it is
/// over, the process holds its sockets, and the other side does not see it dead.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);

/// From now on a panic is told to `queue` and ends the process. The default would write to standard error
/// itself, and wait for whoever does not read it.
pub(crate) fn end_the_process(queue: Queue) {
    set_hook(Box::new(move |info| {
        say(&queue, &last_words(info), backtrace);
        process::abort();
    }));
}

/// Says the last words, and then where that was. To find out takes memory and the program's file, and may
/// fail in turn: by then the last words are out.
fn say(queue: &Queue, last_words: &[u8], backtrace: impl FnOnce() -> Option<String>) {
    queue.push(last_words);
    queue.flush(LAST_WORDS_MAX);
    let Some(backtrace) = backtrace() else { return };
    for line in backtrace.lines() {
        queue.push(&own_line("ERROR", format_args!("{line}")));
    }
    queue.flush(LAST_WORDS_MAX);
}

/// The functions that led here, if the environment asks for them (`RUST_BACKTRACE`).
fn backtrace() -> Option<String> {
    let trace = Backtrace::capture();
    (trace.status() == BacktraceStatus::Captured).then(|| trace.to_string())
}

fn last_words(info: &PanicHookInfo<'_>) -> Vec<u8> {
    let thread = thread::current();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    own_line(
        "ERROR",
        format_args!(
            "this process ends at once, by a mistake in Kemari: thread `{}` at {place}: {}",
            thread.name().unwrap_or("unnamed"),
            info.payload_as_str().unwrap_or("without a word"),
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use rustix::pipe::pipe;

    use super::*;

    /// Set in the process that panics.
    const PANICS: &str = "KEMARI_TEST_PANICS";

    /// A process in which a thread panics: this test program, with one test.
    fn panicking() -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let test = "log::panic::tests::the_process_that_panics";
        command.args(["--exact", test, "--nocapture"]).env(PANICS, "yes");
        command.env_remove("RUST_BACKTRACE").stdout(Stdio::null());
        command
    }

    #[test]
    fn the_process_that_panics() {
        if std::env::var_os(PANICS).is_none() {
            return;
        }
        end_the_process(Queue::start(io::stderr()).expect("a thread"));
        let work = || panic!("a mistake\nin two lines");
        let _ = thread::Builder::new()
            .name("worker".into())
            .spawn(work)
            .map(thread::JoinHandle::join);
        panic!("it went on");
    }

    #[test]
    fn a_panic_in_any_thread_ends_the_process_and_says_where() {
        let output = panicking().output().expect("it runs");
        assert_eq!(output.status.signal(), Some(libc::SIGABRT));
        let said = String::from_utf8_lossy(&output.stderr);
        let words = [
            "thread `worker` at kemari/src/log/panic.rs:",
            "a mistake\\nin two lines",
        ];
        assert!(
            words.iter().all(|word| said.contains(word)) && !said.contains("went on"),
            "{said}"
        );
    }

    #[test]
    fn the_last_words_are_out_before_a_backtrace_is_made() {
        let (reader, writer) = pipe().expect("a pipe");
        let queue = Queue::start(File::from(writer)).expect("a thread");
        rustix::io::ioctl_fionbio(&reader, true).expect("a pipe that does not wait");
        let mut reader = File::from(reader);
        let mut read = move || {
            let mut bytes = [0; 4096];
            let count = reader.read(&mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        };
        say(&queue, b"last words\n", || {
            assert_eq!(read(), "last words\n");
            Some("one\ntwo".into())
        });
        let after = read();
        assert_eq!(after.lines().count(), 2, "{after}");
    }

    #[test]
    fn a_panic_ends_the_process_though_nobody_reads() {
        let (_reader, writer) = pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("a pipe that does not wait");
        let mut file = File::from(writer);
        while file.write(&[0; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&file, false).expect("a pipe that waits");
        let begun = Instant::now();
        let status = panicking().stderr(file).status().expect("it runs");
        assert_eq!(status.signal(), Some(libc::SIGABRT));
        assert!(begun.elapsed() < 50 * LAST_WORDS_MAX);
    }
}
