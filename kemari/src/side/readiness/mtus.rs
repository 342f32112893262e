//! The MTUs of the guest's TAPs on both hosts: where that of the other host is larger, the guest sends
//! packets that would get lost here.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::HostNet;

/// What both sides know, by card, in the order of the configuration. 0: it is not known. Lives as long as the
/// process, over its roles.
#[derive(Default)]
pub struct Mtus {
    ours: Mutex<Vec<u32>>,
    theirs: Mutex<Vec<u32>>,
}

impl Mtus {
    /// Those of this host.
    pub fn note_ours(&self, mtus: Vec<u32>) {
        *lock(&self.ours) = mtus;
    }

    /// Those of this host, as a heartbeat tells them.
    pub fn ours(&self) -> Vec<u32> {
        lock(&self.ours).clone()
    }

    /// Those that the other host's heartbeat has told.
    pub fn note_theirs(&self, mtus: &[u32]) {
        mtus.clone_into(&mut lock(&self.theirs));
    }

    /// There is no other side, or another one.
    pub fn forget_theirs(&self) {
        lock(&self.theirs).clear();
    }

    /// Each of these cards through whose TAP here less fits than through that of the other host.
    pub fn narrower(&self, nets: &[HostNet<'_>]) -> Vec<String> {
        let (ours, theirs) = (lock(&self.ours), lock(&self.theirs));
        let pairs = ours.iter().zip(&*theirs);
        let narrower = nets
            .iter()
            .zip(pairs)
            .filter(|(_, (ours, theirs))| **ours > 0 && ours < theirs);
        let sentences = narrower.map(|(net, (ours, theirs))| {
            let (id, tap) = (&net.net.id, &net.tap);
            format!(
                "the TAP {tap} of the card {id} takes packets of {ours} bytes, and that of the primary \
                 {theirs}: `ip link set {tap} mtu {theirs}`"
            )
        });
        sentences.collect()
    }
}

fn lock(mtus: &Mutex<Vec<u32>>) -> MutexGuard<'_, Vec<u32>> {
    mtus.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_tap_that_takes_less_than_the_primarys_is_named_and_no_other() {
        let text = include_str!("../../../../docs/example.toml");
        let config = Config::parse(text, "test").unwrap();
        let nets = config.nets_of("b");
        let found = |ours: &[u32], theirs: &[u32]| {
            let mtus = Mtus::default();
            mtus.note_ours(ours.to_vec());
            mtus.note_theirs(theirs);
            mtus.narrower(&nets)
        };
        let narrower = found(&[1500], &[9000]);
        assert!(
            narrower[0].contains("tap3 mtu 9000") && narrower.len() == 1,
            "{narrower:?}"
        );
        for (ours, theirs) in [
            (&[1500][..], &[1500][..]),
            (&[9000], &[1500]),
            (&[0], &[1500]),
            (&[1500], &[0]),
            (&[], &[1500]),
            (&[1500], &[]),
            // More than there are cards.
            (&[1500, 1500], &[1500, 9000]),
        ] {
            assert_eq!(found(ours, theirs), [""; 0], "{ours:?} {theirs:?}");
        }
    }
}
