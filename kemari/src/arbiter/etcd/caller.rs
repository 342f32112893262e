//! Calls to a cluster: one member after another until one answers, as the user, with a token that counts.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde_json::json;

use super::answers::AuthAnswer;
use super::care::Care;
use super::refusal::{Failed, parse};
use crate::arbiter::Access;
use crate::arbiter::http::Post;

/// A client of a cluster. Clones know together which member answers, and with which token.
#[derive(Clone)]
pub(crate) struct Caller {
    care: Arc<Care>,
    /// Held for moments only, never during a call.
    session: Arc<Mutex<Session>>,
}

#[derive(Default)]
struct Session {
    /// Where the last answer came from: asked first.
    favourite: Option<SocketAddr>,
    token: Token,
    /// The number of the access that the token is for.
    access_number: u64,
}

#[derive(Clone, Default, PartialEq, Eq)]
enum Token {
    /// A user must be authenticated first.
    #[default]
    None,
    Is(String),
    /// The cluster knows no users at present.
    NotNeeded,
}

impl Token {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Is(text) => Some(text),
            Self::None | Self::NotNeeded => None,
        }
    }
}

/// One call.
pub(crate) struct Call<'a> {
    pub path: &'static str,
    pub body: &'a serde_json::Value,
    pub(crate) deadline: Instant,
    /// Whether it may reach more than one member. If not, it ends with the first one that may have received
    /// it.
    pub(crate) repeated: bool,
}

impl Caller {
    pub(super) fn new(care: Arc<Care>) -> Self {
        Self {
            care,
            session: Arc::default(),
        }
    }

    pub(crate) fn care(&self) -> &Care {
        &self.care
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls as the user, if there is one, with a new token if the old one is refused.
    pub(super) fn call<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, Failed> {
        let (access, number) = self.care.access();
        if access.user.is_none() {
            return self.ask(call, &access, &Token::NotNeeded, false);
        }
        let mut token = Token::None;
        {
            let mut session = self.lock();
            if session.access_number != number {
                (session.token, session.access_number) = (Token::None, number);
            }
            token.clone_from(&session.token);
        }
        if token != Token::None {
            match self.ask(call, &access, &token, true) {
                // Refused for certain: nothing was carried out.
                Err(failed) if failed.renew_token => {}
                outcome => return outcome,
            }
        }
        let token = self.authenticate(call.deadline, &access)?;
        self.lock().token = token.clone();
        self.ask(call, &access, &token, false)
    }

    fn authenticate(&self, deadline: Instant, access: &Access) -> Result<Token, Failed> {
        let Some(user) = &access.user else {
            return Ok(Token::NotNeeded);
        };
        let call = Call {
            path: "/v3/auth/authenticate",
            body: &json!({ "name": user.name, "password": user.password }),
            deadline,
            repeated: true,
        };
        let answer: AuthAnswer = match self.ask(&call, access, &Token::None, false) {
            Ok(answer) => answer,
            Err(failed) if failed.no_authentication => return Ok(Token::NotNeeded),
            // Whatever happened: the call that it was for was not made.
            Err(failed) => {
                let sentence = format!("the arbiter's user cannot be authenticated: {}", failed.sentence);
                return Err(Failed {
                    silent: failed.silent,
                    ..Failed::certain(sentence)
                });
            }
        };
        // It goes into a header.
        match answer.token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Token::Is(answer.token)),
            false => Err(Failed::certain(
                "etcd's token is no word of printable characters".into(),
            )),
        }
    }

    /// Asks one member after another until one answers, or, with `ends_at_token`, refuses the token.
    fn ask<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        access: &Access,
        token: &Token,
        ends_at_token: bool,
    ) -> Result<T, Failed> {
        let mut members = self.care.members(call.deadline);
        let favourite = self.lock().favourite;
        if let Some(first) = members
            .iter()
            .position(|(_, address)| Some(*address) == favourite)
        {
            members.rotate_left(first);
        }
        let body = call.body.to_string();
        // As long as nobody was reached: names that nobody knows are silence, too.
        let mut last = Failed::silent(String::new(), false);
        let mut all_silent = true;
        let mut sentences = Vec::new();
        for (tried, (number, address)) in members.iter().enumerate() {
            let endpoint = self.care.endpoint(*number);
            let now = Instant::now();
            let until = now + call.deadline.saturating_duration_since(now) / (members.len() - tried) as u32;
            let post = Post {
                endpoint,
                address: *address,
                tls: access.tls.as_ref(),
                token: token.text(),
                path: call.path,
                body: body.as_bytes(),
            };
            let failed = match post.send(until, if call.repeated { until } else { call.deadline }) {
                Ok(response) => match parse(endpoint.authority(), &response) {
                    Ok(answer) => {
                        self.lock().favourite = Some(*address);
                        return Ok(answer);
                    }
                    Err(failed) => failed,
                },
                Err(failure) => {
                    self.care.look_again();
                    Failed::silent(failure.sentence, failure.sent)
                }
            };
            if (failed.unclear && !call.repeated) || (failed.renew_token && ends_at_token) {
                return Err(failed);
            }
            sentences.push(failed.sentence.clone());
            all_silent &= failed.silent;
            last = failed;
        }
        self.care.look_again();
        sentences.extend(self.care.unknown_names());
        Err(Failed {
            unclear: false,
            silent: all_silent,
            sentence: format!("etcd cannot be asked: {}", sentences.join("; ")),
            ..last
        })
    }
}
