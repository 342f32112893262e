//! A small client of QEMU's machine protocol (QMP).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to the monitor of one QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    host: String,
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates.
    pub(crate) fn connect(host: &str, path: &Path) -> Result<Qmp> {
        let what = || format!("connect to QEMU's monitor of host {host}");
        let stream = UnixStream::connect(path).context(what)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context(what)?;
        let mut qmp = Qmp {
            host: host.to_owned(),
            stream: BufReader::new(stream),
        };
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Carries out a command and returns its result; events in between are passed over.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.context(|| format!("send {command} to QEMU of host {}", self.host))?;
        loop {
            let mut answer = self.line()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or_default().to_owned();
                return Err(Error::Qmp {
                    host: self.host.clone(),
                    command: command.to_owned(),
                    reason,
                });
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let what = || format!("read the answer of QEMU of host {}", self.host);
        let mut line = String::new();
        self.stream.read_line(&mut line).context(what)?;
        serde_json::from_str(&line).context(what)
    }
}
