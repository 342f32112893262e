//! Where a host listens: an address, or a name that is made one when a side is started.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The port of the link, if none is given.
const PORT_DEFAULT: u16 = 7711;

/// `ADDRESS` or `NAME`, with `:PORT` behind if it is another than 7711.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Listen {
    /// What stands there instead of an address.
    name: Option<String>,
    port: u16,
    ip: Option<IpAddr>,
}

impl Listen {
    /// The address.
    ///
    /// # Panics
    /// If there is a name, and it was not resolved.
    pub fn address(&self) -> SocketAddr {
        let ip = self
            .ip
            .expect("names are resolved before anybody connects or listens");
        SocketAddr::new(ip, self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether no other host could connect to it, whatever the name means.
    pub(super) fn is_nowhere(&self) -> bool {
        self.port == 0 || self.ip.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast())
    }

    /// Finds the address of a name. May take as long as the resolver does.
    ///
    /// # Errors
    /// A sentence about the name.
    pub(super) fn resolve(&mut self) -> Result<(), String> {
        let Some(name) = &self.name else { return Ok(()) };
        let found = (name.as_str(), self.port).to_socket_addrs().map_err(|error| {
            format!(
                "the name `{name}` has no address here: {error}; put it into /etc/hosts, or write an address"
            )
        })?;
        self.ip = Some(choose(name, found.map(|address| address.ip()))?);
        Ok(())
    }
}

/// Of the addresses of a name the one that both hosts choose: the smallest IPv4 address,
/// else the smallest IPv6 one.
fn choose(name: &str, found: impl Iterator<Item = IpAddr>) -> Result<IpAddr, String> {
    let found: Vec<IpAddr> = found.collect();
    let is_local = name == "localhost" || name.ends_with(".localhost");
    let is_good =
        |ip: &&IpAddr| !ip.is_unspecified() && !ip.is_multicast() && (is_local || !ip.is_loopback());
    match (found.iter().filter(is_good).min(), found.first()) {
        (Some(ip), _) => Ok(*ip),
        (None, Some(ip)) => Err(format!(
            "the name `{name}` is {ip} on this machine, where no other host reaches it (Debian's /etc/hosts \
             has a machine's own name so): mend that, or write an address"
        )),
        (None, None) => Err(format!("the name `{name}` has no address: write one")),
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || {
            format!(
                "`{text}` is no address: write it as `10.0.0.1`, `[fd00::1]` or `host-a`, each with `:PORT` \
                 if it is not {PORT_DEFAULT}"
            )
        };
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
            return Ok(Self {
                name: None,
                port: PORT_DEFAULT,
                ip: Some(ip),
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                name: None,
                port: address.port(),
                ip: Some(address.ip()),
            });
        }
        let (name, port) = match text.split_once(':') {
            None => (text, PORT_DEFAULT),
            Some((name, port)) => (name, port.parse().map_err(|_| wrong())?),
        };
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        // Whose last part is a number is meant as an address.
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let labels: Vec<&str> = name.split('.').collect();
        if name.len() > 253
            || !labels.iter().copied().all(is_label)
            || labels.last().copied().is_none_or(is_number)
        {
            return Err(wrong());
        }
        Ok(Self {
            name: Some(name.to_owned()),
            port,
            ip: None,
        })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.ip) {
            (Some(name), _) => write!(f, "{name}:{}", self.port),
            (None, Some(ip)) => SocketAddr::new(ip, self.port).fmt(f),
            (None, None) => write!(f, ":{}", self.port),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_with_and_without_a_port() {
        for (text, shown) in [
            ("10.0.0.1:7711", "10.0.0.1:7711"),
            ("10.0.0.1", "10.0.0.1:7711"),
            (" 10.0.0.1 ", "10.0.0.1:7711"),
            ("fd00::1", "[fd00::1]:7711"),
            ("[fd00::1]", "[fd00::1]:7711"),
            ("[fd00::1]:9", "[fd00::1]:9"),
            ("host-a", "host-a:7711"),
            ("host-a.example:99", "host-a.example:99"),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            ":7711",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.1:x",
            "a b",
            "a..b",
            "-a",
            "a:1:2",
            "a:70000",
            "http://a",
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains("is no address: write it as"), "{text}: {error}");
        }
    }

    #[test]
    fn both_hosts_choose_the_same_address_of_a_name_and_none_that_leads_nowhere() {
        let choose = |name: &str, found: &[&str]| choose(name, found.iter().map(|ip| ip.parse().unwrap()));
        let chosen = "10.0.0.1".parse();
        assert_eq!(
            choose("a", &["fd00::1", "10.0.0.2", "10.0.0.1"]).ok(),
            chosen.clone().ok()
        );
        assert_eq!(
            choose("a", &["127.0.1.1", "10.0.0.1", "0.0.0.0"]).ok(),
            chosen.ok()
        );
        assert_eq!(
            choose("localhost", &["::1", "127.0.0.1"]).ok(),
            "127.0.0.1".parse().ok()
        );
        let own = choose("a", &["127.0.1.1"]).unwrap_err();
        assert!(
            own.contains("`a` is 127.0.1.1 on this machine, where no other host reaches it"),
            "{own}"
        );
        assert!(choose("a", &[]).is_err());
    }

    #[test]
    fn a_name_becomes_an_address() {
        let mut listen: Listen = "localhost:5".parse().unwrap();
        listen.resolve().unwrap();
        assert!(listen.address().ip().is_loopback() && listen.address().port() == 5);
        // No resolver is asked for it: that could take long.
        let mut nobody: Listen = "x".repeat(64).parse().unwrap();
        let error = nobody.resolve().unwrap_err();
        assert!(error.contains("` has no address here"), "{error}");
    }
}
