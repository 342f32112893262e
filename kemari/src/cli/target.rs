//! Which running side a command is for.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::sides::{self, Side};
use crate::config::Config;
use crate::control::Client;

/// A running side, by its VM, its configuration or its control socket. Without any:
/// the only one on this machine.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// The VM, by its name or its configuration [default: the only VM that runs on this machine]
    #[arg(value_name = "VM|CONFIG", add = ArgValueCompleter::new(complete::vms))]
    pub vm: Option<PathBuf>,
    /// This host's name in the configuration [default: the machine's name; without a configuration: the only
    /// one that runs here]
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::hosts))]
    pub host: Option<String>,
    /// The control socket, instead of a VM.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["vm", "host"])]
    pub socket: Option<PathBuf>,
}

/// No side that could be meant runs here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NothingHere(String);

impl Target {
    /// The same, where the word before the VM's stands for nothing: then it is the VM.
    ///
    /// # Errors
    /// If there is a VM besides.
    pub(super) fn named_first(mut self, word: Option<String>) -> anyhow::Result<Self> {
        match (word, &self.vm, &self.socket) {
            (None, ..) => {}
            (Some(word), None, None) => self.vm = Some(word.into()),
            (Some(word), ..) => bail!("`{word}` is one word too many: with --all name the VM alone"),
        }
        Ok(self)
    }

    /// A client of the control socket that is meant.
    ///
    /// # Errors
    /// [`NothingHere`], or what is wrong with the words that name it.
    pub fn client(&self) -> anyhow::Result<Client> {
        if let Some(socket) = &self.socket {
            return Ok(Client::new(socket));
        }
        let host = self.host.as_deref();
        match &self.vm {
            Some(path) if is_configuration(path) => {
                let config = Config::load(path)?;
                let host = config.select_host(host)?;
                Ok(Client::new(config.host(&host).control()))
            }
            Some(name) => by_name(&name.to_string_lossy(), host, &sides::all()?),
            None => only(host, &sides::all()?),
        }
    }
}

/// Whether the word names a configuration, by how it is written and not by which files there are. Else it is
/// the name of a VM.
fn is_configuration(word: &Path) -> bool {
    let has_suffix = word.extension().is_some_and(|suffix| suffix == "toml");
    has_suffix || word.as_os_str().as_encoded_bytes().contains(&b'/')
}

/// Which host's it is a side that hangs does not say: another is not meant for that.
fn may_be_meant(side: &Side, host: Option<&str>) -> bool {
    host.is_none() || side.host().is_none_or(|own| Some(own) == host)
}

fn only(host: Option<&str>, sides: &[Side]) -> anyhow::Result<Client> {
    let meant: Vec<&Side> = sides.iter().filter(|side| may_be_meant(side, host)).collect();
    match (meant.as_slice(), host) {
        ([only], _) => Ok(only.client()),
        ([], Some(host)) if !sides.is_empty() => Err(anyhow!(NothingHere(format!(
            "no VM runs here as host `{host}`; there is {}",
            list(sides)
        )))),
        ([], _) => Err(nothing_here()),
        ([first, others @ ..], _) if others.iter().all(|side| side.vm() == first.vm()) => {
            Err(which_side(meant))
        }
        _ => bail!(
            "several VMs run here: say which one by its name ({})",
            list(meant)
        ),
    }
}

fn by_name(vm: &str, host: Option<&str>, sides: &[Side]) -> anyhow::Result<Client> {
    let of_vm: Vec<&Side> = sides.iter().filter(|side| side.vm() == vm).collect();
    let of_host = of_vm.iter().copied().filter(|side| may_be_meant(side, host));
    let meant = likeliest(vm, of_host.collect());
    match (meant.as_slice(), host) {
        ([side], _) => Ok(side.client()),
        ([], _) if sides.is_empty() => Err(no_vm(
            format!(
                "no VM `{vm}` runs here: no VM does. `kemari run` and `kemari secondary` start one by its \
                 configuration"
            ),
            vm,
        )),
        ([], Some(host)) if !of_vm.is_empty() => Err(anyhow!(NothingHere(format!(
            "no side of the VM `{vm}` runs here as host `{host}`; there is {}",
            list(of_vm)
        )))),
        ([], _) => Err(no_vm(
            format!("no VM `{vm}` runs here; there is {}", list(sides)),
            vm,
        )),
        _ => Err(which_side(meant)),
    }
}

/// Of several that say that they are of the VM, the one whose socket says it too:
/// what a side says of itself may be a lie.
fn likeliest<'a>(vm: &str, sides: Vec<&'a Side>) -> Vec<&'a Side> {
    let is_named = |side: &&Side| side.socket.file_stem().is_some_and(|stem| stem == vm);
    let named: Vec<_> = sides.iter().copied().filter(is_named).collect();
    match named.is_empty() {
        true => sides,
        false => named,
    }
}

/// No VM of that name runs here. Where a file of its name is in the working directory, that may have been
/// meant: then nothing can be told of any side.
fn no_vm(sentence: String, vm: &str) -> anyhow::Error {
    match Path::new(vm).is_file() {
        true => anyhow!("{sentence}. The configuration in this directory is `./{vm}`"),
        false => anyhow!(NothingHere(sentence)),
    }
}

fn nothing_here() -> anyhow::Error {
    anyhow!(NothingHere(format!(
        "no VM runs here: nobody answers at a control socket in {}. Name a configuration, or a --socket",
        sides::directory().display()
    )))
}

/// Several sides of one VM run here.
fn which_side(sides: Vec<&Side>) -> anyhow::Error {
    let vm = sides[0].vm();
    let mut hosts: Vec<_> = sides.iter().filter_map(|side| side.host()).collect();
    hosts.dedup();
    if hosts.len() == sides.len() {
        let ways: Vec<_> = hosts.iter().map(|host| format!("`{vm} --host {host}`")).collect();
        return anyhow!(
            "several sides of the VM `{vm}` run here: say which one, {}",
            ways.join(" or ")
        );
    }
    let ways: Vec<_> = sides
        .iter()
        .map(|side| format!("--socket {}", side.socket.display()))
        .collect();
    anyhow!(
        "several sides of the VM `{vm}` run here: say which one, {}",
        ways.join(" or ")
    )
}

fn list<'a>(sides: impl IntoIterator<Item = &'a Side>) -> String {
    sides.into_iter().map(Side::name).collect::<Vec<_>>().join(", ")
}
