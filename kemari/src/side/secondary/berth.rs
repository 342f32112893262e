//! Whether there is a standby VM, and how far it is: what may follow what stands here, and nowhere else.
//!
//! An image has one user, so there is one standby VM at most: being built, alive, or leaving.

use std::mem;

use kemari_sync::SessionId;

use super::Standby;
use super::build::Build;

/// See the module.
#[derive(Debug, Default)]
pub enum Berth<S = Box<Standby>> {
    /// There is none.
    #[default]
    Empty,
    /// A helper is at it. It may have been begun for an earlier session than the one that waits for it now,
    /// if any does.
    Building {
        build: Build,
        wanted_by: Option<SessionId>,
    },
    /// It takes the copy, in the session that it serves. Nothing was committed.
    Copying(S),
    /// It holds the last commit.
    Following(S),
    /// Its state is void. It has its images until it is known whether they are to be marked as stopped, or
    /// until another is wanted.
    Leaving(S),
}

/// What the end of a build means.
#[derive(Debug, PartialEq, Eq)]
pub enum Built<E> {
    /// The session that it was for is over, and no other waits.
    Unwanted,
    /// The standby VM is this session's, whichever the build was begun for.
    Ready { session: SessionId, is_anothers: bool },
    /// There is none for this session.
    Failed(SessionId, E),
    /// There was none for an earlier session. This one may fare better.
    Again(SessionId, E),
}

impl<S> Berth<S> {
    /// The one that lives.
    pub fn standby(&self) -> Option<&S> {
        match self {
            Self::Copying(standby) | Self::Following(standby) => Some(standby),
            _ => None,
        }
    }

    /// As [`Self::standby`].
    pub fn standby_mut(&mut self) -> Option<&mut S> {
        match self {
            Self::Copying(standby) | Self::Following(standby) => Some(standby),
            _ => None,
        }
    }

    /// The one that has the images, void or not.
    pub fn occupant(&self) -> Option<&S> {
        match self {
            Self::Leaving(standby) => Some(standby),
            _ => self.standby(),
        }
    }

    /// As [`Self::occupant`].
    pub fn occupant_mut(&mut self) -> Option<&mut S> {
        match self {
            Self::Leaving(standby) => Some(standby),
            _ => self.standby_mut(),
        }
    }

    /// The one that takes a copy.
    pub fn copying(&self) -> Option<&S> {
        match self {
            Self::Copying(standby) => Some(standby),
            _ => None,
        }
    }

    /// The build that is under way.
    pub fn build(&self) -> Option<&Build> {
        match self {
            Self::Building { build, .. } => Some(build),
            _ => None,
        }
    }

    /// The session that waits for it.
    pub fn wanted_by(&self) -> Option<SessionId> {
        match self {
            Self::Building { wanted_by, .. } => *wanted_by,
            _ => None,
        }
    }

    /// Whoever is here goes. A build goes on, and nobody waits for it.
    pub fn vacate(&mut self) -> Option<S> {
        match mem::take(self) {
            Self::Empty => None,
            Self::Building { build, .. } => {
                let wanted_by = None;
                *self = Self::Building { build, wanted_by };
                None
            }
            Self::Copying(standby) | Self::Following(standby) | Self::Leaving(standby) => Some(standby),
        }
    }

    /// A session waits for a standby VM. Returns whether a build is to begin: what the one under way becomes
    /// is found out when it ends.
    pub fn want(&mut self, session: SessionId) -> bool {
        match self {
            Self::Building { wanted_by, .. } => {
                *wanted_by = Some(session);
                false
            }
            _ => true,
        }
    }

    /// A build begins, for a session that waits for it.
    pub fn begin(&mut self, build: Build) {
        debug_assert!(matches!(self, Self::Empty), "an image has one user");
        let wanted_by = Some(build.session);
        *self = Self::Building { build, wanted_by };
    }

    /// The build has ended. `None`: there was none.
    pub fn built<E>(&mut self, result: Result<S, E>) -> Option<Built<E>> {
        let (build, wanted_by) = match mem::take(self) {
            Self::Building { build, wanted_by } => (build, wanted_by),
            other => {
                *self = other;
                return None;
            }
        };
        let is_anothers = wanted_by != Some(build.session);
        let (berth, built) = match (wanted_by, result) {
            (None, Ok(standby)) => (Self::Leaving(standby), Built::Unwanted),
            (None, Err(_)) => (Self::Empty, Built::Unwanted),
            (Some(session), Ok(standby)) => (Self::Copying(standby), Built::Ready { session, is_anothers }),
            (Some(session), Err(error)) if is_anothers => (Self::Empty, Built::Again(session, error)),
            (Some(session), Err(error)) => (Self::Empty, Built::Failed(session, error)),
        };
        *self = berth;
        Some(built)
    }

