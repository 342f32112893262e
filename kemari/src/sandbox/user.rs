//! The user that a side runs as, where the configuration names one.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;

use anyhow::{Context, bail};
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySets, capabilities, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Longest entry of a user, in bytes.
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Most groups of a user: as many as the kernel allows.
const GROUPS_MAX: usize = 65_536;

/// A user of this host, with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl User {
    /// The user of this name, as the host's user database has it.
    ///
    /// # Errors
    /// If there is none, or it is root.
    pub(super) fn named(name: &str) -> anyhow::Result<Self> {
        let c_name = CString::new(name).context("a user's name has no zero in it")?;
        let Some((uid, gid)) = entry(&c_name).with_context(|| format!("who the user `{name}` is"))? else {
            bail!(
                "there is no user `{name}` on this host: make it (`useradd --system {name}`), or correct \
                 `user`"
            );
        };
        if uid.is_root() {
            bail!("the user `{name}` is root: name another one, or leave `user` out");
        }
        let groups = groups(&c_name, gid);
        let name = name.to_owned();
        Ok(Self {
            name,
            uid,
            gid,
            groups,
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Who owns what is made for it.
    pub(super) fn owner(&self) -> (Uid, Gid) {
        (self.uid, self.gid)
    }

    /// The calling thread, and all that it starts, is this user from here on. It keeps its capabilities.
    ///
    /// # Errors
    /// If it may not become that user.
    pub(crate) fn become_it(&self) -> io::Result<()> {
        // So it was started.
        if geteuid() == self.uid {
            return Ok(());
        }
        set_keep_capabilities(true)?;
        set_thread_groups(&self.groups)?;
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        set_thread_res_uid(self.uid, self.uid, self.uid)?;
        // Those that are kept are to be taken up again.
        let permitted = capabilities(None)?.permitted;
        let sets = CapabilitySets {
            effective: permitted,
            permitted,
            inheritable: permitted & capabilities(None)?.inheritable,
        };
        Ok(set_capabilities(None, sets)?)
    }
}

/// User and group of this name, if there is such a user (getpwnam_r(3)).
fn entry(name: &CStr) -> io::Result<Option<(Uid, Gid)>> {
    let mut text = vec![0; ENTRY_BYTES_MAX];
    let mut found = MaybeUninit::uninit();
    let mut at = std::ptr::null_mut();
    let (bytes, length) = (text.as_mut_ptr(), text.len());
    // SAFETY: the name is terminated, and the rest is room for the entry, its texts and a pointer to it.
    let error = unsafe { libc::getpwnam_r(name.as_ptr(), found.as_mut_ptr(), bytes, length, &raw mut at) };
    match error {
        // It says so in several ways.
        0 | libc::ENOENT | libc::ESRCH if at.is_null() => Ok(None),
        0 => {
            // SAFETY: without an error, and with a pointer to it, the entry was written.
            let found: libc::passwd = unsafe { found.assume_init() };
            Ok(Some((Uid::from_raw(found.pw_uid), Gid::from_raw(found.pw_gid))))
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// All groups of a user (getgrouplist(3)), the first of which is this one.
fn groups(name: &CStr, first: Gid) -> Vec<Gid> {
    let mut count = GROUPS_MAX as libc::c_int;
    let mut found: Vec<libc::gid_t> = vec![0; GROUPS_MAX];
    // SAFETY: the name is terminated, and there is room for as many groups as are said.
    let result =
        unsafe { libc::getgrouplist(name.as_ptr(), first.as_raw(), found.as_mut_ptr(), &raw mut count) };
    match usize::try_from(count) {
        Ok(count) if result >= 0 => found[..count.min(GROUPS_MAX)]
            .iter()
            .map(|group| Gid::from_raw(*group))
            .collect(),
        _ => vec![first],
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::{getegid, getgroups, getuid};

    use super::*;

    #[test]
    fn users_are_found_by_name_and_root_is_none() {
        let nobody = User::named("nobody").expect("every host has it");
        assert!(!nobody.uid.is_root() && nobody.groups.contains(&nobody.gid));
        for (name, why) in [("no-such-user", "useradd"), ("root", "is root"), ("a\0b", "zero")] {
            let error = User::named(name).expect_err(name);
            assert!(error.to_string().contains(why), "{name:?}: {error}");
        }
    }

    #[test]
    fn a_thread_becomes_the_user_alone_and_keeps_its_capabilities() {
        let nobody = User::named("nobody").expect("every host has it");
        let before = capabilities(None).expect("the kernel tells");
        let became = nobody.clone();
        thread::spawn(move || {
            became.become_it().expect("this test runs as root");
            assert_eq!(
                (getuid(), geteuid(), getegid()),
                (became.uid, became.uid, became.gid)
            );
            assert_eq!(getgroups().expect("groups"), became.groups);
            let now = capabilities(None).expect("the kernel tells");
            assert_eq!(
                (now.permitted, now.effective),
                (before.permitted, before.permitted)
            );
            became.become_it().expect("it is that user");
        })
        .join()
        .expect("it does not panic");
        assert!(getuid().is_root());
    }
}
