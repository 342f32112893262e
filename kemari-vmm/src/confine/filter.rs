//! From a list to a filter of the kernel's.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

use super::{Call, Calls, When, call, call_if, option};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The newest call that a list may name: of Linux 5.11. C libraries do without newer ones,
/// as kernels may lack them.
pub(super) const NEWEST: libc::c_long = libc::SYS_epoll_pwait2;

/// What is refused instead of ending the process: nobody is harmed by the try.
pub(crate) const REFUSED: &[Call] = &[
    call(
        libc::SYS_clone3,
        "its flags lie in memory, where no filter sees them; the C library goes on with clone",
    ),
    call(
        libc::SYS_openat2,
        "the same; whoever tries it goes on with openat",
    ),
    call_if(
        libc::SYS_mmap,
        2,
        libc::PROT_EXEC as u64,
        libc::PROT_EXEC as u64,
        "new code: a plug-in of the name service is left out",
    ),
    call_if(
        libc::SYS_mprotect,
        2,
        libc::PROT_EXEC as u64,
        libc::PROT_EXEC as u64,
        "new code",
    ),
    option(
        libc::IPPROTO_IP,
        libc::IP_HDRINCL,
        "packets in another host's name, by the socket for echo requests",
    ),
    option(libc::IPPROTO_IPV6, libc::IPV6_HDRINCL, "the same"),
    option(
        libc::IPPROTO_RAW,
        libc::IPV6_HDRINCL,
        "the same, by its other name",
    ),
    option(
        libc::IPPROTO_IPV6,
        libc::IPV6_FREEBIND,
        "the same: with it an address need not be this host's",
    ),
    option(libc::IPPROTO_IP, libc::IP_FREEBIND, "the same, of IPv4"),
];

/// Answers these calls with an error instead of making them, in this thread and all that it starts.
pub fn refuse(calls: &[Call], error: i32) -> io::Result<()> {
    apply(
        rules(calls.iter().flat_map(Call::all))?,
        SeccompAction::Allow,
        SeccompAction::Errno(error as u32),
    )
}

/// Allows this thread, and all that it starts, these calls and no others.
pub(crate) fn install(calls: &Calls, reports: bool) -> io::Result<()> {
    let otherwise = match reports {
        true => SeccompAction::Trap,
        false => SeccompAction::KillProcess,
    };
    // The answer to what is refused is the other filter's.
    apply(
        rules(calls.all().chain(REFUSED.iter().flat_map(Call::all)))?,
        otherwise,
        SeccompAction::Allow,
    )
}

/// Before all else: what is newer than the lists is answered with ENOSYS. A call in another form of the
/// processor's, which has a bit above all numbers (x32), is as new.
fn newer_are_unknown() -> [sock_filter; 3] {
    let step = |code: u32, jf: u8, k: u32| sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    [
        // The number is the first of what a filter is given (struct seccomp_data).
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, NEWEST as u32),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
    ]
}

fn apply(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> io::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, on_match, arch).map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    // Its jumps are relative.
    let program = [&newer_are_unknown()[..], &program].concat();
    apply_filter(&program).map_err(io::Error::other)
}

/// For a call that may not be made with all arguments.
fn rule(when: When) -> Result<SeccompRule, BackendError> {
    let conditions = when.conditions().into_iter().map(|(argument, mask, are)| {
        let is = SeccompCmpOp::MaskedEq(mask);
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, is, are)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// A call that is on the list for all arguments is on it whatever else is said of it.
fn rules(calls: impl Iterator<Item = (libc::c_long, When)>) -> io::Result<Rules> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for (number, when) in calls {
        let known = rules.entry(number).or_insert_with(|| Some(Vec::new()));
        if when == When::Always {
            *known = None;
        }
        if let Some(known) = known {
            known.push(rule(when).map_err(io::Error::other)?);
        }
    }
    Ok(rules
        .into_iter()
        .map(|(number, known)| (number, known.unwrap_or_default()))
        .collect())
}
