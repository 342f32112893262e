//! Processes that get no more descriptors, and what they do meanwhile.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// A process's limit of open files, as it was.
pub struct Descriptors {
    pid: u32,
    before: Rlimit,
}

impl Descriptors {
    /// From now on the process can open nothing more.
    pub fn allow_no_more(pid: u32) -> Result<Self> {
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?;
        let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
        // The lowest number that is free is the next one: those below the highest are used up first.
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable();
        let free = (0..).zip(&numbers).find(|(index, number)| index != *number);
        let limit = free.map_or(numbers.len() as u64, |(index, _)| index);
        let before = Self::set(pid, Some(limit), None)?;
        Ok(Self { pid, before })
    }

    /// Ends the limit.
    pub fn allow_all(&self) -> Result<()> {
        Self::set(self.pid, self.before.current, self.before.maximum).map(drop)
    }

    fn set(pid: u32, current: Option<u64>, maximum: Option<u64>) -> Result<Rlimit> {
        let pid = Pid::from_raw(pid.try_into()?).context("a process has an id")?;
        let maximum = maximum.or(rustix::process::getrlimit(Resource::Nofile).maximum);
        Ok(prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum })?)
    }
}

/// The processor time that a process has used, in ticks of 10 ms.
pub fn processor_ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("a name ends")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || -> Result<u64> { Ok(fields.next().context("a number of ticks")?.parse()?) };
    Ok(next()? + next()?)
}
