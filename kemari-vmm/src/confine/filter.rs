//! From a list to a filter of the kernel's.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::{Call, Calls, When, call, call_if};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What is answered with ENOSYS instead of done: nobody is harmed by the try.
const REFUSED: &[Call] = &[
    call(
        libc::SYS_clone3,
        "its flags lie in memory, where no filter sees them; the C library goes on with clone",
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
];

/// Has what is only refused refused, in this thread and all that it starts.
pub fn refuse_some() -> io::Result<()> {
    apply(
        rules(REFUSED.iter())?,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    )
}

/// Allows this thread, and all that it starts, these calls and no others.
pub fn install(calls: &Calls, reports: bool) -> io::Result<()> {
    let otherwise = match reports {
        true => SeccompAction::Trap,
        false => SeccompAction::KillProcess,
    };
    apply(rules(calls.all())?, otherwise, SeccompAction::Allow)
}

fn apply(rules: Rules, otherwise: SeccompAction, on_match: SeccompAction) -> io::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, on_match, arch).map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

/// A call that is on the list for all arguments is on it whatever else is said of it.
fn rules<'a>(calls: impl Iterator<Item = &'a Call>) -> io::Result<Rules> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for call in calls {
        let known = rules.entry(call.number).or_insert_with(|| Some(Vec::new()));
        match call.when {
            When::Always => *known = None,
            When::Bits { argument, mask, are } => {
                let is = SeccompCmpOp::MaskedEq(mask);
                let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, is, are);
                let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
                let rule = rule.map_err(io::Error::other)?;
                if let Some(known) = known {
                    known.push(rule);
                }
            }
        }
    }
    Ok(rules
        .into_iter()
        .map(|(number, known)| (number, known.unwrap_or_default()))
        .collect())
}
