//! What etcd says when it refuses, for programs (was anything carried out? is the token at fault?) and for
//! people (what is to be done?). Its gateway gives the texts of errors as `error` up to 3.5, as `message`
//! since 3.6; HTTP's statuses differ between the versions, the texts do not.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::arbiter::http::Response;

/// HTTP statuses that say that a transaction was certainly not carried out. Others, as 503, may come after it
/// was.
const REFUSALS: [u16; 9] = [400, 401, 403, 404, 405, 412, 413, 429, 501];
/// Most characters of an unknown answer that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// Why a call brought no answer.
#[derive(Debug)]
pub(super) struct Failed {
    /// Why, and what to do.
    pub sentence: String,
    /// Whether it may have been carried out.
    pub unclear: bool,
    /// Whether another token may help: a member does not know this one, or it is older than a change of users
    /// or roles.
    pub(crate) renew_token: bool,
    /// Whether the cluster knows no users at present.
    pub(crate) no_authentication: bool,
    /// Whether nobody said anything that counts: no member was reached, or those that were cannot decide.
    pub silent: bool,
}

impl Failed {
    /// Certainly nothing was carried out.
    pub(super) fn certain(sentence: String) -> Self {
        Self {
            sentence,
            unclear: false,
            renew_token: false,
            no_authentication: false,
            silent: false,
        }
    }

    /// No answer came; `sent`: the request may have arrived.
    pub(super) fn silent(sentence: String, sent: bool) -> Self {
        Self {
            unclear: sent,
            silent: true,
            ..Self::certain(sentence)
        }
    }

    /// It may have been carried out.
    pub(super) fn unclear(sentence: String) -> Self {
        Self {
            unclear: true,
            ..Self::certain(sentence)
        }
    }
}

/// What is known of one of etcd's texts.
struct Known {
    /// Part of the text.
    text: &'static str,
    /// Whether it comes only if nothing was carried out; else the status tells.
    certain: bool,
    renew_token: bool,
    /// What to do.
    advice: &'static str,
}

const KNOWN: [Known; 14] = [
    Known::token("invalid auth token"),
    Known::token("revision of auth store is old"),
    Known::token("revision in header is old"),
    Known::token("user name is empty"),
    Known::sure(
        "database space exceeded",
        "it is full and takes no writes (alarm NOSPACE): compact and defragment it, then `etcdctl alarm \
         disarm`",
    ),
    Known::sure(
        "corrupt",
        "its members' data differ (alarm CORRUPT): replace the broken member, then `etcdctl alarm disarm`",
    ),
    Known::sure(
        "permission denied",
        "its user may not read and write the VM's key: `etcdctl role grant-permission ROLE readwrite KEY`",
    ),
    Known::sure(
        "invalid user ID or password",
        "correct `user` or the content of `password_file` in [arbiter]",
    ),
    Known::sure(
        "authentication is not enabled",
        "turn it on: `etcdctl auth enable`",
    ),
    Known::sure(
        "HTTP request to an HTTPS server",
        "write its endpoint with https://, and name `ca`",
    ),
    Known::open("no leader", LEADER),
    Known::open("leader changed", LEADER),
    Known::open("timed out", LEADER),
    Known::open(
        "too many requests",
        "it is overloaded: look at its disks and its other users",
    ),
];

const LEADER: &str =
    "most of its members do not work together: `etcdctl endpoint status --cluster` says which";

impl Known {
    const fn token(text: &'static str) -> Self {
        Self {
            text,
            certain: true,
            renew_token: true,
            advice: "name a `user` and its `password_file` in [arbiter] that it knows",
        }
    }

    const fn sure(text: &'static str, advice: &'static str) -> Self {
        Self {
            text,
            certain: true,
            renew_token: false,
            advice,
        }
    }

    const fn open(text: &'static str, advice: &'static str) -> Self {
        Self {
            certain: false,
            ..Self::sure(text, advice)
        }
    }
}

