//! An etcd to which things happen: it dies, is wiped, moves, is full, gets other certificates and users.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::{Netns, OUTSIDE_CONTROL, Process};
use rustix::process::Signal;

use super::authority::Authority;
use crate::proof::clients::PATIENCE;
use crate::tools::{output_of, wait_for};

/// Where clients reach it.
pub(crate) const CLIENT_PORT: u16 = 2379;
/// Where it is by name, in the hosts' file of the case.
pub(crate) const NAME: &str = "arbiter.weather";
/// A name that nobody knows.
const UNKNOWN_NAME: &str = "nowhere.weather";
/// Its second address, for a member that moves.
pub(crate) const SECOND_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// The user of the program, where there are users, and the administrator; the password of both.
const USER: &str = "kemari";
const ADMIN: &str = "root";
const PASSWORD: &str = "weather";
/// The keys from `/kemari/` to `/kemari0`, in base64.
const KEYS: [&str; 2] = ["L2tlbWFyaS8=", "L2tlbWFyaTA="];

/// How it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// By its address.
    Plain,
    /// By its name.
    Named,
    /// By three names, one of which nobody knows.
    OneNameUnknown,
    /// Over TLS, with a client certificate.
    ClientCertificate,
    /// Over TLS, as a user, with JSON Web Tokens.
    Users,
}

impl Flavour {
    fn is_tls(self) -> bool {
        matches!(self, Flavour::ClientCertificate | Flavour::Users)
    }

    /// The section `[arbiter]` for it.
    pub(crate) fn section(self, dir: &Path) -> String {
        let dir = dir.join("etcd");
        let file = |name: &str| format!("{:?}", dir.join(name));
        let endpoints = match self {
            Flavour::Plain => format!("[\"http://{OUTSIDE_CONTROL}:{CLIENT_PORT}\"]"),
            Flavour::Named => format!("[\"http://{NAME}:{CLIENT_PORT}\"]"),
            Flavour::OneNameUnknown => format!(
                "[\"http://{UNKNOWN_NAME}:{CLIENT_PORT}\", \"http://{NAME}:{CLIENT_PORT}\", \
                 \"http://{OUTSIDE_CONTROL}:{CLIENT_PORT}\"]"
            ),
            _ => format!("[\"https://{OUTSIDE_CONTROL}:{CLIENT_PORT}\"]"),
        };
        let access = match self {
            Flavour::ClientCertificate => format!(
                "ca = {}\ncertificate = {}\nkey = {}",
                file("ca.pem"),
                file("client.pem"),
                file("client.key")
            ),
            Flavour::Users => format!(
                "ca = {}\nuser = \"{USER}\"\npassword_file = {}",
                file("ca.pem"),
                file("password")
            ),
            _ => String::new(),
        };
        format!("kind = \"etcd\"\nendpoints = {endpoints}\ntimeout_ms = 1000\n{access}")
    }
}

/// A running etcd, outside the hosts.
pub(crate) struct Etcd {
    process: Option<Process>,
    flavour: Flavour,
    address: Ipv4Addr,
    outside: Netns,
    dir: PathBuf,
}

impl Etcd {
    /// Starts one whose files lie in `dir`, and waits until it answers.
    pub(crate) fn start(outside: &Netns, flavour: Flavour, dir: &Path) -> Result<Self> {
        let dir = dir.join("etcd");
        fs::create_dir_all(&dir)?;
        let mut etcd = Self {
            process: None,
            flavour,
            address: OUTSIDE_CONTROL,
            outside: outside.clone(),
            dir,
        };
        if flavour.is_tls() {
            let authority = Authority::make(&etcd.dir, "ca")?;
            authority.issue("server", &OUTSIDE_CONTROL.to_string())?;
            authority.issue("client", "client.weather")?;
        }
        if flavour == Flavour::Users {
            Authority::token_key(&etcd.dir)?;
        }
        etcd.launch()?;
        if flavour == Flavour::Users {
            etcd.make_users()?;
        }
        Ok(etcd)
    }

