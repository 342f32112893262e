//! A real PostgreSQL in a network namespace of its own: the one of the guest's image, without the guest.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::{DiskCopy, GuestRoot, Netns, Process, Service};
use xtask::proof::client::ping;
use xtask::proof::load::{Load, Protocol};

const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Database {
    netns: Netns,
    _server: Process,
    pub root: GuestRoot,
    _copy: DiskCopy,
}

impl Database {
    pub(crate) fn start() -> Self {
        lab::ensure_packages().unwrap_or_else(|error| panic!("{error}"));
        let image = lab::guest_image(Service::Postgres).unwrap_or_else(|error| panic!("{error}"));
        let (copy, root) = GuestRoot::fresh(&image.disk).unwrap();
        let netns = Netns::new("postgres").expect("these tests run as root");
        let script = "mkdir -p /run/postgresql && chown postgres /run/postgresql
            exec su -s /bin/sh postgres -c 'exec /usr/lib/postgresql/*/bin/postgres -D /var/lib/postgresql
            -c dynamic_shared_memory_type=mmap 2>/dev/null'";
        let script = script.replace("\n            -c", " -c");
        let server = Process::spawn("postgres", root.command(Some(&netns), &script)).unwrap();
        let database = Self {
            netns,
            _server: server,
            root,
            _copy: copy,
        };
        let load = database.load(0);
        let start = Instant::now();
        while let Err(error) = ping(&load) {
            assert!(
                start.elapsed() < START_TIMEOUT,
                "PostgreSQL does not answer: {error:#}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        database
    }

    pub(crate) fn load(&self, seed: u64) -> Load {
        let address: SocketAddr = "127.0.0.1:5432".parse().unwrap();
        Load {
            protocol: Protocol::Postgres,
            netns: Some(self.netns.clone()),
            ..Load::new(address, seed)
        }
    }
}
