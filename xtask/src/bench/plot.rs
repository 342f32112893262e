//! Plots of distributions, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::stats::Series;

/// Size of a plot, in pixels.
const SIZE: (u32, u32) = (760, 380);
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1b, 0x6c, 0xa8),
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0x27, 0x8f, 0x4c),
    RGBColor(0x8e, 0x44, 0xad),
    RGBColor(0xb9, 0x77, 0x0e),
    RGBColor(0x55, 0x5f, 0x6b),
];

/// Draws which part of the values lies at or below which, one line a series. The values' axis is logarithmic:
/// tails are as interesting as middles. Series without values are left out.
pub fn distributions(path: &Path, title: &str, series: &[&Series]) -> Result<()> {
    let drawn: Vec<&&Series> = series
        .iter()
        .filter(|series| !series.percentiles.is_empty())
        .collect();
    let Some(unit) = drawn.first().map(|series| series.unit) else {
        return Err(anyhow!("there is nothing to draw for `{title}`"));
    };
    let values = || {
        drawn
            .iter()
            .flat_map(|series| series.percentiles.iter().map(|(_, value)| *value))
    };
    // A logarithm wants something above 0.
    let low = values().fold(f64::MAX, f64::min).max(1e-3) * 0.8;
    let high = values().fold(0.0, f64::max).max(low) * 1.25;

    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 17))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(48)
            .build_cartesian_2d((low..high).log_scale(), 0.0..100.0)?;
        chart
            .configure_mesh()
            .x_desc(unit)
            .y_desc("% at or below")
            .x_label_formatter(&|value| super::rows::shown(*value))
            .light_line_style(RGBColor(0xee, 0xee, 0xee))
            .label_style((FONT, 13))
            .draw()?;
        for (series, colour) in drawn.iter().zip(COLOURS.iter().cycle()) {
            let points = series
                .percentiles
                .iter()
                .map(|(percent, value)| (value.max(low), *percent));
            let label = match series.median() {
                Some(median) => format!(
                    "{} (median {} {unit})",
                    series.label.trim(),
                    super::rows::shown(median)
                ),
                None => series.label.clone(),
            };
            let (line, sample) = (colour.stroke_width(2), colour.stroke_width(3));
            chart
                .draw_series(LineSeries::new(points, line))?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], sample));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(0xcc, 0xcc, 0xcc))
            .label_font((FONT, 13))
            .draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("the plot {} cannot be drawn: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stats::Samples;

    /// Names of the elements that are open at the end, or an error for what is not well-formed.
    fn open_elements(text: &str) -> Result<Vec<&str>> {
        let mut open = Vec::new();
        for tag in text.split('<').skip(1) {
            let (tag, behind) = tag
                .split_once('>')
                .ok_or_else(|| anyhow!("`{tag}` does not end"))?;
            if behind.contains('&')
                && !["&lt;", "&gt;", "&amp;", "&quot;"]
                    .iter()
                    .any(|word| behind.contains(word))
            {
                return Err(anyhow!("a bare & in `{behind}`"));
            }
            match tag.strip_prefix('/') {
                Some(name) if open.pop() != Some(name) => return Err(anyhow!("`{name}` was not open")),
                Some(_) => {}
                None if tag.ends_with('/') || tag.starts_with(['?', '!']) => {}
                None => open.extend(tag.split_ascii_whitespace().next()),
            }
        }
        Ok(open)
    }

    #[test]
    fn a_plot_is_a_well_formed_svg_with_a_line_and_a_label_for_each_series() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plot.svg");
        let series = |label: &str, by: f64| {
            (1..500)
                .map(|i| f64::from(i) * by)
                .collect::<Samples>()
                .series(label, "us")
        };
        let (ours, limit, none) = (
            series("a < b & c", 1.0),
            series("limit", 0.5),
            Samples::default().series("n", "us"),
        );
        distributions(&path, "sync <10 pages>", &[&ours, &limit, &none]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"));
        assert_eq!(open_elements(&text).unwrap(), Vec::<&str>::new());
        assert!(
            text.contains("a &lt; b &amp; c") && text.contains("limit (median 125 us)"),
            "{text}"
        );
        assert!(
            distributions(&path, "x", &[&none])
                .unwrap_err()
                .to_string()
                .contains("nothing to draw")
        );
        assert!(
            open_elements("<svg><g></svg>").is_err(),
            "the test must be able to fail"
        );
    }
}
