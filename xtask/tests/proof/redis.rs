//! A real Redis on the loopback of a network namespace of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::{Netns, Process};
use xtask::proof::client::ping;
use xtask::proof::load::Load;

const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Redis {
    netns: Netns,
    _server: Process,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let netns = Netns::new("redis").expect("these tests run as root");
        let args = ["--bind", "127.0.0.1", "--save", "", "--logfile", "/dev/null"];
        let server = netns
            .spawn("redis", "redis-server", &args)
            .expect("Debian's package redis-server");
        let redis = Self {
            netns,
            _server: server,
        };
        let load = redis.load(0);
        let start = Instant::now();
        while ping(&load).is_err() {
            assert!(start.elapsed() < START_TIMEOUT, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    pub(crate) fn load(&self, seed: u64) -> Load {
        let address: SocketAddr = "127.0.0.1:6379".parse().unwrap();
        Load {
            netns: Some(self.netns.clone()),
            ..Load::new(address, seed)
        }
    }
}
