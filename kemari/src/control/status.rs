//! How things stand on one side, for programs (JSON) and for people.

use std::fmt;

use kemari_sync::{Epoch, Term};
use serde::{Deserialize, Serialize};

use super::{Drill, Readiness, Timings};
use crate::config::{Config, Disk, Flush, Mode, Pace};

/// What a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It is finding out what it may be.
    Starting,
    /// It executes the VM.
    Primary,
    /// It holds the VM's last committed state, or is about to.
    Secondary,
    /// It was deposed, or has stopped.
    Stopped,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Primary => "primary",
            Self::Secondary => "secondary",
            Self::Stopped => "stopped",
        })
    }
}

/// How well the VM is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// No other host has the VM's state.
    Off,
    /// The first full copy is on its way.
    Copying {
        /// Bytes that were copied.
        done_bytes: u64,
        /// Bytes to copy, as known so far.
        total_bytes: u64,
    },
    /// The secondary goes on if the primary dies.
    On,
    /// The peer is silent or its link is cut, and the outcome is open.
    Doubtful,
}

/// The other side, as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its host's name.
    pub host: String,
    /// Where it is connected.
    pub address: String,
    /// Whether the link stands.
    pub connected: bool,
    /// Time since its last sign of life, in ms.
    pub silent_ms: Option<u64>,
}

/// What happened since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Committed syncs.
    pub syncs: u64,
    /// Syncs that failed, their dirty pages given to the next.
    pub syncs_failed: u64,
    /// Pages sent or received in syncs.
    pub pages: u64,
    /// Of those that were sent, pages that went ahead of their sync.
    pub pages_ahead: u64,
    /// Bytes on the wire for them.
    pub wire_bytes: u64,
    /// Duration of the last sync, from the pause to the ack, in us.
    pub last_sync_us: u64,
    /// The guest's pause in the last sync, in us.
    pub last_pause_us: u64,
    /// Takeovers carried out by this side.
    pub takeovers: u64,
}

/// Who has a disk's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// Whoever has the image: it is neither shared nor replicated.
    #[default]
    Local,
    /// Both hosts see one.
    Shared,
    /// Each host has an image.
    Replicated,
}

/// How a disk stands on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// It is not open here: only the primary uses it.
    #[default]
    Closed,
    /// The VM uses it, and it is not replicated.
    InUse,
    /// Replicated, and both images follow.
    InSync,
    /// Replicated, and being copied from the primary to the secondary.
    Copying,
    /// Replicated, and no other image follows the primary's.
    Alone,
    /// A secondary's image that holds a moment of the VM, and follows nobody at present.
    Whole,
    /// A secondary's image in which a copy was not finished: it holds no moment of the VM.
    Inconsistent,
    /// A secondary's image without a record: it was never copied to.
    Unknown,
    /// It cannot be used; see [`DiskStatus::failure`].
    Failed,
}

/// A disk, as one side sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStatus {
    /// Its id.
    pub disk: String,
    /// Who has its content.
    pub kind: DiskKind,
    /// How it stands here.
    pub state: DiskState,
    /// Why it cannot be used, if it cannot.
    pub failure: Option<String>,
    /// Of a replicated disk: when a guest's flush is done.
    pub flush: Option<Flush>,
    /// On the secondary: requests of the guest that are committed, and not carried out on its image yet.
    pub queued_requests: u64,
    /// On the secondary: bytes that wait for its image, those of the copy included.
    pub queued_bytes: u64,
    /// On the primary: the guest's flushes that wait for the secondary's image.
    pub waiting_flushes: u64,
    /// Bytes to be compared with the other host's image in this copy or the last one.
    pub total_bytes: u64,
    /// Bytes of them that were compared.
    pub compared_bytes: u64,
    /// Bytes that differed, and were sent.
    pub(crate) sent_bytes: u64,
    /// Bytes of the extents that may differ from the other host's image, or be in flight there.
    pub changed_bytes: u64,
}

/// How the last takeover by this side went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Takeover {
    /// From the last sign of the old primary to the first instruction of the guest here, in ms.
    pub ms: f64,
    /// Where the old primary was in a sync, as far as it was seen from here.
    pub(crate) cut_in_step: Option<String>,
    /// For how long the guest stood still, in ms, if the change of roles was planned. The time that the last
    /// word took on the wire is not in it.
    #[serde(default)]
    pub planned_pause_ms: Option<f64>,
}

