//! The options of the demo.

use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// What the demo is to do.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The guest: Debian Linux with Redis; the same with GRUB on its disk; or the bare-metal key-value
    /// service that boots in milliseconds
    #[arg(long, value_enum, default_value_t = Guest::Linux)]
    pub guest: Guest,
    /// What the Linux guest serves
    #[arg(long, value_enum, default_value_t = Service::Redis)]
    pub service: Service,
    /// The guest's disk: one that both hosts see, or an image on each host that nothing but the network joins
    #[arg(long, value_enum, default_value_t = Disk::Replicated)]
    pub disk: Disk,
    /// With a replicated disk: the guest's flush waits for the primary's disk and the secondary's memory, or
    /// for both disks
    #[arg(long, value_enum, default_value_t = Flush::Memory)]
    pub flush: Flush,
    /// Where the hosts are: namespaces on this machine, or emulated machines; auto: this machine if its KVM
    /// runs the guest
    #[arg(long, value_enum, default_value_t = Hosts::Auto)]
    pub hosts: Hosts,
    /// Who decides which side goes on: an etcd, or files on an NFS server, which takes emulated hosts
    #[arg(long, value_enum, default_value_t = Arbiter::Etcd)]
    pub arbiter: Arbiter,
    /// What happens to the primary: its process is killed; its host loses power, noticed by silence; the link
    /// between the hosts is cut; nothing. Or both hosts lose power at once, and their disks what was not
    /// flushed
    #[arg(long, value_enum, default_value_t = Cut::Power)]
    pub cut: Cut,
    /// How often
    #[arg(long, default_value_t = 1)]
    pub repeat: u32,
    /// Repeat with one and the same VM: the host that was cut comes back and protects it,
    /// then the other one is cut
    #[arg(long)]
    pub same_vm: bool,
    /// Makes the moments of the cuts and the load repeatable; run n of a repetition has seed S + n
    #[arg(long)]
    pub seed: Option<u64>,
    /// A deliberate fault, to see that the proof can fail
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
    /// Number of client connections
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(8..=63))]
    pub connections: u16,
    /// Number of the guest's vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub vcpus: u8,
}

/// What runs in the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// Debian.
    Linux,
    /// The same, booted by firmware and GRUB from its disk.
    LinuxDisk,
    /// guests/bare.
    Bare,
}

/// What the Linux guest serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// Redis.
    Redis,
    /// PostgreSQL.
    Postgres,
}

/// Where the guest's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Disk {
    /// On storage that both hosts see.
    Shared,
    /// An image on each host.
    Replicated,
}

/// When a guest's flush of a replicated disk is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flush {
    /// When the primary's disk and the secondary's memory have it.
    Memory,
    /// When both disks have it.
    Both,
}

/// Where the hosts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hosts {
    /// Local where possible.
    Auto,
    /// Network namespaces on this machine.
    Local,
    /// Emulated machines.
    Lab,
}

/// Who decides which side goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arbiter {
    /// etcd.
    Etcd,
    /// A directory of files, on an NFS server that both hosts mount.
    Nfs,
}

/// What happens to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cut {
    /// Nothing.
    None,
    /// SIGKILL: its connections are reset.
    Kill,
    /// Silence, then death.
    Power,
    /// Only the link between the hosts is cut: both live, one may go on.
    Link,
    /// Both hosts lose power: the VM is booted anew, from what the primary's disk has kept.
    Both,
}

/// A deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Output leaves before the (delayed) ack: acknowledged writes must get lost.
    ReleaseBeforeAck,
    /// PostgreSQL does not flush, or, with the bare guest, no disk does: when both hosts lose power, what was
    /// acknowledged must get lost.
    NoFsync,
}

impl Options {
    /// Linux with Redis on emulated hosts, one of which loses its power: the demo where KVM cannot run Linux.
    pub const LAB: Options = Options {
        guest: Guest::Linux,
        service: Service::Redis,
        disk: Disk::Replicated,
        flush: Flush::Memory,
        hosts: Hosts::Lab,
        arbiter: Arbiter::Etcd,
        cut: Cut::Power,
        repeat: 1,
        same_vm: false,
        seed: None,
        fault: None,
        connections: 8,
        vcpus: 1,
    };

    /// The service of the guest: the bare one has its own.
    pub fn linux_service(&self) -> lab::Service {
        match self.service {
            Service::Redis => lab::Service::Redis,
            Service::Postgres => lab::Service::Postgres,
        }
    }

