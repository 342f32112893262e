//! What a client of etcd knows of its cluster, kept fresh in the background: the addresses behind names, and
//! the access that files give. An ask uses what was good last and waits neither for a resolver nor for a
//! disk.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::confine;

use crate::arbiter::{Access, CALLS};
use crate::config::Endpoint;

/// How often the files are looked at.
const FILES_LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often names are resolved while all is well.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// How often, at most, if a member cannot be reached or a name is unknown.
const RESOLVE_INTERVAL_IN_TROUBLE: Duration = Duration::from_secs(2);
/// Most addresses of one name that are asked.
const ADDRESSES_MAX: usize = 8;

/// Finds the addresses behind a name, for as long as that takes.
type Resolver = Box<dyn Fn(&Endpoint) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// See the module.
pub(crate) struct Care {
    endpoints: Vec<Endpoint>,
    resolver: Resolver,
    known: Mutex<Known>,
    /// A first round of resolving is over, or has brought an address.
    resolved: Condvar,
    wake: SyncSender<()>,
}

struct Known {
    members: Vec<Member>,
    access: Access,
    /// Counts how often the access was read.
    access_number: u64,
    access_trouble: Option<String>,
    was_resolved: bool,
}

#[derive(Clone, Default)]
struct Member {
    addresses: Vec<SocketAddr>,
    /// Why the name could not be resolved when it was last tried.
    trouble: Option<String>,
}

impl Care {
    /// Begins to look after `endpoints` and `access`. Without names and files there is nothing to look after.
    pub(super) fn begin(endpoints: Vec<Endpoint>, access: Access) -> io::Result<Arc<Self>> {
        Self::with(endpoints, access, Box::new(Endpoint::resolve))
    }

