//! How `kemari top` looks: a line a VM, below them all that there is to say of the chosen one.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{
    Block, Borders, Cell, Paragraph, Row as TableRow, Sparkline, Table, TableState, Wrap,
};

use super::watch::{Quantiles, Row, Watch};
use crate::control::{DiskState, DiskStatus, Verdict, duration};

/// Lines below which only the list is shown.
const DETAIL_LINES_MIN: u16 = 14;
/// Lines of the curve of the chosen VM, with its title, ...
const CURVE_LINES: u16 = 4;
/// ... and those that the screen must have for it.
const CURVE_LINES_MIN: u16 = 20;
/// Width of the space between two columns.
const SPACE_CHARS: u16 = 2;
/// Width of the curve in a VM's line, if there is room for it.
const SPARK_CHARS: usize = 16;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, watch: &Watch, interval: Duration) {
    let area = frame.area();
    let rows = watch.rows().len() as u16;
    let has_detail = area.height >= DETAIL_LINES_MIN && rows > 0;
    let list_lines = match has_detail {
        // The list takes what it needs, and leaves the detail a half at least.
        true => (rows + 1).min(area.height / 2),
        false => area.height.saturating_sub(2),
    };
    let [head, list, detail, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(list_lines),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(summary(watch), head);
    draw_list(frame, watch, list);
    if let Some(row) = watch
        .chosen()
        .map(|index| &watch.rows()[index])
        .filter(|_| has_detail)
    {
        draw_detail(frame, row, detail, area.height >= CURVE_LINES_MIN);
    }
    let keys = format!(
        "q ends   up, down: another VM   looks every {} s",
        interval.as_secs()
    );
    frame.render_widget(Line::from(keys).dim(), foot);
}

/// How many VMs there are, and how many of them somebody should look at.
fn summary(watch: &Watch) -> Line<'static> {
    let name = "kemari top".bold();
    if let Some(trouble) = &watch.trouble {
        return Line::from(vec![name, "   ".into(), trouble.clone().red()]);
    }
    let rows = watch.rows();
    let said = match (watch.has_looked, rows.len()) {
        (false, _) => "looking".into(),
        (true, 0) => "no VM runs here".into(),
        (true, 1) => "1 VM".into(),
        (true, count) => format!("{count} VMs"),
    };
    let mut spans = vec![name, "   ".into(), Span::from(said)];
    let unready = rows.iter().filter(|row| row.verdict() != Verdict::Ready).count();
    match (rows.len(), unready) {
        (0, _) => {}
        (_, 0) => spans.extend([", ".into(), "all protected".green()]),
        (_, count) => spans.extend([", ".into(), format!("{count} not protected").yellow()]),
    }
    Line::from(spans)
}

/// A column of the list.
struct Column {
    head: &'static str,
    cells: Vec<String>,
    /// Numbers stand at the right.
    is_number: bool,
}

impl Column {
    fn chars(&self) -> u16 {
        let cells = self.cells.iter().map(|cell| cell.chars().count());
        cells.chain([self.head.chars().count()]).max().unwrap_or(0) as u16
    }
}

/// All columns, the more important ones first: what does not fit is left out from the right.
fn columns(rows: &[Row]) -> Vec<Column> {
    let column = |head, is_number, cell: &dyn Fn(&Row) -> String| Column {
        head,
        cells: rows.iter().map(cell).collect(),
        is_number,
    };
    let dash = || "-".to_owned();
    let quantiles =
        |of: Option<Quantiles>| of.map_or_else(dash, |of| format!("{}/{}", of.half_us, of.most_us));
    vec![
        column("VM", false, &|row| row.vm.clone()),
        column("STATE", false, &|row| match &row.status {
            Ok(status) => status.state(),
            Err(_) => "does not answer".to_owned(),
        }),
        column("ROLE", false, &|row| {
            row.status
                .as_ref()
                .map_or_else(|_| dash(), |status| status.role.to_string())
        }),
        column("FOR", true, &|row| {
            row.status
                .as_ref()
                .map_or_else(|_| dash(), |status| duration(status.since_s))
        }),
        column("SYNCS/s", true, &|row| {
            row.pace
                .map_or_else(dash, |pace| format!("{:.0}", pace.syncs_per_s))
        }),
        column("SYNC us 50/99 %", true, &|row| {
            quantiles(row.pace.and_then(|pace| pace.sync_us))
        }),
        column("PAUSE us", true, &|row| {
            quantiles(row.pace.and_then(|pace| pace.pause_us))
        }),
        column("KiB/s", true, &|row| {
            row.pace
                .map_or_else(dash, |pace| format!("{:.0}", pace.wire_bytes_per_s / 1024.0))
        }),
        column("DISKS", false, &|row| {
            row.status
                .as_ref()
                .map_or_else(|_| dash(), |status| disks(&status.disks))
        }),
        column("SYNCS/s, BEFORE", false, &|row| spark(row)),
        column("HOST", false, &|row| {
            row.status
                .as_ref()
                .map_or_else(|_| dash(), |status| status.host.clone())
        }),
    ]
}