    /// Fails if two options contradict each other.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.repeat > 0, "--repeat must be at least 1");
        anyhow::ensure!(
            self.guest != Guest::Bare || self.service == Service::Redis,
            "the bare guest has no PostgreSQL: leave out --service, or take --guest linux"
        );
        anyhow::ensure!(
            self.arbiter == Arbiter::Etcd || self.hosts == Hosts::Lab,
            "--arbiter nfs takes hosts with a kernel of their own: add --hosts lab"
        );
        anyhow::ensure!(
            self.disk == Disk::Replicated || self.flush == Flush::Memory,
            "--flush is for replicated disks: add --disk replicated"
        );
        anyhow::ensure!(
            self.cut != Cut::Both || self.disk == Disk::Replicated,
            "--cut both boots the VM anew from the disk of its host: it is for --disk replicated"
        );
        anyhow::ensure!(
            self.fault != Some(Fault::NoFsync)
                || (self.cut == Cut::Both
                    && (self.service == Service::Postgres || self.guest == Guest::Bare)),
            "--fault no-fsync is for --cut both, with --service postgres or --guest bare"
        );
        anyhow::ensure!(
            !(self.fault == Some(Fault::NoFsync) && self.guest == Guest::Bare && self.hosts == Hosts::Lab),
            "--fault no-fsync with --guest bare is for hosts on this machine: leave out --hosts lab"
        );
        anyhow::ensure!(
            self.fault.is_none() || !self.same_vm,
            "--fault loses what the VM has: with --same-vm the next run could not judge"
        );
        Ok(())
    }
}

impl Fault {
    /// The value of the variable `KEMARI_FAULTS` that makes a program built with the feature `faults` behave
    /// so, if it is the program that is at fault.
    pub fn environment(self) -> Option<&'static str> {
        match self {
            Fault::ReleaseBeforeAck => Some("ReleaseBeforeAck,AckDelayMs=20"),
            Fault::NoFsync => None,
        }
    }

    /// What the guest's kernel command line gets.
    pub fn guest_setting(self) -> &'static str {
        match self {
            Fault::ReleaseBeforeAck => "",
            Fault::NoFsync => " kemari.fsync=off",
        }
    }

    /// With a fault the link between the hosts dies so long before the primary. A right mechanism keeps
    /// silent for that time; a broken one goes on talking, and what it says is lost. It is shorter than any
    /// suspicion.
    pub fn link_dies_before(self) -> Option<Duration> {
        match self {
            Fault::ReleaseBeforeAck => Some(Duration::from_millis(500)),
            Fault::NoFsync => None,
        }
    }
}

/// The limits of a run, which depend on how fast the hosts are.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Until the guest's service answers.
    pub boot_max: Duration,
    /// Until the VM is protected.
    pub protect_max: Duration,
    /// Clients work at least so long before the cut, ...
    pub before_cut_min: Duration,
    /// ... and at most so long: the moment between is drawn.
    pub before_cut_max: Duration,
    /// Clients work at least so long after the cut.
    pub after_cut_min: Duration,
    /// Until each connection has got [`ACKNOWLEDGED_AFTER_MIN`] writes acknowledged after the cut.
    pub recover_max: Duration,
    /// When silence becomes a suspicion.
    pub suspicion_timeout: Duration,
    /// Least time between two looks at a pair: where a status costs a tenth of a second of the only
    /// processor, looking again and again would starve what is looked at.
    pub look_interval: Duration,
}

/// Writes that each connection must get acknowledged after the cut before the clients are stopped.
pub const ACKNOWLEDGED_AFTER_MIN: u64 = 5;

impl Pace {
    /// The pace of namespaces on this machine.
    pub const LOCAL: Pace = Pace {
        boot_max: Duration::from_secs(20),
        protect_max: Duration::from_secs(30),
        before_cut_min: Duration::from_millis(300),
        before_cut_max: Duration::from_millis(1500),
        after_cut_min: Duration::from_millis(700),
        recover_max: Duration::from_secs(20),
        suspicion_timeout: Duration::from_secs(1),
        look_interval: Duration::ZERO,
    };
    /// The pace of emulated hosts.
    pub const LAB: Pace = Pace {
        boot_max: Duration::from_secs(120),
        protect_max: Duration::from_secs(240),
        before_cut_min: Duration::from_secs(3),
        before_cut_max: Duration::from_secs(10),
        after_cut_min: Duration::from_secs(5),
        recover_max: Duration::from_secs(120),
        suspicion_timeout: Duration::from_secs(3),
        look_interval: Duration::from_millis(700),
    };
}

macro_rules! shown_as_typed {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value();
                f.write_str(value.as_ref().map_or("", |value| value.get_name()))
            }
        }
    )*};
}

shown_as_typed!(Guest, Service, Disk, Flush, Hosts, Arbiter, Cut, Fault);
