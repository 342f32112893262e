//! The command line.

mod commands;
mod complete;
mod list;
mod log;
mod pace;
mod sides;
mod target;
mod top;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::builder::RangedI64ValueParser;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCandidates;

use crate::certs::DAYS_DEFAULT;
use crate::control::{DRILL_SECONDS, DRILL_SECONDS_DEFAULT, Direction, TAP_SECONDS_MAX};
use crate::import::ImageFormat;
use crate::sandbox::Sandbox;

pub use commands::{Next, Start, perform};
pub use complete::complete;
pub use log::init as init_log;
pub use pace::PaceWords;
pub use target::Target;

/// Longest time between two looks of `kemari top`, in seconds.
const TOP_SECONDS_MAX: u32 = 3600;

const EXAMPLES: &str = "\
Examples (`kemari help COMMAND` says more):
  kemari check vm.toml        can this host run the VM, and take it over?
  kemari secondary vm.toml    on one host: wait for the VM's state
  kemari run vm.toml          on the other: run the VM, protected by the first
  kemari status               role, protection and, if something waits, why
  kemari switchover           the other host goes on with the VM, no loss
Completion of commands, VMs and channels:  source <(COMPLETE=bash kemari)";

/// Keeps a VM alive through the death of the host it runs on: when that dies, another goes on.
#[derive(Debug, Parser)]
#[command(name = "kemari", version = crate::VERSION_AND_COMMIT, after_help = EXAMPLES)]
pub struct Cli {
    /// What is logged: error, warn, info, debug, or `info,kemari::arbiter=debug`
    #[arg(
        long,
        global = true,
        env = "KEMARI_LOG",
        value_name = "FILTER",
        hide_env_values = true
    )]
    #[arg(help_heading = ANYWHERE)]
    pub log: Option<String>,
    /// `off`: a side keeps all rights of its user, for debugging
    #[arg(
        long,
        global = true,
        env = "KEMARI_SANDBOX",
        value_name = "ON|OFF",
        value_enum,
        default_value_t
    )]
    #[arg(help_heading = ANYWHERE, hide_env_values = true, hide_possible_values = true)]
    pub sandbox: Sandbox,
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// Options that few need, behind those of a command.
const ANYWHERE: &str = "With any command";