/// The answer of the member `name` as a value, or why it is none.
pub(super) fn parse<T: DeserializeOwned>(name: &str, response: &Response) -> Result<T, Failed> {
    if response.status == 200 {
        return serde_json::from_slice(&response.body).map_err(|error| {
            Failed::unclear(format!(
                "{name} answers, but not as etcd does ({error}): is it the right endpoint?"
            ))
        });
    }
    let Some(text) = text_of(&response.body) else {
        return Err(unknown(name, response));
    };
    let known = KNOWN.iter().find(|known| text.contains(known.text));
    let advice = known.map_or(String::new(), |known| format!("; {}", known.advice));
    Err(Failed {
        sentence: format!("{name} refused with status {}: {text}{advice}", response.status),
        unclear: !REFUSALS.contains(&response.status) && !known.is_some_and(|known| known.certain),
        renew_token: response.status == 401 || known.is_some_and(|known| known.renew_token),
        no_authentication: text.contains("authentication is not enabled"),
        silent: known.is_some_and(|known| !known.certain),
    })
}

/// What etcd says, if it is etcd that says it.
fn text_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Option<String>,
        message: Option<String>,
    }
    let refusal = serde_json::from_slice::<Refusal>(body).ok()?;
    refusal.error.or(refusal.message).filter(|text| !text.is_empty())
}

/// An answer of something else than the gateway.
fn unknown(name: &str, response: &Response) -> Failed {
    let status = response.status;
    let text: String = String::from_utf8_lossy(&response.body)
        .chars()
        .take(SHOWN_CHARS_MAX)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    let text = text.trim();
    let advice = match status {
        404 => {
            "its JSON gateway is off: start it with `--enable-grpc-gateway=true`, and name an address of \
             `--listen-client-http-urls` where that is given"
        }
        _ if text.contains("HTTPS server") => "write its endpoint with https://, and name `ca`",
        _ => "is it etcd, and is there a proxy before it?",
    };
    let said = if text.is_empty() { "nothing more" } else { text };
    Failed {
        unclear: !REFUSALS.contains(&status),
        renew_token: status == 401,
        ..Failed::certain(format!("{name} refused with status {status}: {said}; {advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Failed {
        let response = Response {
            status,
            body: body.as_bytes().to_vec(),
        };
        parse::<serde_json::Value>("m:1", &response).unwrap_err()
    }

    #[test]
    fn every_text_that_asks_for_a_new_token_is_understood_in_the_form_of_every_version() {
        for (status, text) in [
            (401, "etcdserver: invalid auth token"),
            (400, "etcdserver: revision of auth store is old"),
            (500, "auth: revision in header is old"),
            (400, "etcdserver: user name is empty"),
        ] {
            for body in [
                format!(r#"{{"error":"{text}","code":16,"message":"{text}"}}"#),
                format!(r#"{{"code":16,"message":"{text}","details":[]}}"#),
            ] {
                let failed = refused(status, &body);
                assert!(failed.renew_token && !failed.unclear, "{body}: {failed:?}");
                assert!(failed.sentence.contains(text), "{failed:?}");
            }
        }
    }

    #[test]
    fn a_full_or_closed_etcd_says_what_to_do_and_whether_something_was_done() {
        let full = refused(
            429,
            r#"{"code":8,"message":"etcdserver: mvcc: database space exceeded"}"#,
        );
        assert!(
            full.sentence.contains("alarm disarm") && !full.unclear && !full.silent,
            "{full:?}"
        );
        // 3.3 has another status for it.
        assert!(!refused(503, r#"{"error":"etcdserver: mvcc: database space exceeded"}"#).unclear);
        let off = refused(404, "404 page not found\n");
        assert!(
            off.sentence.contains("--enable-grpc-gateway") && !off.unclear,
            "{off:?}"
        );
        let headless = refused(
            503,
            r#"{"code":14,"message":"etcdserver: no leader","details":[]}"#,
        );
        assert!(
            headless.sentence.contains("no leader") && headless.unclear && headless.silent,
            "{headless:?}"
        );
        let denied = refused(403, r#"{"code":7,"message":"etcdserver: permission denied"}"#);
        assert!(
            denied.sentence.contains("grant-permission") && !denied.renew_token,
            "{denied:?}"
        );
        let proxy = refused(502, "<html>\u{1b}[2Jbad</html>");
        assert!(proxy.unclear && !proxy.sentence.contains('\u{1b}'), "{proxy:?}");
        assert!(
            refused(400, "Client sent an HTTP request to an HTTPS server.\n")
                .sentence
                .contains("https://")
        );
        assert!(refused(400, r#"{"error":"etcdserver: authentication is not enabled"}"#).no_authentication);
    }
}
