//! What has to come to rest before something is done with a machine, and the capture that waits for it. That
//! may take as long as a disk: so helpers wait, and heartbeats go on.

use kemari_sync::Epoch;

/// What a capture waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Nothing is under way on the disks: the first capture of a pair, of this epoch.
    DisksAreStill(Epoch),
    /// The reset under way is over: half of one is nothing that could be gone on from.
    WasReset,
    /// Every vCPU has stopped.
    Parked,
}

/// A capture that the guest is to stand still for.
struct Wanted {
    epoch: Epoch,
    /// Whether output is held from it on.
    hold: bool,
    /// Since when the guest is to stand still, in microseconds.
    since_us: u64,
    until: Option<Until>,
}

/// See the module. One capture at a time is wanted.
#[derive(Default)]
pub struct Stillness {
    capture: Option<Wanted>,
    /// Whether a helper waits for the vCPUs.
    pub parks: bool,
    /// The guest wants a reset, which waits until no capture waits for its ack.
    pub wants_reset: bool,
    drains: u64,
}

impl Stillness {
    /// The guest is to stand still for this capture from now on, or has been since an earlier call. Returns
    /// since when, in microseconds: a pause is as long as the guest does not run, whatever it waits for.
    pub fn want(&mut self, epoch: Epoch, hold: bool, now_us: u64) -> u64 {
        self.capture.take_if(|wanted| wanted.epoch != epoch);
        let wanted = self.capture.get_or_insert(Wanted {
            epoch,
            hold,
            since_us: now_us,
            until: None,
        });
        wanted.since_us
    }

    /// It cannot be taken before this.
    pub fn wait(&mut self, until: Until) {
        if let Some(wanted) = &mut self.capture {
            wanted.until = Some(until);
        }
    }

    /// This has happened. Returns the capture, and whether output is held from it on, if it waited for that.
    pub fn reached(&mut self, until: Until) -> Option<(Epoch, bool)> {
        let wanted = self.capture.as_mut()?;
        let reached = wanted.until.take_if(|awaited| *awaited == until);
        reached.map(|_| (wanted.epoch, wanted.hold))
    }

    /// Whether one is wanted.
    #[cfg(test)]
    pub fn waits(&self) -> bool {
        self.capture.is_some()
    }

    /// A capture is taken, or given back: it is wanted no more.
    pub fn forget(&mut self, epoch: Epoch) {
        self.capture.take_if(|wanted| wanted.epoch == epoch);
    }

    /// A drain begins. Returns its number.
    pub fn begin_drain(&mut self) -> u64 {
        self.drains += 1;
        self.drains
    }

    /// Whether that was the last that has begun. One that was overtaken by a failed switchover may still end,
    /// and says nothing of the next.
    pub fn is_drained(&self, drain: u64) -> bool {
        drain == self.drains
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_goes_on_from_what_it_waits_for_alone_and_stands_still_since_it_was_wanted() {
        let mut stillness = Stillness::default();
        stillness.want(1, true, 10);
        stillness.wait(Until::DisksAreStill(1));
        for other in [Until::DisksAreStill(0), Until::WasReset, Until::Parked] {
            assert_eq!(stillness.reached(other), None, "{other:?}");
        }
        assert_eq!(stillness.reached(Until::DisksAreStill(1)), Some((1, true)));
        assert_eq!(stillness.want(1, true, 20), 10);
        stillness.wait(Until::Parked);
        assert_eq!(stillness.reached(Until::Parked), Some((1, true)));
        assert_eq!(stillness.reached(Until::Parked), None, "it has gone on");
        assert_eq!(stillness.want(2, true, 30), 30, "it is another's pause");
    }

    #[test]
    fn a_capture_that_was_given_back_is_another_when_it_is_wanted_again() {
        let mut stillness = Stillness::default();
        stillness.want(1, false, 10);
        stillness.wait(Until::Parked);
        stillness.forget(2);
        assert!(stillness.waits(), "that was another's");
        stillness.forget(1);
        assert_eq!(stillness.reached(Until::Parked), None);
        assert_eq!(stillness.want(1, false, 20), 20);
    }
}
