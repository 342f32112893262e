//! Where a member of the arbiter listens.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use rustls::pki_types::ServerName;

/// An HTTP server: `http://host:port` or `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    authority: String,
    /// The name that its certificate must be for, if it speaks TLS.
    tls_name: Option<ServerName<'static>>,
}

impl Endpoint {
    /// Parses an endpoint of the configuration; the error is a sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (authority, is_tls) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (Some(rest), false),
            (None, rest) => (rest, true),
        };
        let authority = authority.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let port = authority.and_then(|authority| authority.rsplit_once(':'));
        let wrong =
            || format!("`{text}` is no endpoint: write it as https://10.0.0.9:2379 or http://10.0.0.9:2379");
        match (authority, port) {
            (Some(authority), Some((host, port)))
                if !host.is_empty()
                    && port.parse::<u16>().is_ok_and(|port| port != 0)
                    && authority
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)) =>
            {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let tls_name = match is_tls {
                    true => Some(ServerName::try_from(bare.to_owned()).map_err(|_| wrong())?),
                    false => None,
                };
                Ok(Self {
                    authority: authority.to_owned(),
                    tls_name,
                })
            }
            _ => Err(wrong()),
        }
    }

    /// The name that its certificate must be for, if it speaks TLS.
    pub(crate) fn tls_name(&self) -> Option<&ServerName<'static>> {
        self.tls_name.as_ref()
    }

    /// The addresses behind the name. May block for as long as the resolver does.
    pub(crate) fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.authority.to_socket_addrs()?.collect())
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        let port = self
            .authority
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        port.expect("an endpoint was parsed with its port")
    }

    /// Whether it has to be resolved.
    pub(crate) fn has_name(&self) -> bool {
        self.authority.parse::<SocketAddr>().is_err()
    }

    /// `host:port`
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(
            Endpoint::parse("http://10.0.0.9:2379/").unwrap().authority(),
            "10.0.0.9:2379"
        );
        assert!(Endpoint::parse("http://[::1]:2379").is_ok());
        assert!(Endpoint::parse("http://a:1").unwrap().tls_name().is_none());
        for tls in [
            "https://etcd.example:2379",
            "https://10.0.0.9:2379",
            "https://[fd00::1]:2379/",
        ] {
            assert!(Endpoint::parse(tls).unwrap().tls_name().is_some(), "{tls}");
        }
        for wrong in [
            "10.0.0.9:2379",
            "http://a",
            "http://:1",
            "http://a:0",
            "http://a:b",
            "http://a:1/x",
            "http://a b:1",
            "https://-:1",
            "ftp://a:1",
        ] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
