//! A Linux guest with two vCPUs uses both queues of its disk, and discards and zeroes parts of it: both
//! hosts' images are equal afterwards, and what was discarded is zeros there, and holes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Netns;
use serde::Serialize;

use super::PACE;
use crate::demo::emulated::EmulatedPlace;
use crate::demo::ending;
use crate::demo::options::{Cut, Flush, Options as DemoOptions};
use crate::demo::pair::{Disk, Image, Pair, Role, Side};
use crate::demo::run;
use crate::tools::wait_for;
use crate::ui::Ui;

const MIB: u64 = 1 << 20;
/// Behind the guest's file system its disk has so much more.
const TAIL_MIB: u64 = 64;
/// What each vCPU writes there.
const HALF_MIB: u64 = TAIL_MIB / 2;
/// Where in each half something is discarded, or made zeros, in MiB of that half.
const GONE_MIB: Range<u64> = 8..24;
/// What is written again in the middle of that, in MiB of the half.
const AGAIN_MIB: Range<u64> = 14..16;
/// Size of a file in the file system that is deleted before it is trimmed, in MiB.
const FILE_MIB: u64 = 16;
/// What the file system may write meanwhile where nothing was, in MiB: its tables.
const OWN_WRITES_MIB_MAX: u64 = 2;
/// For so long a tap counts what comes from the second queue.
const TAP_S: u64 = 4;
/// Longest wait for what the guest's shell is told to do: random bytes are slow there.
const COMMAND_MAX: Duration = Duration::from_secs(240);
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Seen {
    /// Requests' notifications of the second queue while both vCPUs wrote.
    second_queue_kicks: u64,
    /// What `fstrim` said that it trimmed, in bytes.
    trimmed: u64,
    /// By how many bytes each host's image became sparser.
    freed: Vec<u64>,
}

/// Undergoes it; what was seen.
pub(crate) fn undergo(program: PathBuf, seed: u64, flush: Flush, ui: &Ui) -> Result<Seen> {
    let guest = ui.step("the guest: Debian's kernel and a shell", |_| {
        Ok(lab::guest_image(lab::Service::Shell)?)
    })?;
    let directory = lab::scratch_dir()?;
    let disk = directory.path().join("disk.img");
    fs::copy(&guest.disk, &disk)?;
    let begin = fs::metadata(&disk)?.len();
    File::options()
        .write(true)
        .open(&disk)?
        .set_len(begin + TAIL_MIB * MIB)?;
    let image = Image {
        disk: Disk::CopyOf(disk),
        vcpus: 2,
        disk_queues: 2,
        ..Image::linux(&guest, "")
    };
    let options = DemoOptions {
        flush,
        cut: Cut::None,
        seed: Some(seed),
        vcpus: 2,
        ..DemoOptions::LAB
    };
    let place = ui.step("two emulated hosts boot", |_| {
        EmulatedPlace::new(program, image, &options, false)
    })?;
    let mut pair = ui.step("two hosts", |_| place.pair(seed, None))?;
    let shell = Shell {
        netns: pair.clients(),
        address: pair.service(),
    };
    let mut seen = Seen::default();
    let ended = (|| {
        ui.step("the guest boots on host a", |_| {
            pair.start(Side::A, Role::Primary)?;
            wait_for("an answer of the guest's shell", PACE.boot_max, || {
                pair.check_alive()?;
                Ok(shell.run("true", CONNECT_MAX).ok())
            })
        })?;
        ui.step("host b protects it", |step| {
            pair.start(Side::B, Role::Secondary)?;
            run::protect(&mut pair, Side::A, PACE, step)
        })?;
        ui.step("the disk has two queues", |_| two_queues(&shell))?;
        ui.step("both vCPUs write", |_| {
            seen.second_queue_kicks = both_write(&shell, &pair, begin)?;
            Ok(())
        })?;
        let before = allocated(&place)?;
        ui.step("parts of it are discarded, and made zeros", |_| {
            seen.trimmed = discard(&shell, begin)?;
            Ok(())
        })?;
        let images = ui.step("the VM is stopped", |_| pair.stop(Side::A))?;
        ui.step("its images are looked at", |_| {
            ending::examine(&images, &options)?;
            images.iter().try_for_each(|image| look_at(image, begin))?;
            seen.freed = freed(&before, &allocated(&place)?)?;
            Ok(())
        })
    })();
    if ended.is_err() {
        pair.save_logs();
        crate::demo::keep_logs(seed);
    }
    ended.map(|()| seen)
}

