//! Plots: their output file and style, and the plot of norms of `gradclip clip`.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use gradclip_measure::text::{self, shortened};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::clip_options::Scope;
use crate::file::Target;
use crate::report::Report;

pub(crate) const FONT: (&str, u32) = ("sans-serif", 15);
pub(crate) const TITLE: (&str, u32) = ("sans-serif", 19);
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const ORANGE: RGBColor = RGBColor(213, 94, 0);

/// The colours of the groups, in turn. Colour-blind readers can distinguish them.
const GROUP_COLORS: [RGBColor; 6] = [
    BLUE,
    ORANGE,
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
/// The colour of tensors that match no group, if there are groups.
const OTHERS_COLOR: RGBColor = RGBColor(120, 120, 120);
const NON_FINITE_COLOR: RGBColor = RGBColor(200, 0, 40);
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(222, 222, 222);
const FAINT_GRID: RGBColor = RGBColor(242, 242, 242);

/// The margin, in pixels.
const MARGIN: i32 = 24;
const AXIS_WIDTH: i32 = 640;
/// The width of the strips beside the axis for norms of 0 and for non-finite norms.
const STRIP_WIDTH: i32 = 56;
/// The gap between a strip and the axis, which keeps their labels apart.
const STRIP_GAP: i32 = 36;
/// The height of a row.
const ROW_HEIGHT: f64 = 20.0;
/// The maximum height of all tensor rows. Rows of many tensors are lower than [`ROW_HEIGHT`].
const MAX_ROWS_HEIGHT: usize = 4200;
/// The minimum distance between tensor names.
const MIN_NAME_DISTANCE: usize = 13;
const LEGEND_ROW_HEIGHT: i32 = 24;
/// The average width of a letter relative to the font size. No font metrics are available.
const LETTER_WIDTH: f64 = 0.56;
/// The maximum width of names, in columns.
const MAX_NAME_WIDTH: usize = 48;
/// The maximum number of groups in the legend.
const MAX_LEGEND_GROUPS: usize = 12;
/// The maximum number of axis labels.
const MAX_AXIS_LABELS: i32 = 14;

/// The output file of a plot, checked before any long work.
pub(crate) struct Output(Target);

impl Output {
    /// Checks that the plot can be written and does not replace any of the `others`, which the command reads or writes.
    pub(crate) fn check(path: &Path, others: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let cannot_write = || format!("cannot write {}", text::path(path));
        // The extension also protects gradient files from being replaced.
        let is_svg = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
        ensure!(is_svg, "{}: the plot is an SVG file, so its name must end in .svg", cannot_write());
        let target = Target::check(path)?;
        let resolved = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
        let is_free = others.into_iter().all(|other| resolved(path) != resolved(other.as_ref()));
        ensure!(is_free, "{}: the command already reads or writes this file", cannot_write());
        Ok(Self(target))
    }

    /// Writes the plot.
    pub(crate) fn write(self, svg: &str) -> Result<()> {
        self.0.replace(svg.as_bytes())
    }
}

/// Converts a plotters error, which borrows from the plot.
pub(crate) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw the plot: {error}")
}

