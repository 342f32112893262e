//! Which running side a command is for.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;

use crate::config::Config;
use crate::control::Client;

/// Where control sockets are by default.
const DIRECTORY: &str = "/run/kemari";

/// A running side, by its configuration or by its control socket. Without either: the only one on this machine.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// The configuration of the VM [default: the only VM that runs on this machine]
    pub config: Option<PathBuf>,
    /// This host's name in the configuration [default: the machine's name]
    #[arg(long, value_name = "NAME", requires = "config")]
    pub host: Option<String>,
    /// The control socket, instead of a configuration.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub socket: Option<PathBuf>,
}

impl Target {
    /// A client of the control socket that is meant.
    pub fn client(&self) -> anyhow::Result<Client> {
        self.find()?.ok_or_else(|| self.nothing_here())
    }

    /// The sentence for [`Target::find`]'s `None`.
    pub fn nothing_here(&self) -> anyhow::Error {
        anyhow!("no VM runs here: {DIRECTORY} holds no control socket. Name a configuration, or a --socket")
    }

    /// A client of the control socket that is meant; `None`: none is named, and there is none.
    pub fn find(&self) -> anyhow::Result<Option<Client>> {
        if let Some(socket) = &self.socket {
            return Ok(Some(Client::new(socket)));
        }
        if let Some(path) = &self.config {
            let config = Config::load(path)?;
            let host = config.select_host(self.host.as_deref())?;
            return Ok(Some(Client::new(config.host(&host).control())));
        }
        let sockets = sockets_in(Path::new(DIRECTORY))?;
        match sockets.as_slice() {
            [only] => Ok(Some(Client::new(only))),
            [] => Ok(None),
            several => {
                let names = several
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ");
                bail!("several VMs run here: say which one with --socket ({names})")
            }
        }
    }
}

fn sockets_in(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => {
            entries.with_context(|| format!("cannot look for control sockets in {}", directory.display()))?
        }
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sockets: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    sockets.sort();
    Ok(sockets)
}
