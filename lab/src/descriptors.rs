//! What a process may open, and what processor time it takes.

use std::fs;
use std::io;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::error::{Context, Result};

/// Clock ticks of /proc in a second.
pub const TICKS_PER_S: u64 = 100;

/// A process's limit of open files, as it was.
pub struct Descriptors {
    pid: u32,
    before: Rlimit,
}

impl Descriptors {
    /// From now on the process can open nothing more.
    pub fn allow_no_more(pid: u32) -> Result<Self> {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).context(|| format!("see what {pid} has open"))?;
        let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
        let before = Self::set(pid, Some(lowest_free(numbers.collect())), None)?;
        Ok(Self { pid, before })
    }

    /// Ends the limit.
    pub fn allow_all(&self) -> Result<()> {
        Self::set(self.pid, self.before.current, self.before.maximum).map(drop)
    }

    fn set(pid: u32, current: Option<u64>, maximum: Option<u64>) -> Result<Rlimit> {
        let maximum = maximum.or(rustix::process::getrlimit(Resource::Nofile).maximum);
        let id = pid.try_into().ok().and_then(Pid::from_raw);
        let set = id
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|id| prlimit(Some(id), Resource::Nofile, Rlimit { current, maximum }));
        set.context(|| format!("limit what {pid} may open"))
    }
}

/// The limit counts numbers, and the lowest that is free is the next one:
/// those below the highest are used up first.
fn lowest_free(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    let free = (0..).zip(&numbers).find(|(index, number)| index != *number);
    free.map_or(numbers.len() as u64, |(index, _)| index)
}

/// The processor time that a process has used, in ticks of 10 ms.
pub fn processor_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path);
    text.and_then(|text| ticks_in(&text).ok_or(io::ErrorKind::InvalidData.into()))
        .context(|| format!("read {path}"))
}

/// utime + stime of a line of /proc/PID/stat: fields 14 and 15, counted behind the program's name, which may
/// hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = behind.split_ascii_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(ticks(14)? + ticks(15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_number_that_is_free_may_lie_between_others() {
        assert_eq!(lowest_free(vec![2, 0, 1]), 3);
        assert_eq!(lowest_free(vec![7, 0, 1, 3]), 2);
        assert_eq!(lowest_free(vec![]), 0);
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "123 (a (b) c) S 1 123 123 0 -1 4194560 1099 0 0 0 7 5 0 0 20 0 6 0 100 1000 200";
        assert_eq!(ticks_in(stat), Some(12));
        assert_eq!(ticks_in("123 (a"), None);
    }
}