/// How many of them are in the worst state that one is in.
fn disks(disks: &[DiskStatus]) -> String {
    let worst = [
        (DiskState::Failed, "failed"),
        (DiskState::Inconsistent, "inconsistent"),
        (DiskState::Unknown, "never copied"),
        (DiskState::Copying, "copying"),
        (DiskState::Alone, "alone"),
    ];
    let count = |state| disks.iter().filter(|disk| disk.state == state).count();
    let found = worst.iter().find(|(state, _)| count(*state) > 0);
    match (disks.len(), found) {
        (0, _) => "none".to_owned(),
        (_, Some((state, word))) => format!("{} {word}", count(*state)),
        (count, None) => format!("{count} good"),
    }
}

/// The last rates as a row of bars.
fn spark(row: &Row) -> String {
    let last = row.rates.iter().skip(row.rates.len().saturating_sub(SPARK_CHARS));
    let most = last.clone().copied().max().unwrap_or(0).max(1);
    let bars = [
        NINE_LEVELS.empty,
        NINE_LEVELS.one_eighth,
        NINE_LEVELS.one_quarter,
        NINE_LEVELS.three_eighths,
        NINE_LEVELS.half,
        NINE_LEVELS.five_eighths,
        NINE_LEVELS.three_quarters,
        NINE_LEVELS.seven_eighths,
        NINE_LEVELS.full,
    ];
    last.map(|rate| bars[(u128::from(*rate) * 8).div_ceil(most.into()) as usize])
        .collect()
}

fn draw_list(frame: &mut Frame<'_>, watch: &Watch, area: Rect) {
    // Behind the last column there is no space.
    let mut left = Some(area.width + SPACE_CHARS);
    let mut columns = columns(watch.rows());
    columns.retain(|column| {
        // A column that does not fit ends the line: what is less important does not take its place.
        left = left.and_then(|left| left.checked_sub(column.chars() + SPACE_CHARS));
        left.is_some()
    });
    let align = |column: &Column, text: &str| match column.is_number {
        true => format!("{text:>width$}", width = usize::from(column.chars())),
        false => text.to_owned(),
    };
    let head = columns
        .iter()
        .map(|column| Cell::from(align(column, column.head)));
    let lines = watch.rows().iter().enumerate().map(|(index, row)| {
        let cells = columns.iter().map(|column| {
            let cell = Cell::from(align(column, &column.cells[index]));
            match column.head {
                "STATE" => cell.style(colour(row.verdict())),
                _ => cell,
            }
        });
        TableRow::new(cells)
    });
    let widths = columns.iter().map(|column| Constraint::Length(column.chars()));
    let table = Table::new(lines, widths)
        .header(TableRow::new(head).style(Style::new().dim()))
        .column_spacing(SPACE_CHARS)
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::default().with_selected(watch.chosen());
    frame.render_stateful_widget(table, area, &mut state);
}

fn colour(verdict: Verdict) -> Color {
    match verdict {
        Verdict::Ready => Color::Green,
        Verdict::NotReady => Color::Yellow,
        Verdict::Doubtful | Verdict::NothingHere => Color::Red,
    }
}

fn draw_detail(frame: &mut Frame<'_>, row: &Row, area: Rect, has_curve: bool) {
    let curve_lines = if has_curve { CURVE_LINES } else { 0 };
    let [curve, words] = Layout::vertical([Constraint::Length(curve_lines), Constraint::Fill(1)]).areas(area);
    let last = row
        .rates
        .iter()
        .skip(row.rates.len().saturating_sub(curve.width.into()));
    let title = match last.clone().max() {
        Some(most) => format!(" {}: syncs a second, at most {most} ", row.vm),
        None => format!(" {} ", row.vm),
    };
    let above = || Block::new().borders(Borders::TOP).title(title.clone());
    frame.render_widget(Sparkline::default().block(above()).data(last), curve);
    let text = match &row.status {
        Ok(status) => status.to_string().lines().skip(1).map(said).collect(),
        Err(error) => Text::from(error.clone()).red(),
    };
    let mut paragraph = Paragraph::new(text).wrap(Wrap { trim: false });
    if !has_curve {
        paragraph = paragraph.block(above());
    }
    frame.render_widget(paragraph, words);
}

/// A line of what `kemari status` says.
fn said(line: &str) -> Line<'static> {
    let is_trouble = ["waits ", "warning "]
        .iter()
        .any(|word| line.trim_start().starts_with(word));
    let line = Line::from(line.to_owned());
    if is_trouble { line.yellow() } else { line }
}