/// By how many bytes each image became sparser; an error if that is too little.
fn freed(before: &[u64], now: &[u64]) -> Result<Vec<u64>> {
    let freed: Vec<u64> = before
        .iter()
        .zip(now)
        .map(|(before, now)| before.saturating_sub(*now))
        .collect();
    // Of the half that was discarded all but what was written again.
    let gone_mib = GONE_MIB.end - GONE_MIB.start - (AGAIN_MIB.end - AGAIN_MIB.start);
    let least = (gone_mib - OWN_WRITES_MIB_MAX) * MIB;
    ensure!(
        freed.iter().all(|freed| *freed >= least),
        "the images became sparser by {freed:?} bytes, not by {least} at least"
    );
    Ok(freed)
}

/// The guest's shell.
struct Shell {
    netns: Netns,
    address: SocketAddr,
}

impl Shell {
    /// Runs a script to its end; what it printed.
    fn run(&self, script: &str, limit: Duration) -> Result<String> {
        let told = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.address, CONNECT_MAX)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(CONNECT_MAX))?;
            stream.write_all(format!("exec 2>&1\nset -e\n{script}\necho the-script-is-done\n").as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = self.netns.run(told)?.context("the guest's shell")?;
        let done = text.trim_end().strip_suffix("the-script-is-done");
        done.map(str::to_owned)
            .with_context(|| format!("the guest could not do `{script}`: {text}"))
    }
}

/// Linux uses as many hardware queues as it has vCPUs, each for one of them.
fn two_queues(shell: &Shell) -> Result<()> {
    let said = shell.run(
        "for queue in /sys/block/vda/mq/*; do echo $(basename $queue) $(cat $queue/cpu_list); done",
        COMMAND_MAX,
    )?;
    ensure!(
        said.trim() == "0 0\n1 1",
        "each of two queues should serve one of two vCPUs: {said}"
    );
    let limits = shell.run(
        "cat /sys/block/vda/queue/discard_max_bytes /sys/block/vda/queue/write_zeroes_max_bytes",
        COMMAND_MAX,
    )?;
    ensure!(
        limits.lines().filter(|line| line.trim() != "0").count() == 2,
        "the disk takes no discards or no zeros: {limits}"
    );
    Ok(())
}

/// Each vCPU writes its half of the tail, past the page cache. How often the second queue was heard of.
fn both_write(shell: &Shell, pair: &dyn Pair, begin: u64) -> Result<u64> {
    let write = |cpu: u64| {
        let (mask, first) = (1 << cpu, begin / MIB + cpu * HALF_MIB);
        format!(
            "taskset {mask} dd if=/dev/urandom of=/dev/vda bs=256k seek={} count={} oflag=direct \
             conv=notrunc &",
            first * 4,
            HALF_MIB * 4
        )
    };
    let script = format!("{}\n{}\nwait", write(0), write(1));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| shell.run(&script, COMMAND_MAX));
        let seconds = TAP_S.to_string();
        let said = pair.order(Side::A, &["tap", "--json", "--seconds", &seconds, "blk0.1"]);
        let wrote = writer.join().expect("the thread of the shell")?;
        let copied = wrote.matches("records out").count();
        ensure!(copied == 2, "both vCPUs should have written: {wrote}");
        kicks(&said?)
    })
}

