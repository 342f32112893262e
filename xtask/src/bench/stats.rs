//! Samples, and what is kept of them: percentiles, from which distributions are drawn.

use serde::Serialize;

/// The percentiles that are kept of a distribution.
const PERCENTS: [f64; 27] = [
    0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0, 65.0, 70.0, 75.0,
    80.0, 85.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0,
];

/// Measured values of one thing.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds another's values.
    pub fn append(&mut self, other: &mut Samples) {
        self.0.append(&mut other.0);
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which half of the others lie; `None` without values.
    pub fn median(&self) -> Option<f64> {
        self.percentiles(&[50.0]).first().copied()
    }

    /// The values at these percents, by the nearest rank; nothing without values.
    pub fn percentiles(&self, percents: &[f64]) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return Vec::new();
        };
        percents
            .iter()
            .map(|percent| sorted[(percent / 100.0 * last as f64).round() as usize])
            .collect()
    }

    /// What is kept of them.
    pub fn series(&self, label: &str, unit: &'static str) -> Series {
        let percentiles = self.percentiles(&PERCENTS);
        Series {
            label: label.to_owned(),
            unit,
            count: self.len() as u64,
            percentiles: PERCENTS.into_iter().zip(percentiles).collect(),
        }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// One distribution: what part of the values, in percent, lies at or below which value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// What was measured.
    pub label: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// How many values there were.
    pub count: u64,
    /// (percent, value), neither ever falling.
    pub percentiles: Vec<(f64, f64)>,
}

impl Series {
    /// The value at a percent, between two that are kept by a straight line.
    pub fn at(&self, percent: f64) -> Option<f64> {
        let above = self.percentiles.iter().position(|(at, _)| *at >= percent)?;
        let (high, value) = self.percentiles[above];
        let Some((low, below)) = above.checked_sub(1).map(|index| self.percentiles[index]) else {
            return Some(value);
        };
        // The first of its percent: what lies below it has a lower one.
        let share = (percent - low) / (high - low);
        Some(below + share * (value - below))
    }

    /// The value at 50 %.
    pub fn median(&self) -> Option<f64> {
        self.at(50.0)
    }
}

/// The ratio of two medians that were measured in turn.
pub fn ratio(of: Option<f64>, over: Option<f64>) -> Option<f64> {
    of.zip(over)
        .map(|(of, over)| of / over)
        .filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let samples: Samples = (0..=100).rev().map(f64::from).collect();
        assert_eq!(
            samples.percentiles(&[0.0, 50.0, 99.0, 100.0]),
            [0.0, 50.0, 99.0, 100.0]
        );
        assert_eq!(samples.median(), Some(50.0));
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!(one.percentiles(&[0.0, 100.0]), [7.0, 7.0]);
        assert_eq!(Samples::default().median(), None);
    }

    #[test]
    fn a_series_keeps_the_shape() {
        let samples: Samples = (1..=1000).map(f64::from).collect();
        let series = samples.series("x", "us");
        assert_eq!((series.count, series.percentiles.len()), (1000, PERCENTS.len()));
        assert!(series.percentiles.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!((series.median().unwrap() - 500.0).abs() <= 1.0);
        assert!((series.at(97.0).unwrap() - 970.0).abs() <= 2.0);
        assert_eq!((series.at(0.0), series.at(100.0)), (Some(1.0), Some(1000.0)));
        let none = Samples::default().series("x", "us");
        assert_eq!((none.count, none.median()), (0, None));
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        assert_eq!(ratio(Some(3.0), Some(2.0)), Some(1.5));
        assert_eq!(ratio(None, Some(2.0)), None);
        assert_eq!(ratio(Some(1.0), Some(0.0)), None);
    }
}
