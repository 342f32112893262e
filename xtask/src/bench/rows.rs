//! The rows of the result: what was measured, against which target.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::stats::Series;

/// What is wanted of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
    /// It is shown, and that is all.
    Shown,
}

impl Target {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Target::AtMost(limit) => value <= limit,
            Target::AtLeast(limit) => value >= limit,
            Target::Shown => true,
        }
    }

    fn number(self) -> Option<f64> {
        match self {
            Target::AtMost(limit) | Target::AtLeast(limit) => Some(limit),
            Target::Shown => None,
        }
    }

    /// As people read it.
    pub fn shown(self) -> String {
        match self {
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
            Target::Shown => "-".into(),
        }
    }
}

/// Which row: its name, unit and target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowKind {
    /// Its name in the result file.
    pub name: &'static str,
    /// Unit of its value.
    pub unit: &'static str,
    /// What is wanted.
    pub target: Target,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The value that is compared with the target.
    pub value: Option<f64>,
    /// Distributions behind it.
    pub series: Vec<Series>,
    /// Absolute values and whatever else belongs beside it: one sentence each.
    pub notes: Vec<String>,
}

impl Found {
    /// Adds a sentence.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds a distribution.
    pub fn with(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }
}

impl From<Option<f64>> for Found {
    fn from(value: Option<f64>) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

/// A row that was measured, or could not be.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub kind: RowKind,
    /// What was found, or the reason why nothing was.
    pub outcome: Result<Found, String>,
}

/// A row of the result file.
#[derive(Serialize)]
struct Line {
    name: &'static str,
    unit: &'static str,
    target: Option<f64>,
    value: Option<f64>,
    met: bool,
    distribution: Value,
}

impl Row {
    /// The value, if there is one.
    pub fn value(&self) -> Option<f64> {
        self.outcome.as_ref().ok().and_then(|found| found.value)
    }

    /// Whether the target is met. What was not measured meets none.
    pub fn met(&self) -> bool {
        self.value()
            .is_some_and(|value| self.kind.target.is_met_by(value))
    }

    /// The row in the result file.
    pub fn to_json(&self) -> Value {
        let distribution = match &self.outcome {
            Ok(found) => json!({ "series": found.series, "notes": found.notes }),
            Err(reason) => json!({ "series": [], "notes": [], "failed": reason }),
        };
        json!(Line {
            name: self.kind.name,
            unit: self.kind.unit,
            target: self.kind.target.number(),
            value: self.value(),
            met: self.met(),
            distribution,
        })
    }

    fn shown_value(&self) -> String {
        match (&self.outcome, self.value()) {
            (_, Some(value)) => shown(value),
            (Ok(_), None) => "nothing".into(),
            (Err(_), None) => "failed".into(),
        }
    }

    fn shown_met(&self) -> &'static str {
        match (self.kind.target, self.met()) {
            (Target::Shown, true) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        }
    }

    fn sentences(&self) -> Vec<String> {
        match &self.outcome {
            Ok(found) => found.notes.clone(),
            Err(reason) => vec![reason.clone()],
        }
    }
}

/// A number with as many digits as say something.
pub fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The whole result file.
pub fn to_json(rows: &[Row], machine: &Value) -> Value {
    let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
    json!({ "rows": rows, "machine": machine })
}

/// A table for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let names = rows.iter().map(|row| row.kind.name.len()).max().unwrap_or(0);
    for row in rows {
        let _ = writeln!(
            text,
            "  {:names$}  {:>9} {:<10} {:>9}  {}",
            row.kind.name,
            row.shown_value(),
            row.kind.unit,
            row.kind.target.shown(),
            row.shown_met(),
        );
        for sentence in row.sentences() {
            let _ = writeln!(text, "  {:names$}    {sentence}", "");
        }
    }
    text
}

/// The same for docs/benchmarks.md.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| row | value | target | | beside it |\n|---|---|---|---|---|\n");
    for row in rows {
        let sentences = row
            .sentences()
            .join("<br>")
            .replace('|', "\\|")
            .replace('\n', " ");
        let _ = writeln!(
            text,
            "| `{}` | {} {} | {} | {} | {sentences} |",
            row.kind.name,
            row.shown_value(),
            row.kind.unit,
            row.kind.target.shown(),
            row.shown_met(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stats::Samples;

    fn row(target: Target, outcome: Result<Found, String>) -> Row {
        let kind = RowKind {
            name: "x_over_y",
            unit: "ratio",
            target,
        };
        Row { kind, outcome }
    }

    #[test]
    fn a_target_is_met_or_missed_and_what_failed_is_missed() {
        let with = |value| Ok(Found::from(Some(value)));
        assert!(row(Target::AtMost(1.2), with(1.2)).met() && !row(Target::AtMost(1.2), with(1.3)).met());
        assert!(row(Target::AtLeast(0.6), with(0.7)).met() && !row(Target::AtLeast(0.6), with(0.5)).met());
        assert!(row(Target::Shown, with(9.0)).met());
        assert!(!row(Target::Shown, Err("no KVM".into())).met());
        assert!(!row(Target::AtMost(1.0), Ok(Found::default())).met());
    }

    #[test]
    fn the_result_file_has_exactly_the_promised_fields() {
        let series = [1.0, 2.0].into_iter().collect::<Samples>().series("reply", "us");
        let good = row(
            Target::AtMost(2.0),
            Ok(Found::from(Some(1.5)).with(series).note("3 us over 2 us")),
        );
        let bad = row(
            Target::AtLeast(1.0),
            Err("this machine has no second core".into()),
        );
        let json = to_json(&[good, bad], &json!({"processor": "x"}));
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), ["machine", "rows"]);
        for row in json["rows"].as_array().unwrap() {
            assert_eq!(
                keys(row),
                ["distribution", "met", "name", "target", "unit", "value"]
            );
        }
        let [good, bad] = [&json["rows"][0], &json["rows"][1]];
        assert_eq!(
            (&good["value"], &good["target"], &good["met"]),
            (&json!(1.5), &json!(2.0), &json!(true))
        );
        assert_eq!(good["distribution"]["series"][0]["count"], 2);
        assert_eq!((&bad["value"], &bad["met"]), (&Value::Null, &json!(false)));
        assert_eq!(bad["distribution"]["failed"], "this machine has no second core");
    }

    #[test]
    fn the_tables_show_a_miss() {
        let rows = [row(
            Target::AtMost(1.0),
            Ok(Found::from(Some(1.25)).note("a | b")),
        )];
        let text = table(&rows);
        assert!(
            text.contains("1.250") && text.contains("MISSED") && text.contains("a | b"),
            "{text}"
        );
        let text = markdown(&rows);
        assert!(
            text.contains("| `x_over_y` | 1.250 ratio | <= 1 | MISSED | a \\| b |"),
            "{text}"
        );
        assert_eq!(
            (shown(0.1234), shown(12.34), shown(1234.5)),
            ("0.123".into(), "12.3".into(), "1234".into())
        );
    }
}
