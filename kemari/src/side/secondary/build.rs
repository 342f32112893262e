//! Standby VMs are built by a helper, and those that nobody needs any more end there: both take long, and
//! heartbeats must go on. There is one at it at a time, since an image has one user.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use kemari_sync::{DiskOffer, SecondaryEvent, SessionId};

use super::berth::Built;
use super::{Input, SecondarySide, Standby};
use crate::replica::Remains;
use crate::threads::helpers;

/// Number of a standby VM in this process.
pub type BuildId = u64;

/// What the helper is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Waiting for the images of the standby VM before.
    Ending,
    /// Opening images.
    Images,
    /// Populating and locking memory.
    Memory,
}

/// Where the helper says what it is at.
#[derive(Clone, Debug)]
pub struct Steps(Arc<AtomicU8>);

impl Steps {
    pub fn enter(&self, step: Step) {
        self.0.store(step as u8, Ordering::Relaxed);
    }

    fn now(&self) -> Step {
        [Step::Ending, Step::Images, Step::Memory]
            .into_iter()
            .find(|step| *step as u8 == self.0.load(Ordering::Relaxed))
            .unwrap_or(Step::Memory)
    }
}

/// A build that is under way.
#[derive(Debug)]
pub struct Build {
    /// The session that it was begun for: that may be over.
    pub session: SessionId,
    steps: Steps,
    since_ms: u64,
}

impl Build {
    pub fn new(session: SessionId, since_ms: u64) -> Self {
        Self {
            session,
            steps: Steps(Arc::new(AtomicU8::new(Step::Ending as u8))),
            since_ms,
        }
    }
}

/// What builds have in common.
pub struct Builder {
    /// The operator's word that images of this history may be overwritten.
    overwrite_disks: Option<String>,
    next: BuildId,
    /// Replicas that were let go while their images did not answer.
    remains: Vec<Remains>,
}

impl Builder {
    pub fn new(overwrite_disks: Option<String>) -> Self {
        Self {
            overwrite_disks,
            next: 1,
            remains: Vec::new(),
        }
    }

    fn next_id(&mut self) -> BuildId {
        let id = self.next;
        self.next += 1;
        id
    }

    /// Gives a standby up, without waiting for images that do nothing for longer than `limit`.
    pub fn let_go(&mut self, standby: &mut Standby, limit: Duration) {
        self.remains.extend(standby.disks.abandon_stuck(limit));
    }

    /// An image that was given up and has not answered yet, in words: nothing can follow with it.
    pub fn image_in_use(&mut self) -> Option<String> {
        self.remains.retain(|remains| remains.reason().is_some());
        self.remains.first().and_then(Remains::reason)
    }
}

/// Why there is no standby VM.
pub struct BuildError {
    pub reason: String,
    /// Replicas of the one before, whose images do not answer.
    pub remains: Vec<Remains>,
}

impl SecondarySide {
    /// A standby VM is wanted for this session. What one that is being built for an earlier session becomes
    /// is found out when it is there.
    pub(super) fn prepare(&mut self, session: SessionId) {
        self.end_drill("the VM is copied anew");
        let mut old = self.berth.vacate();
        if let Some(standby) = &mut old {
            let limit = self.config.protection.replica_timeout();
            self.builder.let_go(standby, limit);
        }
        if let Some(reason) = self.builder.image_in_use() {
            let result = Err(reason);
            return self
                .events
                .push_back(SecondaryEvent::Prepared { session, result });
        }
        if self.berth.want(session) {
            self.begin_build(session, old);
        }
    }

    fn begin_build(&mut self, session: SessionId, old: Option<Box<Standby>>) {
        let (id, overwrite_disks) = (self.builder.next_id(), self.builder.overwrite_disks.clone());
        let build = Build::new(session, self.clock.now_ms());
        let steps = build.steps.clone();
        self.berth.begin(build);
        let reports = self.mailbox.clone();
        let report = move |index, report| reports.post(Input::Replica(id, index, report));
        let (config, host, spec) = (self.config.clone(), self.host.clone(), self.spec.clone());
        let mailbox = self.mailbox.clone();
        helpers::run("build", move || {
            let limit = config.protection.replica_timeout();
            let ended = old.map_or(Ok(()), |standby| standby.end(limit));
            let result = ended.and_then(|()| {
                let overwrite = overwrite_disks.as_deref();
                let built = Standby::build(&config, &host, spec, (id, session), overwrite, &steps, report);
                built.map(Box::new).map_err(|error| BuildError {
                    reason: format!("{error:#}"),
                    remains: Vec::new(),
                })
            });
            mailbox.post(Input::Prepared(result));
        });
    }

    /// The build that was under way has ended.
    pub(super) fn on_prepared(&mut self, result: Result<Box<Standby>, BuildError>) {
        let result = result.map_err(|error| {
            self.builder.remains.extend(error.remains);
            error.reason
        });
        let (session, result) = match self.berth.built(result) {
            None => return,
            Some(Built::Unwanted) => {
                return tracing::info!("a standby VM was being built for a session that is over");
            }
            Some(Built::Again(session, reason)) => {
                tracing::info!(
                    "no standby VM for the session before: {reason}; it is tried again for this one"
                );
                return self.begin_build(session, None);
            }
            Some(Built::Failed(session, reason)) => (session, Err(reason)),
            Some(Built::Ready { session, is_anothers }) => {
                if is_anothers {
                    tracing::info!("the standby VM that was begun for an earlier session is this one's");
                }
                (session, Ok(self.offer(session)))
            }
        };
        self.events
            .push_back(SecondaryEvent::Prepared { session, result });
    }

    /// The standby VM is this session's: what its primary is told of its disks.
    fn offer(&mut self, session: SessionId) -> Vec<DiskOffer> {
        let Some(standby) = self.berth.standby_mut() else {
            return Vec::new();
        };
        standby.session = session;
        self.readiness.expect_locked(self.spec.memory_bytes);
        self.images_in_use.set(std::mem::take(&mut standby.opened));
        let offers = standby.disks.offers();
        self.send_maps(session);
        offers
    }

    /// What a session waits for while it waits for a standby VM, as a sentence.
    pub(super) fn build_shown(&self) -> Option<String> {
        let build = self.berth.build()?;
        let session = self.berth.wanted_by()?;
        let what = match build.steps.now() {
            Step::Ending => "the disk images of the one before are finished".to_owned(),
            Step::Images => "its disk images are opened".to_owned(),
            Step::Memory => format!(
                "{} MiB of memory are touched and locked",
                self.spec.memory_bytes >> 20
            ),
        };
        let since_s = self.clock.now_ms().saturating_sub(build.since_ms) / 1000;
        let whose = match build.session == session {
            true => "",
            false => ", as was begun for an earlier session",
        };
        Some(format!(
            "making the standby VM ready for {since_s} s{whose}: {what}"
        ))
    }
}