    fn with(endpoints: Vec<Endpoint>, access: Access, resolver: Resolver) -> io::Result<Arc<Self>> {
        let members: Vec<Member> = endpoints.iter().map(literal).collect();
        let has_names = members.iter().any(|member| member.addresses.is_empty());
        let has_files = access.has_files();
        // One signal that waits is as good as many.
        let (wake, woken) = sync_channel(1);
        let care = Arc::new(Self {
            endpoints,
            resolver,
            known: Mutex::new(Known {
                members,
                access,
                access_number: 0,
                access_trouble: None,
                was_resolved: !has_names,
            }),
            resolved: Condvar::new(),
            wake,
        });
        if has_names || has_files {
            let weak = Arc::downgrade(&care);
            thread::Builder::new()
                .name("arbiter care".into())
                .spawn(move || {
                    confine::thread(&CALLS);
                    look_after(&weak, &woken, has_names);
                })?;
        }
        Ok(care)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members as they are known now, by the number of their endpoint. While none has an address yet, the
    /// first round of resolving is waited for, at most until `deadline`.
    pub(super) fn members(&self, deadline: Instant) -> Vec<(usize, SocketAddr)> {
        let mut known = self.lock();
        loop {
            let members: Vec<_> = known
                .members
                .iter()
                .enumerate()
                .flat_map(|(number, member)| member.addresses.iter().map(move |address| (number, *address)))
                .collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if !members.is_empty() || known.was_resolved || left.is_zero() {
                return members;
            }
            let waited = self.resolved.wait_timeout(known, left);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn endpoint(&self, number: usize) -> &Endpoint {
        &self.endpoints[number]
    }

    /// The access that was good last, and its number, which changes with it.
    pub(super) fn access(&self) -> (Access, u64) {
        let known = self.lock();
        (known.access.clone(), known.access_number)
    }

    /// A member could not be reached: its name may lead elsewhere now.
    pub(crate) fn look_again(&self) {
        match self.wake.try_send(()) {
            // It has been told, or there is nothing to look after.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }

    /// Names that are unknown at present, as a sentence.
    pub(crate) fn unknown_names(&self) -> Option<String> {
        let known = self.lock();
        let troubles: Vec<_> = known
            .members
            .iter()
            .zip(&self.endpoints)
            .filter_map(|(member, endpoint)| {
                let trouble = member.trouble.as_ref()?;
                Some(format!(
                    "the name in {} cannot be resolved: {trouble}",
                    endpoint.authority()
                ))
            })
            .collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// Waits until a first round of resolving is over, at most until `deadline`: a name without an address is
    /// in trouble from then on.
    pub(crate) fn await_resolved(&self, deadline: Instant) {
        let mut known = self.lock();
        while !known.was_resolved {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let untried = known
                    .members
                    .iter_mut()
                    .filter(|member| member.addresses.is_empty());
                for member in untried {
                    let unanswered = || "the name service does not answer".to_owned();
                    member.trouble.get_or_insert_with(unanswered);
                }
                return;
            }
            let waited = self.resolved.wait_timeout(known, left);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is wrong although the cluster may answer: files that cannot be used, names that are unknown.
    pub(super) fn trouble(&self) -> Option<String> {
        let access = self.lock().access_trouble.clone();
        let troubles: Vec<_> = [access, self.unknown_names()].into_iter().flatten().collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// Resolves one name, for as long as the resolver takes.
    fn resolve(&self, number: usize) {
        let endpoint = &self.endpoints[number];
        if literal(endpoint).addresses.len() == 1 {
            return;
        }
        let found = (self.resolver)(endpoint);
        let mut known = self.lock();
        let member = &mut known.members[number];
        match found {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(ADDRESSES_MAX);
                if !member.addresses.is_empty() && member.addresses != addresses {
                    tracing::info!("{} leads to {addresses:?} now", endpoint.authority());
                }
                *member = Member {
                    addresses,
                    trouble: None,
                };
                self.resolved.notify_all();
            }
            Ok(_) => member.trouble = Some("it has no address".into()),
            // The last good addresses stay in use.
            Err(error) => member.trouble = Some(error.to_string()),
        }
    }

    fn note_resolved(&self) -> bool {
        let mut known = self.lock();
        known.was_resolved = true;
        self.resolved.notify_all();
        known.members.iter().all(|member| member.trouble.is_none())
    }

    /// Reads the files again if they have changed.
    fn renew_access(&self) {
        let access = self.lock().access.clone();
        let Some(renewed) = access.renewed() else {
            // They may be as they were again.
            self.lock().access_trouble = None;
            return;
        };
        let mut known = self.lock();
        match renewed {
            Ok(access) => {
                known.access = access;
                known.access_number += 1;
                known.access_trouble = None;
                tracing::info!("what the arbiter's certificates, keys and passwords say has been read again");
            }
            Err(error) => {
                let trouble = format!("{error}; what was read before stays in use");
                if known.access_trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("{trouble}");
                }
                known.access_trouble = Some(trouble);
            }
        }
    }
}

/// An endpoint whose host is an address needs no resolver.
fn literal(endpoint: &Endpoint) -> Member {
    Member {
        addresses: endpoint.authority().parse().into_iter().collect(),
        trouble: None,
    }
}

fn look_after(care: &Weak<Care>, woken: &Receiver<()>, has_names: bool) {
    let mut due = Instant::now();
    let mut resolved_at = None::<Instant>;
    loop {
        let Some(care) = care.upgrade() else { return };
        care.renew_access();
        if has_names && Instant::now() >= due {
            for number in 0..care.endpoints.len() {
                care.resolve(number);
                care.renew_access();
            }
            let interval = match care.note_resolved() {
                true => RESOLVE_INTERVAL,
                false => RESOLVE_INTERVAL_IN_TROUBLE,
            };
            resolved_at = Some(Instant::now());
            due = Instant::now() + interval;
        }
        drop(care);
        match woken.recv_timeout(FILES_LOOK_INTERVAL) {
            Ok(()) => due = due.min(resolved_at.map_or(due, |at| at + RESOLVE_INTERVAL_IN_TROUBLE)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::config::{self, ArbiterKind};

    const LIMIT: Duration = Duration::from_secs(20);

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        texts.iter().map(|text| Endpoint::parse(text).unwrap()).collect()
    }

    fn soon() -> Instant {
        Instant::now() + LIMIT
    }

    /// Waits until the members are these, as an ask that fails would make it happen.
    fn await_members(care: &Care, expected: &[SocketAddr]) {
        let until = soon();
        loop {
            let found: Vec<_> = care
                .members(until)
                .into_iter()
                .map(|(_, address)| address)
                .collect();
            if found == expected {
                return;
            }
            assert!(Instant::now() < until, "{found:?}");
            care.look_again();
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_followed_and_the_last_good_address_stays() {
        let (first, second): (SocketAddr, SocketAddr) =
            ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
        let (answers, next) = channel::<io::Result<Vec<SocketAddr>>>();
        let next = Mutex::new(next);
        let resolver: Resolver = Box::new(move |_| {
            let next = next.lock().unwrap();
            next.recv()
                .unwrap_or_else(|_| Err(io::Error::other("no name service")))
        });
        let care = Care::with(endpoints(&["http://m1:1"]), Access::default(), resolver).unwrap();
        // A resolver that hangs holds nobody up beyond the deadline.
        assert_eq!(care.members(Instant::now() + Duration::from_millis(50)), []);
        answers.send(Ok(vec![first])).unwrap();
        await_members(&care, &[first]);
        answers.send(Ok(vec![second, second])).unwrap();
        await_members(&care, &[second]);
        assert_eq!(care.trouble(), None);
        drop(answers);
        let until = soon();
        while care.trouble().is_none() {
            assert!(Instant::now() < until);
            care.look_again();
            thread::sleep(Duration::from_millis(20));
        }
        assert!(care.trouble().unwrap().contains("no name service"));
        await_members(&care, &[second]);
    }

    #[test]
    fn one_unknown_name_keeps_nobody_from_the_others_and_addresses_need_no_resolver() {
        let resolver: Resolver = Box::new(|endpoint| match endpoint.authority() {
            "known:1" => Ok(vec!["10.0.0.3:1".parse().unwrap()]),
            "unknown:1" => Err(io::Error::other("nobody knows it")),
            other => panic!("{other} is an address"),
        });
        let care = Care::with(
            endpoints(&["http://unknown:1", "http://known:1", "http://[::1]:7"]),
            Access::default(),
            resolver,
        )
        .unwrap();
        await_members(
            &care,
            &["10.0.0.3:1".parse().unwrap(), "[::1]:7".parse().unwrap()],
        );
        let until = soon();
        while care.trouble().is_none() {
            assert!(Instant::now() < until);
            thread::sleep(Duration::from_millis(5));
        }
        care.await_resolved(soon());
        assert!(
            care.trouble()
                .unwrap()
                .contains("unknown:1 cannot be resolved: nobody knows it")
        );
    }

    #[test]
    fn a_resolver_that_hangs_is_waited_for_no_longer_than_said() {
        let (answers, next) = channel::<io::Result<Vec<SocketAddr>>>();
        let next = Mutex::new(next);
        let resolver: Resolver =
            Box::new(move |_| next.lock().unwrap().recv().unwrap_or_else(|_| Ok(Vec::new())));
        let care = Care::with(endpoints(&["http://m1:1"]), Access::default(), resolver).unwrap();
        care.await_resolved(Instant::now() + Duration::from_millis(20));
        let trouble = care.trouble().unwrap();
        assert!(
            trouble.contains("m1:1") && trouble.contains("does not answer"),
            "{trouble}"
        );
        answers.send(Ok(vec!["10.0.0.1:1".parse().unwrap()])).unwrap();
        care.await_resolved(soon());
        assert_eq!(care.trouble(), None);
    }
    /// Whoever has a token asks for another one when the number is another.
    #[test]
    fn access_that_is_read_again_has_another_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let write = |password: &str| {
            fs::write(&path, password).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("one");
        let section = config::Arbiter {
            kind: ArbiterKind::Etcd,
            endpoints: vec!["http://10.0.0.1:1".into()],
            ca: None,
            certificate: None,
            key: None,
            user: Some("kemari".into()),
            password_file: Some(path.clone()),
            prefix: "/kemari/".into(),
            path: None,
            timeout_ms: 1000,
        };
        let access = Access::of(&section).unwrap();
        let care = Care::begin(endpoints(&["http://10.0.0.1:1"]), access).unwrap();
        care.renew_access();
        let (_, before) = care.access();
        assert_eq!(before, 0, "nothing has changed");
        write("another");
        care.renew_access();
        assert_ne!(care.access().1, before);
    }
}
