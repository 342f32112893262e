//! `kemari top`: all VMs of this host as they stand, and how fast they are kept in step, until it is ended.

#[cfg(test)]
mod top_test;
mod view;
mod watch;

use std::io::{self, IsTerminal};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ratatui::DefaultTerminal;
use ratatui::backend::Backend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::sides::{self, Side};
use crate::threads;
use watch::Watch;

/// Longest time in which an end by a signal is noticed, and what was found out is shown.
const LOOK_UP: Duration = Duration::from_millis(100);

/// How often it is looked whether there still is a terminal.
const TERMINAL_INTERVAL: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What was found out of all sides, and when.
type Look = (Instant, anyhow::Result<Vec<Side>>);

/// Shows them on the terminal until a key or a signal ends it. All are asked once in `interval`.
///
/// # Errors
/// If there is no terminal, or it fails.
pub(crate) fn run(interval: Duration) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("`kemari top` shows the VMs on a terminal; for programs there is `kemari list --json`");
    }
    let is_ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // A second one ends it at once: it may wait for a terminal that takes nothing.
        signal_hook::flag::register_conditional_shutdown(signal, 1, is_ended.clone())
            .context("cannot listen for signals")?;
        signal_hook::flag::register(signal, is_ended.clone()).context("cannot listen for signals")?;
    }
    threads::start("terminal", end_without_terminal)
        .context("cannot start a thread that watches the terminal")?;
    let looks = begin_looks(interval)?;
    let terminal = ratatui::try_init()
        .inspect_err(|_| ratatui::restore())
        .context("cannot use the terminal")?;
    let shown = show(terminal, &looks, &is_ended, interval);
    ratatui::restore();
    shown
}

/// Ends the process once the terminal is gone: whoever waits for a key would read from it for ever, and see
/// no signal.
fn end_without_terminal() {
    let stdin = io::stdin();
    loop {
        // No more is asked than whether it hangs up, which is always told.
        let mut line = [PollFd::new(&stdin, PollFlags::empty())];
        let _ = poll(&mut line, Some(&TERMINAL_INTERVAL));
        if !line[0].revents().is_empty() {
            exit(1);
        }
    }
}

/// Asks all sides again and again: one that hangs holds up the next look, and no key.
fn begin_looks(interval: Duration) -> anyhow::Result<Receiver<Look>> {
    let (found, looks) = sync_channel(1);
    let look = move || {
        while found.send((Instant::now(), sides::all())).is_ok() {
            sleep(interval);
        }
    };
    threads::start("looks", look).context("cannot start a thread that asks the VMs")?;
    Ok(looks)
}

fn show(
    mut terminal: DefaultTerminal,
    looks: &Receiver<Look>,
    is_ended: &AtomicBool,
    interval: Duration,
) -> anyhow::Result<()> {
    let mut watch = Watch::default();
    let mut is_stale = true;
    while !is_ended.load(Ordering::SeqCst) {
        match looks.try_recv() {
            Ok((at, found)) => {
                watch.look(at, found);
                is_stale = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => bail!("the thread that asks the VMs has ended"),
        }
        if std::mem::take(&mut is_stale) {
            terminal
                .draw(|frame| view::draw(frame, &watch, interval))
                .context("cannot draw on the terminal")?;
        }
        if event::poll(LOOK_UP).context("cannot read from the terminal")? {
            is_stale = true;
            match event::read().context("cannot read from the terminal")? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match wish(key) {
                    Some(Wish::End) => return Ok(()),
                    Some(Wish::Choose(by)) => watch.choose(by),
                    None => {}
                },
                Event::Resize(..) => begin_anew(&mut terminal).context("cannot draw on the terminal")?,
                _ => {}
            }
        }
    }
    Ok(())
}

/// Has the next drawing draw everything: a screen that was smaller for a moment has forgotten what it had no
/// room for, though it may have the size again that it had at the last drawing.
fn begin_anew(terminal: &mut DefaultTerminal) -> io::Result<()> {
    terminal.backend_mut().clear()?;
    terminal.swap_buffers();
    Ok(())
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    End,
    /// Another VM, so many lines down.
    Choose(isize),
}

fn wish(key: KeyEvent) -> Option<Wish> {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if is_control => Some(Wish::End),
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::End),
        KeyCode::Char('j') | KeyCode::Down => Some(Wish::Choose(1)),
        KeyCode::Char('k') | KeyCode::Up => Some(Wish::Choose(-1)),
        KeyCode::PageDown => Some(Wish::Choose(10)),
        KeyCode::PageUp => Some(Wish::Choose(-10)),
        KeyCode::Home => Some(Wish::Choose(isize::MIN)),
        KeyCode::End => Some(Wish::Choose(isize::MAX)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let plain = |code| wish(KeyEvent::new(code, KeyModifiers::NONE));
        let control = |letter| wish(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        for end in [
            plain(KeyCode::Char('q')),
            plain(KeyCode::Esc),
            control('c'),
            control('d'),
        ] {
            assert_eq!(end, Some(Wish::End));
        }
        assert_eq!(plain(KeyCode::Char('c')), None);
        for (key, by) in [
            (KeyCode::Down, 1),
            (KeyCode::Char('j'), 1),
            (KeyCode::Up, -1),
            (KeyCode::Char('k'), -1),
            (KeyCode::PageDown, 10),
            (KeyCode::PageUp, -10),
            (KeyCode::Home, isize::MIN),
            (KeyCode::End, isize::MAX),
        ] {
            assert_eq!(plain(key), Some(Wish::Choose(by)), "{key}");
        }
    }
}
