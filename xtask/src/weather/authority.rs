//! Certificates for an etcd and for those who ask it, made with OpenSSL's program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::etcd::openssl;

/// Days for which what is made here is valid.
const DAYS: &str = "2";
/// Keys of elliptic curves: made in no time.
const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// An authority, in files of a directory.
pub(crate) struct Authority {
    dir: PathBuf,
    name: String,
}

impl Authority {
    /// Makes one with a key of its own; an older one of that name is replaced.
    pub(crate) fn make(dir: &Path, name: &str) -> Result<Self> {
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        let mut words = vec!["req", "-x509", "-nodes", "-days", DAYS, "-subj", "/CN=weather"];
        words.extend(CURVE);
        words.extend(["-keyout", &key, "-out", &pem]);
        openssl(dir, &words)?;
        // etcd reads whom it trusts when it starts.
        fs::copy(dir.join(&pem), dir.join("trusted.pem"))?;
        Ok(Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Signs a new certificate `name.pem` with `name.key`, for a name or an address. Both files are replaced
    /// at once, as who renews certificates does.
    pub(crate) fn issue(&self, name: &str, of: &str) -> Result<()> {
        let kind = if of.parse::<std::net::IpAddr>().is_ok() {
            "IP"
        } else {
            "DNS"
        };
        fs::write(
            self.dir.join("extensions"),
            format!("subjectAltName={kind}:{of}\n"),
        )?;
        let subject = format!("/CN={of}");
        let mut words = vec!["req", "-new", "-nodes", "-subj", &subject];
        words.extend(CURVE);
        words.extend(["-keyout", "new.key", "-out", "new.csr"]);
        openssl(&self.dir, &words)?;
        let (ca, key) = (format!("{}.pem", self.name), format!("{}.key", self.name));
        openssl(
            &self.dir,
            &[
                "x509",
                "-req",
                "-in",
                "new.csr",
                "-CA",
                &ca,
                "-CAkey",
                &key,
                "-CAcreateserial",
                "-days",
                DAYS,
                "-extfile",
                "extensions",
                "-out",
                "new.pem",
            ],
        )?;
        super::world::make_private(&self.dir.join("new.key"))?;
        for end in ["key", "pem"] {
            fs::rename(
                self.dir.join(format!("new.{end}")),
                self.dir.join(format!("{name}.{end}")),
            )?;
        }
        Ok(())
    }

    /// Makes the pair of keys `token.key` and `token.pub` with which etcd signs tokens.
    pub(crate) fn token_key(dir: &Path) -> Result<()> {
        openssl(dir, &["genrsa", "-out", "token.key", "2048"])?;
        openssl(dir, &["rsa", "-in", "token.key", "-pubout", "-out", "token.pub"])
    }
}
