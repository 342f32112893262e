//! A tap on a running, protected VM.

use anyhow::{Context, ensure};
use kemari::control::{Direction, TapLine};

use crate::support::{Host, Plan, play};

/// Taps one after the other.
const TAPS: [(&str, &str, Direction); 2] = [
    ("blk0", "out", Direction::Out),
    ("net0.tx", "out", Direction::Out),
];

#[test]
fn a_tap_counts_and_disturbs_nothing() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let before = scene.await_protected(Host::A)?;
        for (channel, word, direction) in TAPS {
            let words = ["tap", channel, "--direction", word, "--seconds", "1", "--json"];
            let acknowledged = clients.acknowledged();
            let tapped = scene.ask(Host::A, &words)?;
            ensure!(tapped.success, "the tap was refused: {}", tapped.text);
            let last = tapped.text.lines().last().context("the tap said nothing")?;
            let TapLine::Statistics(statistics) = serde_json::from_str(last)? else {
                anyhow::bail!("the tap ended without statistics: {last}");
            };
            ensure!(
                statistics.channel == channel && statistics.direction == direction,
                "{statistics:?}"
            );
            ensure!(
                statistics.events > 0 && statistics.seconds >= 1.0,
                "{channel}: {statistics:?}"
            );
            let intervals: u64 = statistics.intervals.iter().map(|bucket| bucket.count).sum();
            ensure!(
                intervals + 1 == statistics.events,
                "{channel}: one interval between two events: {statistics:?}"
            );
            ensure!(
                clients.acknowledged() > acknowledged,
                "the clients stood still under the tap"
            );
        }
        let all = scene.ask(Host::A, &["tap", "--all", "--seconds", "2", "--json"])?;
        ensure!(all.success, "the tap was refused: {}", all.text);
        let all = all.text.lines().map(serde_json::from_str);
        let all: Vec<TapLine> = all.collect::<Result<_, _>>().context("a tap's lines")?;
        for (channel, _, _) in TAPS {
            // A guest's kick of its disk or card is answered, and how fast is known.
            let answered = all.iter().any(|line| {
                matches!(line, TapLine::Statistics(of)
                    if of.channel == channel && of.direction == Direction::In && !of.answers.is_empty())
            });
            ensure!(answered || channel == "net0.tx", "{channel}: {all:?}");
            let kicked = all.iter().any(|line| {
                matches!(line, TapLine::Statistics(of)
                    if of.channel == channel && of.direction == Direction::Out && of.events > 0)
            });
            ensure!(kicked, "{channel}: {all:?}");
        }
        let table = scene.ask(Host::A, &["tap", "--all", "--seconds", "1"])?;
        ensure!(
            table.success && table.text.contains("KICK TO INTERRUPT"),
            "{table:?}"
        );
        let unknown = scene.ask(Host::A, &["tap", "blk7", "--seconds", "1"])?;
        ensure!(
            !unknown.success && unknown.text.contains("there are"),
            "{unknown:?}"
        );
        let nothing_runs = scene.ask(Host::B, &["tap", "blk0", "--seconds", "1"])?;
        ensure!(
            !nothing_runs.success && nothing_runs.text.contains("does not run"),
            "{nothing_runs:?}"
        );
        let after = scene.await_protected(Host::A)?;
        ensure!(after.term == before.term, "the pair parted under the tap");
        clients.finish()
    });
}
