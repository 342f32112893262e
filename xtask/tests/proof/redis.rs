//! A real Redis on the loopback of a network namespace of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use xtask::proof::client::connect;
use xtask::proof::load::Load;

const START_TIMEOUT: Duration = Duration::from_secs(10);
static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Redis {
    namespace: String,
    server: Child,
}

impl Redis {
    pub fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("kemari-proof-{}-{number}", std::process::id());
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        let server = Command::new("ip")
            .args([
                "netns",
                "exec",
                &namespace,
                "redis-server",
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian's package redis-server)");
        let redis = Self { namespace, server };
        let load = Load {
            netns: Some(redis.netns()),
            ..Load::new(redis.address(), 0)
        };
        let start = Instant::now();
        while connect(&load).is_err() {
            assert!(start.elapsed() < START_TIMEOUT, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    pub fn netns(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.namespace)
    }

    pub fn address(&self) -> SocketAddr {
        "127.0.0.1:6379".parse().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // `ip netns exec` has become redis-server.
        let _ = self.server.kill();
        let _ = self.server.wait();
        ip(&["netns", "delete", &self.namespace]);
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip")
        .args(args)
        .status()
        .expect("iproute2 is installed");
    assert!(
        status.success(),
        "`ip {}` failed: these tests need root",
        args.join(" ")
    );
}