/// What `kemari` can do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Say what the VM needs on this host and lacks; change nothing.
    Check {
        /// What would be started.
        #[command(flatten)]
        here: Here,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the VM as the primary.
    ///
    /// Wins a term at the arbiter first, so that a VM never runs twice, then boots it. With protection
    /// enabled it connects to the peer's secondary and copies the VM there while the guest runs.
    Run {
        /// What is started.
        #[command(flatten)]
        here: Here,
        /// Your word that whoever owned this term is dead and holds nothing. For a start after both hosts
        /// were down, when the arbiter names a peer that cannot be asked. `kemari check` shows the term.
        #[arg(long, value_name = "TERM")]
        assert_dead: Option<u64>,
        /// Your word that the images of the replicated disks on this host are the right ones, whatever their
        /// records say. They begin a history of their own: images of the old one are not overwritten without
        /// your word.
        #[arg(long)]
        adopt_disks: bool,
    },
    /// Hold the VM's state, and take over when the primary dies.
    Secondary {
        /// What is started.
        #[command(flatten)]
        here: Here,
        /// Your word that images of replicated disks here that are of this history may be overwritten, though
        /// they are newer than the primary's or of another history. The refusal names it.
        #[arg(long, value_name = "HISTORY")]
        overwrite_disks: Option<String>,
    },
    /// Run the VM if nobody does, else hold its state: at boot.
    ///
    /// As `run` where this host may boot the VM, as `secondary` where another has it, or may have it; then it
    /// tries again now and then, as long as there is no primary. The arbiter's record decides, as always.
    Up {
        /// What is started.
        #[command(flatten)]
        here: Here,
    },
    /// List the VMs of this host.
    ///
    /// Each with this host's role, whether a takeover would succeed now, since when, and what waits. A side
    /// that does not answer is listed as that; a socket that a dead process left is not. Looked for in
    /// /run/kemari, in the directories below it, and wherever else the kernel knows of a side's socket (of
    /// root's or yours, where no one else may write, and only if it answers); in KEMARI_RUN alone, if that is
    /// set.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the VMs of this host as they stand, until a key ends it.
    ///
    /// A line a VM, with how many syncs it makes, how long they take and for how long the guest stands still
    /// in them (the length that half of them and 99 % of them did not exceed, since the look before), and
    /// below the list all that `kemari status` says of the chosen one. It only looks. Looked for as by
    /// `kemari list`.
    Top {
        /// Time between two looks, in seconds.
        #[arg(long, default_value_t = 1, value_parser = within(&(1..=TOP_SECONDS_MAX)))]
        interval: u32,
    },
    /// Say how a VM stands and, if something waits, why.
    ///
    /// Role, term, last sync, protection and since when.
    Status {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
        /// Answer by the exit status, too: 0 protected and ready, 1 not protected or not ready, 2 in doubt, 3
        /// no side runs here.
        #[arg(long)]
        check: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Exchange the roles: the VM goes on on the other host.
    ///
    /// As before a reboot of this one. Planned: after a last sync and with all I/O finished, so nothing is
    /// lost, nobody is fenced, and the guest stands still for a moment only. This host follows as the
    /// secondary. If the other one does not go on, the VM goes on here. Said to the primary.
    Switchover {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// End the VM on both hosts, cleanly.
    ///
    /// The guest is not asked: it is as if its power was cut, after a last sync, with all its I/O finished.
    /// Shut it down from within to spare it that. Said to the primary.
    Stop {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Protect the VM: take the other host as its secondary.
    ///
    /// For a VM that was unprotected, by the configuration, by `kemari unprotect` or after its secondary's
    /// loss. The VM is copied while it runs; start `kemari secondary` on the other host. Said to the primary.
    Protect {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Let the secondary go, and run on alone.
    ///
    /// From then on a failure of this host ends the VM. `kemari protect` takes a secondary again.
    /// Said to the primary.
    Unprotect {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Take the VM over now, whatever its primary does.
    ///
    /// For a primary that is alive but of no use. The VM goes on from its last committed sync: no output is
    /// lost. The arbiter decides, as always, and the old primary's host is fenced. Said to the secondary; to
    /// exchange the roles of two healthy hosts, say `kemari switchover` to the primary.
    Takeover {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Rehearse a takeover, while the VM is protected and runs on.
    ///
    /// The last committed state is started here in isolation: without network, its disk writes and its memory
    /// thrown away afterwards. It runs for a while and is judged: whether it could be loaded, each vCPU ran,
    /// its timer fired, its disks could be read, and nothing faulted. Ends with status 0 if it has passed.
    /// `kemari status` keeps the outcome. Said to the secondary.
    Drill {
        /// For how long the guest runs, in seconds.
        #[arg(long, default_value_t = DRILL_SECONDS_DEFAULT, value_parser = within(&DRILL_SECONDS))]
        seconds: u32,
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Change how often syncs are made, while the VM runs.
    ///
    /// lockstep: output starts a sync, and the guest waits for it. pipelined: it runs on, and its output
    /// waits. interval: the clock alone starts a sync. It holds until this process ends, or another host goes
    /// on with the VM: that one begins with the configuration's pace. Said to the primary.
    Mode {
        /// What changes.
        #[command(flatten)]
        change: PaceWords,
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Watch what passes at an event channel of the running VM.
    ///
    /// Channels are named by device: `net0.tx`, `net0.rx`, `blk0`, `console`. OUT is from the guest to the
    /// outside (a kick), IN is from the outside to the guest (an interrupt). Counts, intervals, and the times
    /// from a kick to its interrupt are told. Attaching and detaching disturbs nothing.
    Tap {
        /// The event channel; not with --all.
        #[arg(add = ArgValueCandidates::new(complete::channels), required_unless_present = "all")]
        channel: Option<String>,
        /// All event channels at once, a line for each and each direction.
        #[arg(long, conflicts_with = "events")]
        all: bool,
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
        /// Which events.
        #[arg(long, value_enum, default_value = "both")]
        direction: Direction,
        /// How long, in seconds.
        #[arg(long, default_value_t = 10, value_parser = within(&(1..=TAP_SECONDS_MAX)))]
        seconds: u32,
        /// Print each event, and not the statistics alone.
        #[arg(long)]
        events: bool,
        /// Print JSON, an object a line.
        #[arg(long)]
        json: bool,
    },
    /// Let a VM go on that stands still because a disk failed.
    ///
    /// For disks with `on_error = "pause"` or `"failover"`. What failed is tried again, and the guest knows
    /// nothing of it. Repair the disk first, or make room on it: `kemari status` says what failed. Said to
    /// the primary.
    Resume {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Tell the guest that its disks have grown, or make one larger.
    ///
    /// Make the image or the block device larger first. With --disk and --size Kemari does that itself, to an
    /// image that is a file. Of a replicated disk say it to the secondary, too: there it makes that host's
    /// image larger, no more. A disk never shrinks. Said to the primary.
    Resize {
        /// The disk whose image on this host is made larger.
        #[arg(long, value_name = "ID", requires = "size")]
        disk: Option<String>,
        /// The size it is to have: bytes, or with K, M, G or T behind.
        #[arg(long, value_name = "SIZE", requires = "disk", value_parser = size_bytes)]
        size: Option<u64>,
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Give the running VM the record back that the arbiter lost.
    ///
    /// For a store that was wiped, replaced or restored from an older copy under a living VM: `kemari status`
    /// says so, and until then nobody could go on if a host died. With this order you assert: the store that
    /// the arbiter's configuration leads to now, on both hosts, is the right one, and no other host runs this
    /// VM or will by what any other store says. The pair agrees on a new id of the store first, then the
    /// record is written with it; the VM runs on meanwhile. It is refused if the record is there, if
    /// another's stands there, or if the secondary is not connected. Said to the primary.
    AdoptRecord {
        /// Whom to ask.
        #[command(flatten)]
        target: Target,
    },
    /// Make a raw image of one of another format.
    ///
    /// Or a copy of a raw one, with its holes. Kemari writes to raw images alone. IMAGE must not be in use,
    /// and is only read, with all the images that it is based on. DEST is there only when all of it is
    /// durable. Formats other than raw and qcow2 are read with qemu-img, of Debian's package qemu-utils.
    Import {
        /// The image: a file or a block device.
        image: PathBuf,
        /// The raw image that is made: a file.
        #[arg(value_name = "DEST")]
        destination: PathBuf,
        /// What IMAGE is. It is never guessed: whoever could write to a disk could make it look like another
        /// format.
        #[arg(long, value_enum)]
        format: ImageFormat,
        /// Replace DEST, and remove its record, if there are such.
        #[arg(long)]
        force: bool,
        /// The disk's `block_size`: its size is made a multiple of that.
        #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = block_bytes)]
        block_size: u32,
    },
    /// Make certificates for the link between the hosts.
    ///
    /// An authority of your own and, for each host, a directory with its certificate and key. Copy it there,
    /// and name it as `certificates` in the configuration. With an authority in DIR already, hosts are added
    /// to its set. Nothing that exists is overwritten.
    Certs {
        /// Where the set is made.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The hosts, by their names in the configuration.
        #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
        hosts: Vec<String>,
        /// For how many days the certificates are valid.
        #[arg(long, default_value_t = DAYS_DEFAULT, value_parser = within(&(1..=36_500)))]
        days: u32,
    },
    /// Write the manual pages, one a command.
    #[command(hide = true)]
    Man {
        /// Where they are made.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

impl Action {
    /// Whether it runs a side of a VM, for as long as that lives.
    pub fn runs_a_side(&self) -> bool {
        matches!(self, Self::Run { .. } | Self::Secondary { .. } | Self::Up { .. })
    }
}

/// A configuration and the host that it is used on.
#[derive(Clone, Debug, Args)]
pub struct Here {
    /// The configuration: the same file on both hosts.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// This host's name in the configuration [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

/// Reads a number of this range.
fn within(range: &RangeInclusive<u32>) -> RangedI64ValueParser<u32> {
    let range = i64::from(*range.start())..=i64::from(*range.end());
    clap::value_parser!(u32).range(range)
}

fn block_bytes(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bytes @ (512 | 4096)) => Ok(bytes),
        _ => Err("a block has 512 or 4096 bytes".to_owned()),
    }
}

/// A size in bytes, or in units of 1024, 1024² and so on.
fn size_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.find(|letter: char| !letter.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, ""),
    };
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("`{unit}` is no unit: K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| "it is no number".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "it is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn words_become_types() {
        let cli = Cli::parse_from(["kemari", "run", "vm.toml", "--host", "a", "--assert-dead", "7"]);
        let Action::Run {
            assert_dead: Some(7),
            here,
            adopt_disks: false,
        } = cli.action
        else {
            panic!("{:?}", cli.action);
        };
        assert_eq!(here.host.as_deref(), Some("a"));
        let cli = Cli::parse_from(["kemari", "tap", "net0.tx", "--direction", "out"]);
        assert!(matches!(
            cli.action,
            Action::Tap {
                direction: Direction::Out,
                seconds: 10,
                ..
            }
        ));
        assert!(Cli::try_parse_from(["kemari", "tap", "net0.tx", "--seconds", "0"]).is_err());
        let cli = Cli::parse_from([
            "kemari",
            "mode",
            "interval",
            "--interval-ms",
            "40",
            "--socket",
            "/x",
        ]);
        assert!(matches!(
            cli.action,
            Action::Mode {
                change: PaceWords {
                    mode: Some(pace::First::Mode(Mode::Interval)),
                    interval_ms: Some(40),
                    max_dirty_pages: None,
                    ..
                },
                ..
            }
        ));
        assert!(Cli::try_parse_from(["kemari", "mode"]).is_err());
        assert!(Cli::try_parse_from(["kemari", "status", "vm.toml", "--socket", "/x"]).is_err());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512", 512),
            ("3K", 3 << 10),
            ("64M", 64 << 20),
            ("32G", 32 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "32GiB", "32g", "99999999999T"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }
}