/// How many events from the guest a tap has counted.
fn kicks(said: &str) -> Result<u64> {
    let kicks = said.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let statistics = line.get("statistics")?;
        (statistics.get("direction")? == "out").then(|| statistics.get("events")?.as_u64())?
    });
    let kicks = kicks.sum();
    ensure!(kicks > 0, "nothing came from the second queue: {said}");
    Ok(kicks)
}

/// Trims the file system after a file is gone, discards in one half of the tail and makes zeros in the other,
/// and writes again in the middle of both, each from the other vCPU. What was trimmed, in bytes.
fn discard(shell: &Shell, begin: u64) -> Result<u64> {
    let said = shell.run(
        &format!(
            "dd if=/dev/urandom of=/file bs=1M count={FILE_MIB}\nsync\nrm /file\nsync\n/bin/fstrim -v /"
        ),
        COMMAND_MAX,
    )?;
    let trimmed = said
        .lines()
        .rfind(|line| line.starts_with("/:"))
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("fstrim should say what it trimmed: {said}"))?;
    ensure!(trimmed >= FILE_MIB * MIB, "only {trimmed} bytes were trimmed");
    let (offset, length) = (GONE_MIB.start * MIB, (GONE_MIB.end - GONE_MIB.start) * MIB);
    let again = |cpu: u64, half: u64| {
        format!(
            "taskset {} dd if=/dev/urandom of=/dev/vda bs=256k seek={} count={} oflag=direct conv=notrunc",
            1 << cpu,
            (begin / MIB + half * HALF_MIB + AGAIN_MIB.start) * 4,
            (AGAIN_MIB.end - AGAIN_MIB.start) * 4,
        )
    };
    let script = format!(
        "taskset 1 /sbin/blkdiscard --force -o {} -l {length} /dev/vda\n{}\n\
         taskset 2 /sbin/blkdiscard --force -z -o {} -l {length} /dev/vda\n{}\n\
         dd if=/dev/vda bs=1M skip={} count={} iflag=direct | tr -d '\\000' | wc -c",
        begin + offset,
        again(1, 0),
        begin + HALF_MIB * MIB + offset,
        again(0, 1),
        begin / MIB + GONE_MIB.start,
        AGAIN_MIB.start - GONE_MIB.start,
    );
    let said = shell.run(&script, COMMAND_MAX)?;
    ensure!(
        said.lines().next_back() == Some("0"),
        "the guest reads something where it discarded: {said}"
    );
    Ok(trimmed)
}

/// What is gone is zeros, and the rest is not.
fn look_at(image: &Path, begin: u64) -> Result<()> {
    let file = File::open(image).with_context(|| format!("{} cannot be opened", image.display()))?;
    let mut bytes = vec![0; MIB as usize];
    for mib in 0..TAIL_MIB {
        file.read_exact_at(&mut bytes, begin + mib * MIB)?;
        let in_half = mib % HALF_MIB;
        let is_gone = GONE_MIB.contains(&in_half) && !AGAIN_MIB.contains(&in_half);
        ensure!(
            bytes.iter().all(|byte| *byte == 0) == is_gone,
            "MiB {mib} behind the file system should be {} in {}",
            if is_gone { "zeros" } else { "what was written" },
            image.display()
        );
    }
    Ok(())
}

/// How many bytes the images of both hosts take on this machine.
fn allocated(place: &EmulatedPlace) -> Result<Vec<u64>> {
    let of = |side| Ok(fs::metadata(place.host(side).own_disk(0))?.blocks() * 512);
    Side::BOTH.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_that_saw_nothing_of_the_guest_is_noticed() {
        let line = |direction: &str, events: u64| {
            let seen = format!(r#""channel":"blk0.1","direction":"{direction}","events":{events}"#);
            format!("{{\"statistics\":{{{seen}}}}}\n")
        };
        assert_eq!(kicks(&(line("in", 7) + &line("out", 5))).unwrap(), 5);
        assert!(kicks(&(line("in", 7) + &line("out", 0))).is_err());
        assert!(kicks("").is_err());
    }
}