/// How things stand on one side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The VM's name.
    pub vm: String,
    /// This host's name.
    pub host: String,
    /// Version of the program.
    pub version: String,
    /// Digest of the configuration that it was started with, as `kemari check` prints that of the file.
    #[serde(default)]
    pub config: Option<String>,
    /// What this side is.
    pub role: Role,
    /// The term it lives in.
    pub term: Term,
    /// The last committed sync.
    pub epoch: Epoch,
    /// How well the VM is protected.
    pub protection: Protection,
    /// Whether the secondary could take over now; `None`: there is none that holds the VM's state.
    #[serde(default)]
    pub readiness: Option<Readiness>,
    /// Time since `role` or `protection` last changed, in s.
    pub since_s: u64,
    /// Why something waits, as a sentence, if something does.
    pub waiting_because: Option<String>,
    /// The other side, if there is one.
    pub peer: Option<Peer>,
    /// What the arbiter last said or why it does not answer, as a sentence.
    pub arbiter: String,
    /// Time since the arbiter was last found to answer and to be writable, in ms:
    /// it is asked every few seconds.
    #[serde(default)]
    pub arbiter_answered_ms: Option<u64>,
    /// What would keep this side from a new term, as it was found then, as a sentence.
    #[serde(default)]
    pub arbiter_trouble: Option<String>,
    /// Why this side cannot tell whether a takeover would succeed although the pair stands, as a sentence.
    #[serde(default)]
    pub doubt: Option<String>,
    /// What will keep this side from a pair before long, as sentences.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What happened so far.
    pub counters: Counters,
    /// How often the primary makes syncs at present.
    #[serde(default)]
    pub pace: Option<Pace>,
    /// What waits at present in mode `pipelined`, by the primary's own choice.
    #[serde(default)]
    pub waits: Waits,
    /// How long the primary's syncs took.
    #[serde(default)]
    pub timings: Timings,
    /// The disks.
    #[serde(default)]
    pub disks: Vec<DiskStatus>,
    /// The event channels that may be tapped here, by name.
    #[serde(default)]
    pub channels: Vec<String>,
    /// The last takeover that this side carried out.
    #[serde(default)]
    pub takeover: Option<Takeover>,
    /// What this process is not kept from, in words; nothing: it is confined as it should be.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// The last drill of this secondary.
    #[serde(default)]
    pub drill: Option<Drill>,
}

impl Status {
    /// The other side.
    fn fmt_peer(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.peer {
            None => writeln!(f, "  peer        none")?,
            Some(peer) => {
                let state = if peer.connected {
                    "connected"
                } else {
                    "not connected"
                };
                write!(f, "  peer        {} at {}, {state}", peer.host, peer.address)?;
                match peer.silent_ms {
                    Some(silent_ms) => writeln!(f, ", last heard {silent_ms} ms ago")?,
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }

    /// How the VM came here.
    fn fmt_takeover(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.takeover.as_ref().filter(|_| self.role == Role::Primary) {
            Some(Takeover {
                planned_pause_ms: Some(ms),
                ..
            }) => {
                writeln!(
                    f,
                    "  came here   by a switchover; the guest stood still for {ms:.1} ms"
                )?;
            }
            Some(Takeover { ms, .. }) => {
                writeln!(
                    f,
                    "  came here   by a takeover, {ms:.1} ms after the last sign of the old primary"
                )?;
            }
            None => {}
        }
        Ok(())
    }

    /// What was synchronised, and how long it takes.
    fn fmt_syncs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counters;
        write!(
            f,
            "  syncs       {} committed, {} failed; {} pages, {} KiB on the wire; the last took {} us, {} us \
             of pause",
            c.syncs,
            c.syncs_failed,
            c.pages,
            c.wire_bytes >> 10,
            c.last_sync_us,
            c.last_pause_us
        )?;
        if let Some(pace) = &self.pace {
            write!(f, "\n  pace        {pace}{}", self.waits)?;
        }
        let Timings {
            sync_us, pause_us, ..
        } = &self.timings;
        if sync_us.count > 0 {
            write!(
                f,
                "\n  durations   sync: median {} us, 99 % {} us; pause: median {} us, 99 % {} us",
                sync_us.quantile_us(0.5),
                sync_us.quantile_us(0.99),
                pause_us.quantile_us(0.5),
                pause_us.quantile_us(0.99),
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} on {}: {}, term {}, epoch {}",
            self.vm, self.host, self.role, self.term, self.epoch
        )?;
        f.write_str("  protection  ")?;
        self.fmt_protection(f)?;
        writeln!(f, ", for {}", duration(self.since_s))?;
        if let Some(reason) = &self.waiting_because {
            writeln!(f, "  waits       {reason}")?;
        }
        self.fmt_peer(f)?;
        for disk in &self.disks {
            writeln!(f, "  disk        {disk}")?;
        }
        write!(
            f,
            "  arbiter     {}",
            match self.arbiter.is_empty() {
                true => "not asked yet",
                false => &self.arbiter,
            }
        )?;
        match self.arbiter_answered_ms {
            Some(ms) => writeln!(f, "; answered {} ago", duration(ms / 1000))?,
            None => writeln!(f)?,
        }
        for warning in &self.warnings {
            writeln!(f, "  warning     {warning}")?;
        }
        self.fmt_takeover(f)?;
        if let Some(lacking) = &self.sandbox {
            writeln!(f, "  sandbox     {lacking}")?;
        }
        if let Some(drill) = &self.drill {
            writeln!(f, "  drill       {} ago {drill}", duration(drill.age_s))?;
        }
        self.fmt_syncs(f)
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Lockstep => f.write_str("lockstep")?,
            Mode::Pipelined => f.write_str("pipelined")?,
            Mode::Interval => write!(f, "interval of {} ms", self.interval_ms)?,
        }
        write!(
            f,
            "; a sync at the latest after {} ms or {} dirty pages",
            self.max_interval_ms, self.max_dirty_pages
        )
    }
}

/// What a primary in mode `pipelined` has found to let most output go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waits {
    /// The guest stands still until the ack of a sync.
    pub guest: bool,
    /// How long after a sync the next one waits for more output, in us.
    pub(crate) output_us: u64,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { guest: true, .. } => f.write_str("; at present the guest waits for acks"),
            Self { output_us: 0, .. } => Ok(()),
            Self { output_us, .. } => write!(f, "; at present output gathers for {output_us} us"),
        }
    }
}

