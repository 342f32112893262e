//! Limits of this process that it may raise by itself: the soft ones, up to the hard ones; and that of locked
//! memory as far as it may at all.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are asked for. Enough for any VM; programs that a fence runs may go over all that could
/// be open.
const DESCRIPTORS_MAX: u64 = 16_384;

/// Raises what a side may need more of than a login shell gives: descriptors, the size of a file, and locked
/// memory. What is refused stays as it was: whoever then meets a limit says which.
pub fn raise() {
    for (resource, enough) in [
        (Resource::Nofile, Some(DESCRIPTORS_MAX)),
        (Resource::Fsize, None),
        (Resource::Memlock, None),
    ] {
        let now = getrlimit(resource);
        let raised = raised(now, enough);
        if raised != now {
            // It is the process's own limit, and not beyond its hard one.
            let _ = setrlimit(resource, raised);
        }
    }
    // Who may do this (CAP_SYS_RESOURCE) locks a guest's memory without CAP_IPC_LOCK from then on, and has as
    // many threads as its VMs need if it becomes another user, whose processes are counted together.
    let none = Rlimit {
        current: None,
        maximum: None,
    };
    for resource in [Resource::Memlock, Resource::Nproc] {
        let _ = setrlimit(resource, none);
    }
}

/// The limit with its soft part as high as it may be, but no higher than `enough`. `None` is no limit.
fn raised(limit: Rlimit, enough: Option<u64>) -> Rlimit {
    let most = match (limit.maximum, enough) {
        (Some(maximum), Some(enough)) => Some(maximum.min(enough)),
        (maximum, enough) => maximum.or(enough),
    };
    let is_higher = match (limit.current, most) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(current), Some(most)) => current < most,
    };
    Rlimit {
        current: if is_higher { most } else { limit.current },
        maximum: limit.maximum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limits_rise_to_what_is_enough_and_never_fall() {
        for (current, maximum, enough, expected) in [
            (Some(1024), Some(4096), Some(16_384), Some(4096)),
            (Some(1024), Some(1 << 30), Some(16_384), Some(16_384)),
            (Some(20_000), Some(1 << 30), Some(16_384), Some(20_000)),
            (Some(1024), None, Some(16_384), Some(16_384)),
            (Some(8192), None, None, None),
            (Some(8192), Some(8192), None, Some(8192)),
            (None, None, Some(16_384), None),
        ] {
            let limit = Rlimit { current, maximum };
            assert_eq!(
                raised(limit, enough).current,
                expected,
                "{current:?} of {maximum:?}"
            );
        }
    }
}