    /// Starts it, again too: with the data that it has.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let mut command = self.outside.command("etcd");
        let url = self.url();
        command
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--log-level", "warn"])
            .args(self.tls_words())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(Process::spawn("etcd", command)?);
        wait_for("an answer of etcd", PATIENCE, || {
            Ok(self.post("kv/range", "{\"key\":\"AA==\"}", None).ok().map(drop))
        })
        .or_else(|error| match self.flavour {
            // With users nobody may read without a token: that it refuses is an answer.
            Flavour::Users => self
                .post("auth/authenticate", &credentials(ADMIN), None)
                .map(drop),
            _ => Err(error),
        })
    }

    fn tls_words(&self) -> Vec<String> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut words = Vec::new();
        if self.flavour.is_tls() {
            words.extend(["--cert-file".into(), file("server.pem")]);
            words.extend(["--key-file".into(), file("server.key")]);
        }
        if self.flavour == Flavour::ClientCertificate {
            words.extend([
                "--client-cert-auth".into(),
                "--trusted-ca-file".into(),
                file("trusted.pem"),
            ]);
        }
        if self.flavour == Flavour::Users {
            let (public, private) = (file("token.pub"), file("token.key"));
            let token = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m");
            words.extend(["--auth-token".into(), token]);
        }
        words
    }

    fn url(&self) -> String {
        let scheme = if self.flavour.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}:{CLIENT_PORT}", self.address)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("etcd does not run")?;
        Ok(process.kill()?)
    }

    /// Lets it stand still, with its connections open, or go on.
    pub(crate) fn set_running(&self, running: bool) -> Result<()> {
        let process = self.process.as_ref().context("etcd does not run")?;
        Ok(process.signal(if running { Signal::CONT } else { Signal::STOP })?)
    }

    /// Kills it, removes all that it knows, and starts it.
    pub(crate) fn wipe(&mut self) -> Result<()> {
        self.kill()?;
        fs::remove_dir_all(self.dir.join("data"))?;
        self.launch()
    }

    /// Starts it at its second address; the first one is gone.
    pub(crate) fn move_away(&mut self) -> Result<()> {
        self.kill()?;
        self.outside
            .ip(&format!("addr add {SECOND_ADDRESS}/24 dev control"))?;
        self.address = SECOND_ADDRESS;
        self.launch()
    }

    /// Turns the alarm of a full database on or off.
    pub(crate) fn set_no_space(&self, on: bool) -> Result<()> {
        let action = if on { "ACTIVATE" } else { "DEACTIVATE" };
        let members: serde_json::Value =
            serde_json::from_str(&self.post("cluster/member/list", "{}", None)?)?;
        let id = members["header"]["member_id"]
            .as_str()
            .context("etcd names no member")?;
        let body = format!("{{\"action\":\"{action}\",\"memberID\":\"{id}\",\"alarm\":\"NOSPACE\"}}");
        self.post("maintenance/alarm", &body, None).map(drop)
    }

    /// A new authority signs new certificates of both ends, in the same files;
    /// etcd takes no others from then on.
    pub(crate) fn renew_certificates(&mut self) -> Result<()> {
        let authority = Authority::make(&self.dir, "ca")?;
        authority.issue("server", &OUTSIDE_CONTROL.to_string())?;
        authority.issue("client", "client.weather")?;
        self.kill()?;
        self.launch()
    }

    /// What an administrator does who has nothing to do with us:
    /// every token that was given is of an old revision.
    pub(crate) fn change_roles(&self, role: &str) -> Result<()> {
        let token = self.token(ADMIN)?;
        let body = format!("{{\"name\":\"{role}\"}}");
        self.post("auth/role/add", &body, Some(&token)).map(drop)
    }

    fn make_users(&self) -> Result<()> {
        for name in [ADMIN, USER] {
            let named = format!("{{\"name\":\"{name}\"}}");
            self.post("auth/user/add", &credentials(name), None)?;
            self.post("auth/role/add", &named, None)?;
            let grant = format!("{{\"user\":\"{name}\",\"role\":\"{name}\"}}");
            self.post("auth/user/grant", &grant, None)?;
        }
        let [key, end] = KEYS;
        let range = format!(r#""permType":"READWRITE","key":"{key}","range_end":"{end}""#);
        let may = format!(r#"{{"name":"{USER}","perm":{{{range}}}}}"#);
        self.post("auth/role/grant", &may, None)?;
        self.post("auth/enable", "{}", None)?;
        super::world::write_private(&self.dir.join("password"), PASSWORD)
    }

    fn token(&self, user: &str) -> Result<String> {
        let answer = self.post("auth/authenticate", &credentials(user), None)?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        Ok(answer["token"].as_str().context("etcd gave no token")?.to_owned())
    }

    /// Sends a request to its JSON gateway; what it refuses is an error.
    fn post(&self, path: &str, body: &str, token: Option<&str>) -> Result<String> {
        let mut command = self.outside.command("curl");
        command
            .args(["--silent", "--show-error", "--max-time", "5", "--data", body])
            .arg(format!("{}/v3/{path}", self.url()));
        if self.flavour.is_tls() {
            let file = |name: &str| self.dir.join(name);
            command.arg("--cacert").arg(file("ca.pem"));
            command.arg("--cert").arg(file("client.pem"));
            command.arg("--key").arg(file("client.key"));
        }
        if let Some(token) = token {
            command.args(["--header", &format!("Authorization: {token}")]);
        }
        let answer = output_of(&mut command)?;
        ensure!(!answer.contains("\"error\""), "etcd refused {path}: {answer}");
        Ok(answer)
    }
}

fn credentials(user: &str) -> String {
    format!("{{\"name\":\"{user}\",\"password\":\"{PASSWORD}\"}}")
}

/// Runs a tool of certificates.
pub(crate) fn openssl(dir: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    output_of(command.current_dir(dir).args(words)).map(drop)
}
