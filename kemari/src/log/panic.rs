//! A panic, in whatever thread, ends the process: a side whose state is half changed must not go on, and the other host
//! can. It is said in the log, though nobody waits for that longer than a moment.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};
use std::process;
use std::thread;
use std::time::Duration;

use super::own_line;
use super::queue::Queue;

/// Longest wait for the last words to be written: until it is over, the process holds its sockets, and the other side
/// does not see it dead.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);

/// From now on a panic is told to `queue` and ends the process. The default would write to standard error itself, and
/// wait for whoever does not read it.
pub fn end_the_process(queue: Queue) {
    set_hook(Box::new(move |info| {
        queue.push(&last_words(info));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            for line in trace.to_string().lines() {
                queue.push(&own_line("ERROR", format_args!("{line}")));
            }
        }
        queue.flush(LAST_WORDS_MAX);
        process::abort();
    }));
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