impl DiskStatus {
    /// What the configuration says of a disk.
    pub fn of(config: &Config, disk: &Disk) -> Self {
        let is_replicated = config.replicates(disk);
        Self {
            disk: disk.id.clone(),
            kind: match disk.shared {
                true => DiskKind::Shared,
                false if is_replicated => DiskKind::Replicated,
                false => DiskKind::Local,
            },
            flush: is_replicated.then_some(disk.flush),
            ..Self::default()
        }
    }
}

impl fmt::Display for DiskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DiskKind::Local => "local",
            DiskKind::Shared => "shared",
            DiskKind::Replicated => "replicated",
        };
        write!(f, "{}, {kind}", self.disk)?;
        match self.flush {
            Some(Flush::Memory) => f.write_str(", flush to memory")?,
            Some(Flush::Both) => f.write_str(", flush to both disks")?,
            None => {}
        }
        match (self.state, &self.failure) {
            (DiskState::Closed, _) => f.write_str(": not open here")?,
            (DiskState::InUse, _) => f.write_str(": in use")?,
            (DiskState::InSync, _) => f.write_str(": in sync")?,
            (DiskState::Copying, _) if self.total_bytes == 0 => {
                f.write_str(": being copied, inconsistent until that is done")?;
            }
            (DiskState::Copying, _) => write!(
                f,
                ": copying {} %, {} of {} MiB compared, {} KiB sent",
                u128::from(self.compared_bytes) * 100 / u128::from(self.total_bytes),
                self.compared_bytes >> 20,
                self.total_bytes >> 20,
                self.sent_bytes >> 10
            )?,
            (DiskState::Alone, _) => write!(f, ": alone, up to {} MiB changed", self.changed_bytes >> 20)?,
            (DiskState::Whole, _) => f.write_str(": whole, follows nobody at present")?,
            (DiskState::Inconsistent, _) => f.write_str(": inconsistent, a copy was not finished")?,
            (DiskState::Unknown, _) => f.write_str(": never copied to")?,
            (DiskState::Failed, Some(reason)) => write!(f, ": failed: {reason}")?,
            (DiskState::Failed, None) => f.write_str(": failed")?,
        }
        if self.queued_requests > 0 || self.queued_bytes > 0 {
            write!(
                f,
                "; {} requests are not carried out yet, {} KiB wait",
                self.queued_requests,
                self.queued_bytes >> 10
            )?;
        }
        if self.waiting_flushes > 0 {
            write!(
                f,
                "; {} flushes wait for the other host's disk",
                self.waiting_flushes
            )?;
        }
        Ok(())
    }
}

/// A time as people say it.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
