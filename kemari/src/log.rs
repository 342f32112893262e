//! The log: to standard error, since standard output may be the guest's console.
//!
//! Nothing waits for it and nothing ends with it: lines are queued for a thread of their own ([`queue`]),
//! which may stand still or fail as it likes; what there is no room for is dropped and counted. However often
//! something happens, it is logged at a bounded rate ([`limit`]), and whatever a line quotes, it is one line
//! ([`text`]).

mod limit;
mod panic;
mod queue;
mod text;

use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use limit::Limits;
pub(crate) use queue::CALLS;
use queue::Queue;
pub(crate) use text::printable;

/// Longest wait for the last lines when the process ends.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// The process's log, once it has begun.
static LOG: OnceLock<Queue> = OnceLock::new();

/// Begins the log, with what `filter` lets through, and has panics end the process through it.
///
/// # Errors
/// If there is no thread for it, or it has begun already.
pub fn start(filter: EnvFilter) -> anyhow::Result<()> {
    let queue = Queue::start(io::stderr()).context("cannot begin the log")?;
    panic::end_the_process(queue.clone());
    let lines = queue.clone();
    let format = tracing_subscriber::fmt::layer()
        .with_writer(move || lines.clone())
        .log_internal_errors(false)
        // Colours are for eyes: a file gets none.
        .with_ansi(io::stderr().is_terminal())
        .fmt_fields(debug_fn(format_field).delimited(" "));
    tracing_subscriber::registry()
        .with(filter)
        .with(Limits::new(queue.clone()))
        .with(format)
        .try_init()
        .context("the log has begun already")?;
    // The subscriber is the only other one, and it was the first.
    let _ = LOG.set(queue);
    Ok(())
}

/// Says why the process ends, as it is. If nobody hears it, the exit status says it.
pub fn say_last(text: &str) {
    match LOG.get() {
        Some(queue) => queue.push(text.as_bytes()),
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// Waits until the log is written, though not for long.
pub fn flush() {
    if let Some(queue) = LOG.get() {
        queue.flush(FAREWELL_MAX);
    }
}

/// Ends the process, its last words written if they can be.
pub fn exit(status: i32) -> ! {
    flush();
    process::exit(status)
}

/// The message as it is, other fields with their names.
fn format_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    text::write(writer, format_args!("{value:?}"))
}

/// A line of the log about the log.
fn own_line(level: &str, message: fmt::Arguments<'_>) -> Vec<u8> {
    let mut line = String::new();
    // Nothing that writes into a string fails, but a clock may.
    let _ = SystemTime.format_time(&mut Writer::new(&mut line));
    let _ = fmt::Write::write_fmt(&mut line, format_args!(" {level:>5} kemari::log: "));
    let _ = text::write(&mut line, message);
    line.push('\n');
    line.into_bytes()
}
