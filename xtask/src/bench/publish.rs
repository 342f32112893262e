//! Plots, and what stands in docs/benchmarks.md.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::machine;
use super::plot;
use super::rows::{self, Row};
use super::stats::Series;
use crate::tools::root;

/// What the bench writes in docs/benchmarks.md stands between these lines.
const BEGIN: &str = "<!-- measured: written by `cargo xtask bench --publish` -->";
const END: &str = "<!-- end of what was measured -->";

/// One plot: its file, its title, and the series of which rows it shows (those whose labels begin so).
struct Plot {
    file: &'static str,
    title: &'static str,
    rows: &'static [&'static str],
    labels: &'static [&'static str],
}

const PLOTS: [Plot; 11] = [
    Plot {
        file: "sync-10.svg",
        title: "A sync of 10 dirty pages, beside the bare limit",
        rows: &["sync_over_limit_10"],
        labels: &["sync", "bare limit", "capture", "wait"],
    },
    Plot {
        file: "sync-100.svg",
        title: "A sync of 100 dirty pages, beside the bare limit",
        rows: &["sync_over_limit_100"],
        labels: &["sync", "bare limit", "capture", "wait"],
    },
    Plot {
        file: "sync-1000.svg",
        title: "A sync of 1000 dirty pages, beside the bare limit",
        rows: &["sync_over_limit_1000"],
        labels: &["sync", "bare limit", "capture", "wait"],
    },
    Plot {
        file: "pause-100.svg",
        title: "The guest's pause in a pipelined sync of 100 pages",
        rows: &["pause_us_100"],
        labels: &["pause", "sync", "capture"],
    },
    Plot {
        file: "replies-1.svg",
        title: "Replies of the key-value service, 1 connection",
        rows: &["rps_ratio_1", "latency_gain_over_interval_1"],
        labels: &["reply, pipelined, 1", "reply, unprotected", "reply, interval"],
    },
    Plot {
        file: "replies-64.svg",
        title: "Replies of the key-value service, 64 connections",
        rows: &["rps_ratio_64"],
        labels: &["reply"],
    },
    Plot {
        file: "ram-growth.svg",
        title: "A sync of 100 pages, small and large guest",
        rows: &["ram_growth"],
        labels: &[""],
    },
    Plot {
        file: "takeovers.svg",
        title: "Takeovers, beyond the time-out",
        rows: &["takeover_reset_ms", "takeover_silent_ms"],
        labels: &[""],
    },
    Plot {
        file: "lab-replies.svg",
        title: "Redis in emulated hosts, 10 clients, appendfsync everysec",
        rows: &["redis_ratio_10"],
        labels: &["reply"],
    },
    Plot {
        file: "lab-ping.svg",
        title: "Pings to a Linux guest in emulated hosts",
        rows: &["lab_ping_ratio"],
        labels: &["ping"],
    },
    Plot {
        file: "lab-sync.svg",
        title: "A sync of a Linux guest in emulated hosts",
        rows: &["lab_pause_ms"],
        labels: &["sync", "pause", "capture", "wait"],
    },
];

/// Draws what was measured into a directory; returns the plots' names and titles.
pub fn plots(directory: &Path, rows: &[Row]) -> Result<Vec<(&'static str, &'static str)>> {
    let mut drawn = Vec::new();
    for plot in &PLOTS {
        let series = chosen(plot, rows);
        if series.iter().any(|series| !series.percentiles.is_empty()) {
            plot::distributions(&directory.join(plot.file), plot.title, &series)?;
            drawn.push((plot.file, plot.title));
        }
    }
    Ok(drawn)
}

fn chosen<'a>(plot: &Plot, rows: &'a [Row]) -> Vec<&'a Series> {
    let rows = rows.iter().filter(|row| plot.rows.contains(&row.kind.name));
    let series = rows
        .filter_map(|row| row.outcome.as_ref().ok())
        .flat_map(|found| &found.series);
    series
        .filter(|series| plot.labels.iter().any(|label| series.label.starts_with(label)))
        .collect()
}

/// Writes table and plots into docs/.
pub fn into_docs(rows: &[Row], machine: &Value) -> Result<()> {
    let directory = root().join("docs/benchmarks");
    fs::create_dir_all(&directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let drawn = plots(&directory, rows)?;
    let page = root().join("docs/benchmarks.md");
    let text = fs::read_to_string(&page).with_context(|| format!("{} cannot be read", page.display()))?;
    let text = with_measured(&text, &measured(rows, machine, &drawn))?;
    fs::write(&page, text).with_context(|| format!("{} cannot be written", page.display()))
}

fn measured(rows: &[Row], machine: &Value, plots: &[(&str, &str)]) -> String {
    let mut text = format!(
        "Commit {}{}; {}.\n\n{}",
        machine["commit"].as_str().unwrap_or("unknown"),
        if machine["quick"] == true {
            ", `--quick`"
        } else {
            ""
        },
        machine::sentence(machine).trim(),
        rows::markdown(rows)
    );
    for (file, title) in plots {
        text += &format!("\n![{title}](benchmarks/{file})\n");
    }
    text
}

/// Puts what was measured in the place of what was measured before.
fn with_measured(page: &str, measured: &str) -> Result<String> {
    let missing = || format!("docs/benchmarks.md lacks the line `{BEGIN}` or `{END}`");
    let (before, rest) = page.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}\n\n{measured}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::{Found, RowKind, Target};
    use crate::bench::stats::Samples;

    fn row(name: &'static str, labels: &[&str]) -> Row {
        let series = |label: &&str| (1..100).map(f64::from).collect::<Samples>().series(label, "us");
        let kind = RowKind {
            name,
            unit: "us",
            target: Target::Shown,
        };
        let found = Found {
            value: Some(1.0),
            series: labels.iter().map(series).collect(),
            notes: Vec::new(),
        };
        Row {
            kind,
            outcome: Ok(found),
        }
    }

    #[test]
    fn a_plot_shows_the_series_of_its_rows_and_what_was_not_measured_is_not_drawn() {
        let rows = [
            row("pause_us_100", &["pause", "sync", "send"]),
            row("idle_cpu", &[]),
        ];
        let directory = tempfile::tempdir().unwrap();
        let drawn = plots(directory.path(), &rows).unwrap();
        assert_eq!(drawn.len(), 1);
        let text = fs::read_to_string(directory.path().join(drawn[0].0)).unwrap();
        assert!(
            text.contains("pause (median") && !text.contains("send (median"),
            "{text}"
        );
    }

    #[test]
    fn what_was_measured_replaces_what_was_measured_before() {
        let page = format!("# Title\n{BEGIN}\nold\n{END}\nbehind\n");
        let text = with_measured(&page, "new").unwrap();
        assert!(text.starts_with("# Title\n") && text.ends_with("\nbehind\n"));
        assert!(text.contains("new") && !text.contains("old"));
        assert_eq!(with_measured(&text, "new").unwrap(), text);
        assert!(with_measured("nothing", "new").is_err());
        let text = fs::read_to_string(root().join("docs/benchmarks.md")).unwrap();
        with_measured(&text, "new").unwrap();
    }
}
