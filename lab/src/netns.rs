//! Network namespaces without names: held by a file descriptor, gone with the last process that uses them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio, id};
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::{Context, Error, Result};
use crate::packages::tool;
use crate::process::{Process, check};

/// A network namespace. Clones are the same namespace; it ends with the last of them and the last process in
/// it.
///
/// To look into one from a shell: `nsenter --net=/proc/PID/fd/FD`, with the path that [`Netns::path`] gives.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    namespace: Arc<OwnedFd>,
}

impl Netns {
    /// Makes a namespace with its loopback up and IPv6 off (its neighbour discovery is noise to a test that
    /// counts packets). `name` is for messages only.
    pub fn new(name: &str) -> Result<Netns> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot("network namespaces"));
        }
        let make = || -> io::Result<OwnedFd> {
            // SAFETY: a namespace is changed, no file descriptor table is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                if fs::exists(&path)? {
                    fs::write(&path, "1")?;
                }
            }
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        };
        let made = thread::scope(|scope| scope.spawn(make).join());
        let namespace = made.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        let namespace = namespace.context(|| format!("make the network namespace {name}"))?;
        let netns = Netns {
            name: name.into(),
            namespace: Arc::new(namespace),
        };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other processes reach it while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.namespace.as_raw_fd())
    }

    /// Runs `task` in a thread of its own inside the namespace. Sockets it makes stay in the namespace
    /// wherever they are used later: `netns.run(|| TcpStream::connect(address))` gives a connection from
    /// there.
    pub fn run<R: Send>(&self, task: impl FnOnce() -> R + Send) -> Result<R> {
        let enter_and_run = || -> io::Result<R> {
            self.enter()?;
            Ok(task())
        };
        let result = thread::scope(|scope| scope.spawn(enter_and_run).join());
        match result {
            Ok(result) => result.context(|| format!("enter the network namespace {}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Moves the calling thread into the namespace, for threads that live there.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(
            self.namespace.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// A command that will run inside the namespace, to be started by [`Process::spawn`] or by its own
    /// methods.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.clone();
        // SAFETY: setns is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(move || namespace.enter());
        }
        command
    }

    /// Starts a program inside the namespace; see [`Process::spawn`].
    pub fn spawn(&self, name: &str, program: &str, args: &[&str]) -> Result<Process> {
        let mut command = self.command(program);
        command.args(args);
        Process::spawn(name, command)
    }

    /// Runs lines of `ip` commands (without the word `ip`) inside the namespace, by one `ip -batch`.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = self.command(tool("ip"));
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = || "start `ip` (Debian package iproute2)".to_string();
        let mut child = command.spawn().context(start)?;
        let mut stdin = child.stdin.take().expect("stdin was asked for");
        // A child that died early closes the pipe; its status says more than the broken pipe would.
        let _ = stdin
            .write_all(batch.as_bytes())
            .and_then(|()| stdin.write_all(b"\n"));
        drop(stdin);
        let output = child.wait_with_output().context(start)?;
        check(format!("ip -batch in {}: {}", self.name, batch.trim()), output)?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "netns_test.rs"]
mod tests;
