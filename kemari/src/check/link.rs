//! How the link is protected: certificates that are good now and for a while.

use std::time::Duration;

use super::Finding;
use crate::config::Config;
use crate::link::Security;

/// Certificates that end sooner are warned of, in days.
const DAYS_LEFT_MIN: u64 = 30;

/// Reads the certificates of the host `name`.
pub(super) fn check(config: &Config, name: &str) -> Finding {
    let credentials = match Security::of(config, name) {
        Ok(Some(Security::Tls(credentials))) => credentials,
        Ok(Some(Security::Plaintext)) => {
            return Finding::warning(
                "the link is not encrypted: whoever reaches the network between the hosts can read and \
                 change the guest",
                "make certificates with `kemari certs`, unless nobody else is on that network",
            );
        }
        Ok(None) => {
            return Finding::warning(
                "there is no link: neither `certificates` nor `plaintext = true` is configured",
                "make certificates with `kemari certs` before the VM is to be protected",
            );
        }
        Err(error) => {
            return Finding::error(
                error.to_string(),
                match error.to_string().contains("Permission denied") {
                    true => "run Kemari as a user that may read them, or `chown` them to it",
                    false => "make a set with `kemari certs`, and copy each host's part to it",
                },
            );
        }
    };
    match credentials
        .identity()
        .check_after(Duration::from_secs(DAYS_LEFT_MIN * 24 * 3600))
    {
        Ok(()) => Finding::ok(format!(
            "certificates: those of host `{name}` are good for {DAYS_LEFT_MIN} days at least"
        )),
        Err(error) => Finding::warning(
            format!("within {DAYS_LEFT_MIN} days, {error}"),
            "make a new set with `kemari certs` and put it on both hosts: no restart is needed",
        ),
    }
}