/// A row of the plot: a norm before and after clipping.
struct NormRow {
    name: String,
    color: RGBColor,
    before: f32,
    after: f32,
    /// The limit of this norm.
    limit: Option<f32>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws an SVG with the norm of each group and each tensor before and after clipping, on a logarithmic axis.
pub(crate) fn norms(report: &Report) -> Result<String> {
    let (totals, tensors) = norm_rows(report);
    let layout = Layout::new(&totals, &tensors, report);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, layout.size()).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let title = "Norms before and after clipping";
        draw_text(&area, title, (MARGIN, MARGIN + 10), TITLE, HPos::Left)?;
        layout.draw_legend(&area)?;
        layout.draw_axis(&area)?;
        for (index, line) in totals.iter().enumerate() {
            layout.draw_row(&area, line, layout.total_y(index), ROW_HEIGHT, true)?;
        }
        let every = (tensors.len() * MIN_NAME_DISTANCE).div_ceil(MAX_ROWS_HEIGHT).max(1);
        for (index, line) in tensors.iter().enumerate() {
            layout.draw_row(&area, line, layout.tensor_y(index), layout.row, index.is_multiple_of(every))?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Returns the group rows and the tensor rows.
fn norm_rows(report: &Report) -> (Vec<NormRow>, Vec<NormRow>) {
    let color = |group: usize| color(group, report.groups.len());
    let limit = |group: usize, scope| (report.scope == scope).then_some(report.groups[group].limit);
    let total = |(index, group): (usize, &crate::report::GroupRow)| {
        let [before, after] = group.norms?;
        let name = if report.groups.len() == 1 { "total norm".into() } else { group.name(MAX_NAME_WIDTH) };
        Some(NormRow { name, color: color(index), before, after, limit: limit(index, Scope::Group) })
    };
    let tensor = |row: &crate::report::TensorRow| NormRow {
        name: shortened(&row.tensor.name, MAX_NAME_WIDTH),
        color: color(row.group),
        before: row.stats.norm,
        after: row.norm_after.unwrap_or(row.stats.norm),
        limit: limit(row.group, Scope::Tensor),
    };
    let totals = report.groups.iter().enumerate().filter_map(total).collect();
    (totals, report.tensors.iter().map(tensor).collect())
}

fn color(group: usize, groups: usize) -> RGBColor {
    match group.checked_sub(1) {
        None if groups > 1 => OTHERS_COLOR,
        None => BLUE,
        Some(index) => GROUP_COLORS[index % GROUP_COLORS.len()],
    }
}

/// The layout of the plot, in pixels.
struct Layout {
    legend: Vec<(Mark, String)>,
    /// The right edge of the names.
    names: i32,
    /// The left edges of the zero strip, the axis and the non-finite strip, and the right edge of the latter.
    zeros: i32,
    axis: i32,
    non_finite: i32,
    right: i32,
    /// The top edges of the group rows and the tensor rows.
    top: i32,
    tensors_top: i32,
    bottom: i32,
    row: f64,
    /// The exponents at both ends of the axis.
    decades: (i32, i32),
}

/// An entry of the legend.
#[derive(Clone, Copy)]
enum Mark {
    Before,
    After,
    Limit,
    NonFinite,
    Group(RGBColor),
    /// The number of groups that the legend omits.
    More,
}

impl Layout {
    fn new(totals: &[NormRow], tensors: &[NormRow], report: &Report) -> Self {
        let all = || totals.iter().chain(tensors);
        let values = || all().flat_map(|line| [line.before, line.after]);
        let zeros = values().any(|norm| norm == 0.0);
        let non_finite = values().any(|norm| !norm.is_finite());
        let limits = || all().filter_map(|line| line.limit).filter(|limit| is_on_axis(*limit));
        let on_axis = values().chain(limits()).filter(|norm| is_on_axis(*norm));
        let (low, high) =
            on_axis.fold((f32::INFINITY, 0.0_f32), |(low, high), norm| (norm.min(low), norm.max(high)));
        let decades = if low > high {
            (-1, 1)
        } else {
            let low = round(low.log10().floor().into());
            (low, round(high.log10().ceil().into()).max(low + 1))
        };

        let mut legend = vec![(Mark::Before, "before".into()), (Mark::After, "after".into())];
        if limits().next().is_some() {
            legend.push((Mark::Limit, "limit".into()));
        }
        if non_finite {
            legend.push((Mark::NonFinite, "non-finite".into()));
        }
        let groups = || report.groups.iter().enumerate().filter(|(_, group)| group.norms.is_some());
        if report.groups.len() > 1 {
            let group = |(index, group): (usize, &crate::report::GroupRow)| {
                (Mark::Group(color(index, report.groups.len())), group.name(MAX_NAME_WIDTH))
            };
            legend.extend(groups().take(MAX_LEGEND_GROUPS).map(group));
            if let Some(more) = groups().count().checked_sub(MAX_LEGEND_GROUPS).filter(|more| *more > 0) {
                legend.push((Mark::More, format!("and {more} more groups")));
            }
        }

        let name = all().map(|line| text_width(&line.name, FONT.1)).max().unwrap_or(0);
        let names = MARGIN + name.max(80);
        let zeros_left = names + 16;
        let axis = zeros_left + if zeros { STRIP_WIDTH + STRIP_GAP } else { 0 };
        let axis_end = axis + AXIS_WIDTH;
        let non_finite_left = axis_end + if non_finite { STRIP_GAP } else { 0 };
        let row = (MAX_ROWS_HEIGHT as f64 / tensors.len().max(1) as f64).min(ROW_HEIGHT);
        let mut layout = Self {
            legend,
            names,
            zeros: zeros_left,
            axis,
            non_finite: non_finite_left,
            right: non_finite_left + if non_finite { STRIP_WIDTH } else { 0 },
            top: 0,
            tensors_top: 0,
            bottom: 0,
            row,
            decades,
        };
        let legend_rows = layout.legend_places().last().map_or(0, |&(_, y)| y) + LEGEND_ROW_HEIGHT;
        layout.top = legend_rows + 36;
        layout.tensors_top = layout.top + round(ROW_HEIGHT * totals.len() as f64) + 12;
        layout.bottom = layout.tensors_top + round((row * tensors.len() as f64).ceil()) + 6;
        layout
    }

    fn size(&self) -> (u32, u32) {
        ((self.right + MARGIN + 16).cast_unsigned(), (self.bottom + 60).cast_unsigned())
    }

    fn total_y(&self, index: usize) -> i32 {
        self.top + round(ROW_HEIGHT * (index as f64 + 0.5))
    }

    fn tensor_y(&self, index: usize) -> i32 {
        self.tensors_top + round(self.row * (index as f64 + 0.5))
    }

    fn x(&self, norm: f32) -> i32 {
        if !norm.is_finite() {
            self.non_finite + STRIP_WIDTH / 2
        } else if norm == 0.0 {
            self.zeros + STRIP_WIDTH / 2
        } else {
            self.x_of_exponent(f64::from(norm).log10())
        }
    }

    fn x_of_exponent(&self, exponent: f64) -> i32 {
        let (low, high) = (f64::from(self.decades.0), f64::from(self.decades.1));
        self.axis + round((exponent - low) / (high - low) * f64::from(AXIS_WIDTH))
    }

    fn draw_axis(&self, area: &Area<'_>) -> Result<()> {
        let (low, high) = self.decades;
        let vertical = |x, color: RGBColor| {
            area.draw(&PathElement::new([(x, self.top), (x, self.bottom)], color)).map_err(failed)
        };
        let every = (high - low).div_euclid(MAX_AXIS_LABELS) + 1;
        for exponent in low..=high {
            if high - low <= 4 && exponent < high {
                let between = (2..10).map(|digit| f64::from(exponent) + f64::from(digit).log10());
                between.into_iter().try_for_each(|at| vertical(self.x_of_exponent(at), FAINT_GRID))?;
            }
            let x = self.x_of_exponent(exponent.into());
            vertical(x, GRID)?;
            if (exponent - low) % every == 0 {
                self.axis_label(area, &power(exponent), x)?;
            }
        }
        // The strips are shaded to set them apart from the axis.
        for (left, end, name) in [(self.zeros, self.axis, "0"), (self.non_finite, self.right, "inf, NaN")] {
            if left < end {
                let right = left + STRIP_WIDTH;
                let strip = [(left, self.top), (right, self.bottom)];
                area.draw(&Rectangle::new(strip, FAINT_GRID.filled())).map_err(failed)?;
                self.axis_label(area, name, left.midpoint(right))?;
            }
        }
        let below = (self.axis + AXIS_WIDTH / 2, self.bottom + 40);
        draw_text(area, "norm", below, FONT, HPos::Center)
    }

    /// Draws an axis label above and below the rows: a plot of many tensors is taller than a screen.
    fn axis_label(&self, area: &Area<'_>, number: &str, x: i32) -> Result<()> {
        draw_text(area, number, (x, self.top - 14), FONT, HPos::Center)?;
        draw_text(area, number, (x, self.bottom + 16), FONT, HPos::Center)
    }

    /// Draws a row of height `row`.
    fn draw_row(&self, area: &Area<'_>, line: &NormRow, y: i32, row: f64, named: bool) -> Result<()> {
        let NormRow { name, color, before, after, limit } = line;
        if named {
            draw_text(area, name, (self.names, y), (FONT.0, 13), HPos::Right)?;
        }
        if let Some(limit) = limit.filter(|limit| is_on_axis(*limit)) {
            draw_mark(area, Mark::Limit, (self.x(limit), y), *color, row)?;
        }
        let ends = [(self.x(*before), y), (self.x(*after), y)];
        if ends[0] != ends[1] {
            let style = color.mix(0.4).stroke_width(if row < 6.0 { 1 } else { 2 });
            area.draw(&PathElement::new(ends, style)).map_err(failed)?;
        }
        for (norm, kind, at) in [(before, Mark::Before, ends[0]), (after, Mark::After, ends[1])] {
            draw_mark(area, if norm.is_finite() { kind } else { Mark::NonFinite }, at, *color, row)?;
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>) -> Result<()> {
        for ((kind, name), (x, y)) in self.legend.iter().zip(self.legend_places()) {
            draw_mark(area, *kind, (x + 8, y), OTHERS_COLOR, ROW_HEIGHT)?;
            draw_text(area, name, (x + 24, y), FONT, HPos::Left)?;
        }
        Ok(())
    }

    /// Returns the positions of the legend's entries, wrapped into lines.
    fn legend_places(&self) -> Vec<(i32, i32)> {
        let (mut x, mut y) = (MARGIN, MARGIN + 44);
        let place = |(_, name): &(Mark, String)| {
            let width = 24 + text_width(name, FONT.1) + 24;
            if x > MARGIN && x + width > self.right {
                (x, y) = (MARGIN, y + LEGEND_ROW_HEIGHT);
            }
            x += width;
            (x - width, y)
        };
        self.legend.iter().map(place).collect()
    }
}

/// Draws a mark in a row of height `row`.
fn draw_mark(area: &Area<'_>, mark: Mark, at: (i32, i32), color: RGBColor, row: f64) -> Result<()> {
    let (x, y) = at;
    let radius = round((row * 0.22).clamp(1.0, 4.0));
    match mark {
        // Larger than the mark after clipping, so that both show if nothing was clipped.
        Mark::Before => area.draw(&Circle::new(at, radius + if radius > 1 { 2 } else { 1 }, color)),
        Mark::After => area.draw(&Circle::new(at, radius, color.filled())),
        Mark::Limit => {
            let half = round((row / 2.0).clamp(1.0, 8.0));
            area.draw(&PathElement::new([(x, y - half), (x, y + half)], INK.stroke_width(2)))
        }
        Mark::NonFinite => area.draw(&Cross::new(at, radius + 1, NON_FINITE_COLOR.stroke_width(2))),
        Mark::Group(color) => area.draw(&Rectangle::new([(x - 6, y - 6), (x + 6, y + 6)], color.filled())),
        Mark::More => Ok(()),
    }
    .map_err(failed)
}

fn draw_text(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    font: (&'static str, u32),
    anchor: HPos,
) -> Result<()> {
    let style = TextStyle::from(font.into_font()).color(&INK).pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(text, at, style)).map_err(failed)
}

/// Rounds to whole pixels or exponents.
#[expect(clippy::cast_possible_truncation, reason = "coordinates are at most a few thousand pixels")]
fn round(x: f64) -> i32 {
    x.round() as i32
}

/// Whether a norm can be drawn on a logarithmic axis.
fn is_on_axis(norm: f32) -> bool {
    norm.is_finite() && norm > 0.0
}

/// Returns the approximate width of text in pixels.
fn text_width(text: &str, height: u32) -> i32 {
    round(text::width(text) as f64 * f64::from(height) * LETTER_WIDTH)
}

/// Formats a power of ten as an axis label.
fn power(exponent: i32) -> String {
    if (-3..=4).contains(&exponent) { format!("{}", 10_f64.powi(exponent)) } else { format!("1e{exponent}") }
}