    /// It holds a commit: the first one ends the copy.
    pub fn note_commit(&mut self) {
        *self = match mem::take(self) {
            Self::Copying(standby) => Self::Following(standby),
            other => other,
        };
    }

    /// The state is void. Returns the standby VM that was alive until now; for one that is being built nobody
    /// waits.
    pub fn void(&mut self) -> Option<&mut S> {
        match mem::take(self) {
            Self::Copying(standby) | Self::Following(standby) => *self = Self::Leaving(standby),
            Self::Building { build, .. } => {
                let wanted_by = None;
                *self = Self::Building { build, wanted_by };
                return None;
            }
            other => {
                *self = other;
                return None;
            }
        }
        self.occupant_mut()
    }

    /// The VM goes on from what it holds.
    pub fn take_standby(&mut self) -> Option<S> {
        match self.standby() {
            Some(_) => self.vacate(),
            None => None,
        }
    }
}

impl Berth {
    /// The one that takes the copy of this session.
    pub fn copying_for(&self, session: SessionId) -> Option<&Standby> {
        self.copying()
            .map(|standby| &**standby)
            .filter(|standby| standby.session == session)
    }
}

#[cfg(test)]
mod tests {
    use super::Berth::{Copying, Empty, Following, Leaving};
    use super::*;

    type Toy = Berth<&'static str>;

    /// A build that was begun for session 3.
    fn building() -> Toy {
        let mut berth = Toy::default();
        assert!(berth.want(3));
        berth.begin(Build::new(3, 0));
        berth
    }

    fn built(berth: &mut Toy, result: Result<&'static str, ()>) -> Built<()> {
        berth.built(result).expect("a build was under way")
    }

    #[test]
    fn a_standby_vm_is_built_copied_to_and_follows() {
        let mut berth = building();
        assert!(berth.standby().is_none() && berth.wanted_by() == Some(3));
        let (session, is_anothers) = (3, false);
        assert_eq!(built(&mut berth, Ok("vm")), Built::Ready { session, is_anothers });
        assert_eq!(berth.copying(), Some(&"vm"));
        berth.note_commit();
        assert!(matches!(berth, Following("vm")));
        berth.note_commit();
        assert_eq!(berth.take_standby(), Some("vm"));
        assert!(matches!(berth, Empty));
    }

    #[test]
    fn a_session_takes_over_the_build_of_the_one_before() {
        let mut berth = building();
        assert_eq!(berth.vacate(), None);
        assert_eq!(berth.wanted_by(), None, "the session before waits no more");
        assert!(!berth.want(4), "there is one build at a time");
        let (session, is_anothers) = (4, true);
        assert_eq!(built(&mut berth, Ok("vm")), Built::Ready { session, is_anothers });
    }

    #[test]
    fn a_build_that_fails_for_the_session_before_is_tried_again() {
        let mut berth = building();
        assert!(!berth.want(4));
        assert_eq!(built(&mut berth, Err(())), Built::Again(4, ()));
        assert!(berth.want(4));
        berth.begin(Build::new(4, 0));
        assert_eq!(built(&mut berth, Err(())), Built::Failed(4, ()));
        assert!(matches!(berth, Empty) && berth.built(Ok::<_, ()>("vm")).is_none());
    }

    #[test]
    fn what_is_built_for_nobody_has_its_images_until_another_is_wanted() {
        let mut berth = building();
        assert!(berth.void().is_none(), "nothing was alive");
        assert_eq!(built(&mut berth, Ok("vm")), Built::Unwanted);
        assert!(matches!(berth, Leaving("vm")) && berth.standby().is_none());
        assert!(berth.want(4));
        assert_eq!(berth.vacate(), Some("vm"));
        berth.begin(Build::new(4, 0));
        berth.void();
        assert_eq!(built(&mut berth, Err(())), Built::Unwanted);
        assert!(matches!(berth, Empty));
    }

    #[test]
    fn a_void_state_is_nobodys_and_stays_void() {
        for mut berth in [Copying("vm"), Following("vm")] {
            assert_eq!(berth.void(), Some(&mut "vm"));
            assert!(berth.void().is_none(), "it was void before");
            berth.note_commit();
            assert!(berth.take_standby().is_none() && berth.copying().is_none());
            assert_eq!(berth.occupant(), Some(&"vm"), "its images are not free");
        }
    }
}
