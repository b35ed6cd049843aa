//! Pictures: where they go, what they have in common, and the one of `gradclip clip`.

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

/// Of the groups, in turn. Told apart by colour-blind readers as well.
const GROUPS: [RGBColor; 6] = [
    BLUE,
    ORANGE,
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
/// Of what is in no group, beside groups.
const OTHERS: RGBColor = RGBColor(120, 120, 120);
const NOT_FINITE: RGBColor = RGBColor(200, 0, 40);
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(222, 222, 222);
const FAINT_GRID: RGBColor = RGBColor(242, 242, 242);

/// Pixels.
const MARGIN: i32 = 24;
const AXIS_WIDTH: i32 = 640;
/// What norms of 0 and norms that are not finite have beside the axis, which has no place for them.
const STRIP: i32 = 56;
/// Between those and the axis, so that their names keep clear of its numbers.
const GAP: i32 = 36;
const ROW: f64 = 20.0;
/// The rows of a picture, which have less than [`ROW`] each if they are many.
const ROWS: usize = 4200;
/// The least from one name to the next.
const LABEL: usize = 13;
const LEGEND_ROW: i32 = 24;
/// What an average letter is wide, of the height of its font. No font is at hand to ask.
const LETTER: f64 = 0.56;
/// Names are cut to so many columns.
const NAME: usize = 48;
/// More groups are not in the legend.
const IN_LEGEND: usize = 12;
/// Numbers along the axis, at most.
const NUMBERS: i32 = 14;

/// A place for a picture. It is checked before the work whose picture it is.
pub(crate) struct Output(Target);

impl Output {
    /// Fails where writing would, as far as that can be known, or where it would replace one of the files that the same
    /// command reads or writes.
    pub(crate) fn check(path: &Path, others: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let cannot_write = || format!("cannot write {}", text::path(path));
        // Which also keeps it away from gradients, whatever a folder of them holds.
        let is_svg = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
        ensure!(is_svg, "{}: the plot is an SVG, so its name must end in .svg", cannot_write());
        let target = Target::check(path)?;
        let whole = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
        let is_other = others.into_iter().all(|other| whole(path) != whole(other.as_ref()));
        ensure!(is_other, "{}: the command reads or writes another file there", cannot_write());
        Ok(Self(target))
    }

    pub(crate) fn write(self, svg: &str) -> Result<()> {
        self.0.replace(svg.as_bytes())
    }
}

/// Of the library, whose errors borrow what they speak of.
pub(crate) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw the plot: {error}")
}

/// A norm before and after clipping.
struct Line {
    name: String,
    color: RGBColor,
    before: f32,
    after: f32,
    /// That of this norm.
    limit: Option<f32>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// An SVG with a line for the norm of each group and of each tensor, before and after clipping, on a logarithmic axis.
pub(crate) fn norms(report: &Report) -> Result<String> {
    let (totals, tensors) = lines(report);
    let layout = Layout::new(&totals, &tensors, report);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, layout.size()).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let title = "Norms before and after clipping";
        text(&area, title, (MARGIN, MARGIN + 10), TITLE, HPos::Left)?;
        layout.legend(&area)?;
        layout.axis(&area)?;
        for (index, line) in totals.iter().enumerate() {
            layout.line(&area, line, layout.total_y(index), ROW, true)?;
        }
        let every = (tensors.len() * LABEL).div_ceil(ROWS).max(1);
        for (index, line) in tensors.iter().enumerate() {
            layout.line(&area, line, layout.tensor_y(index), layout.row, index.is_multiple_of(every))?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The groups, and the tensors.
fn lines(report: &Report) -> (Vec<Line>, Vec<Line>) {
    let color = |group: usize| color(group, report.groups.len());
    let limit = |group: usize, scope| (report.scope == scope).then_some(report.groups[group].limit);
    let total = |(index, group): (usize, &crate::report::GroupRow)| {
        let [before, after] = group.norms?;
        let name = if report.groups.len() == 1 { "all together".into() } else { group.name(NAME) };
        Some(Line { name, color: color(index), before, after, limit: limit(index, Scope::Group) })
    };
    let tensor = |row: &crate::report::TensorRow| Line {
        name: shortened(&row.tensor.name, NAME),
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
        None if groups > 1 => OTHERS,
        None => BLUE,
        Some(index) => GROUPS[index % GROUPS.len()],
    }
}

/// What goes where, in pixels.
struct Layout {
    legend: Vec<(Mark, String)>,
    /// The right ends of the names.
    names: i32,
    /// The left ends of the strip of zeros, of the axis, of the strip of what is not finite, and where that ends.
    zeros: i32,
    axis: i32,
    not_finite: i32,
    right: i32,
    /// The upper ends of the totals and of the tensors.
    top: i32,
    tensors_top: i32,
    bottom: i32,
    row: f64,
    /// The powers of ten at both ends of the axis.
    decades: (i32, i32),
}

/// What the legend explains.
#[derive(Clone, Copy)]
enum Mark {
    Before,
    After,
    Limit,
    NotFinite,
    Group(RGBColor),
    /// Groups that are left out.
    More,
}

impl Layout {
    fn new(totals: &[Line], tensors: &[Line], report: &Report) -> Self {
        let all = || totals.iter().chain(tensors);
        let values = || all().flat_map(|line| [line.before, line.after]);
        let zeros = values().any(|norm| norm == 0.0);
        let not_finite = values().any(|norm| !norm.is_finite());
        let limits = || all().filter_map(|line| line.limit).filter(|limit| is_on_axis(*limit));
        let on_axis = values().chain(limits()).filter(|norm| is_on_axis(*norm));
        let (low, high) =
            on_axis.fold((f32::INFINITY, 0.0_f32), |(low, high), norm| (norm.min(low), norm.max(high)));
        let decades = if low > high {
            (-1, 1)
        } else {
            let low = whole(low.log10().floor().into());
            (low, whole(high.log10().ceil().into()).max(low + 1))
        };

        let mut legend = vec![(Mark::Before, "before".into()), (Mark::After, "after".into())];
        if limits().next().is_some() {
            legend.push((Mark::Limit, "limit".into()));
        }
        if not_finite {
            legend.push((Mark::NotFinite, "not finite".into()));
        }
        let groups = || report.groups.iter().enumerate().filter(|(_, group)| group.norms.is_some());
        if report.groups.len() > 1 {
            let group = |(index, group): (usize, &crate::report::GroupRow)| {
                (Mark::Group(color(index, report.groups.len())), group.name(NAME))
            };
            legend.extend(groups().take(IN_LEGEND).map(group));
            if let Some(more) = groups().count().checked_sub(IN_LEGEND).filter(|more| *more > 0) {
                legend.push((Mark::More, format!("and {more} more groups")));
            }
        }

        let name = all().map(|line| text_width(&line.name, FONT.1)).max().unwrap_or(0);
        let names = MARGIN + name.max(80);
        let zeros_left = names + 16;
        let axis = zeros_left + if zeros { STRIP + GAP } else { 0 };
        let axis_end = axis + AXIS_WIDTH;
        let not_finite_left = axis_end + if not_finite { GAP } else { 0 };
        let row = (ROWS as f64 / tensors.len().max(1) as f64).min(ROW);
        let mut layout = Self {
            legend,
            names,
            zeros: zeros_left,
            axis,
            not_finite: not_finite_left,
            right: not_finite_left + if not_finite { STRIP } else { 0 },
            top: 0,
            tensors_top: 0,
            bottom: 0,
            row,
            decades,
        };
        let legend_rows = layout.legend_places().last().map_or(0, |&(_, y)| y) + LEGEND_ROW;
        layout.top = legend_rows + 36;
        layout.tensors_top = layout.top + whole(ROW * totals.len() as f64) + 12;
        layout.bottom = layout.tensors_top + whole((row * tensors.len() as f64).ceil()) + 6;
        layout
    }

    fn size(&self) -> (u32, u32) {
        ((self.right + MARGIN + 16).cast_unsigned(), (self.bottom + 60).cast_unsigned())
    }

    fn total_y(&self, index: usize) -> i32 {
        self.top + whole(ROW * (index as f64 + 0.5))
    }

    fn tensor_y(&self, index: usize) -> i32 {
        self.tensors_top + whole(self.row * (index as f64 + 0.5))
    }

    fn x(&self, norm: f32) -> i32 {
        if !norm.is_finite() {
            self.not_finite + STRIP / 2
        } else if norm == 0.0 {
            self.zeros + STRIP / 2
        } else {
            self.x_of_exponent(f64::from(norm).log10())
        }
    }

    fn x_of_exponent(&self, exponent: f64) -> i32 {
        let (low, high) = (f64::from(self.decades.0), f64::from(self.decades.1));
        self.axis + whole((exponent - low) / (high - low) * f64::from(AXIS_WIDTH))
    }

    fn axis(&self, area: &Area<'_>) -> Result<()> {
        let (low, high) = self.decades;
        let vertical = |x, color: RGBColor| {
            area.draw(&PathElement::new([(x, self.top), (x, self.bottom)], color)).map_err(failed)
        };
        let every = (high - low).div_euclid(NUMBERS) + 1;
        for exponent in low..=high {
            if high - low <= 4 && exponent < high {
                let between = (2..10).map(|digit| f64::from(exponent) + f64::from(digit).log10());
                between.into_iter().try_for_each(|at| vertical(self.x_of_exponent(at), FAINT_GRID))?;
            }
            let x = self.x_of_exponent(exponent.into());
            vertical(x, GRID)?;
            if (exponent - low) % every == 0 {
                self.number(area, &power(exponent), x)?;
            }
        }
        // Shaded, since they are no part of the axis.
        for (left, end, name) in [(self.zeros, self.axis, "0"), (self.not_finite, self.right, "inf, NaN")] {
            if left < end {
                let right = left + STRIP;
                let strip = [(left, self.top), (right, self.bottom)];
                area.draw(&Rectangle::new(strip, FAINT_GRID.filled())).map_err(failed)?;
                self.number(area, name, left.midpoint(right))?;
            }
        }
        let below = (self.axis + AXIS_WIDTH / 2, self.bottom + 40);
        text(area, "norm", below, FONT, HPos::Center)
    }

    /// Above and below, since a picture of many tensors is higher than a screen.
    fn number(&self, area: &Area<'_>, number: &str, x: i32) -> Result<()> {
        text(area, number, (x, self.top - 14), FONT, HPos::Center)?;
        text(area, number, (x, self.bottom + 16), FONT, HPos::Center)
    }

    /// A row of this height.
    fn line(&self, area: &Area<'_>, line: &Line, y: i32, row: f64, named: bool) -> Result<()> {
        let Line { name, color, before, after, limit } = line;
        if named {
            text(area, name, (self.names, y), (FONT.0, 13), HPos::Right)?;
        }
        if let Some(limit) = limit.filter(|limit| is_on_axis(*limit)) {
            mark(area, Mark::Limit, (self.x(limit), y), *color, row)?;
        }
        let ends = [(self.x(*before), y), (self.x(*after), y)];
        if ends[0] != ends[1] {
            let style = color.mix(0.4).stroke_width(if row < 6.0 { 1 } else { 2 });
            area.draw(&PathElement::new(ends, style)).map_err(failed)?;
        }
        for (norm, kind, at) in [(before, Mark::Before, ends[0]), (after, Mark::After, ends[1])] {
            mark(area, if norm.is_finite() { kind } else { Mark::NotFinite }, at, *color, row)?;
        }
        Ok(())
    }

    fn legend(&self, area: &Area<'_>) -> Result<()> {
        for ((kind, name), (x, y)) in self.legend.iter().zip(self.legend_places()) {
            mark(area, *kind, (x + 8, y), OTHERS, ROW)?;
            text(area, name, (x + 24, y), FONT, HPos::Left)?;
        }
        Ok(())
    }

    /// Line by line, from left to right.
    fn legend_places(&self) -> Vec<(i32, i32)> {
        let (mut x, mut y) = (MARGIN, MARGIN + 44);
        let place = |(_, name): &(Mark, String)| {
            let width = 24 + text_width(name, FONT.1) + 24;
            if x > MARGIN && x + width > self.right {
                (x, y) = (MARGIN, y + LEGEND_ROW);
            }
            x += width;
            (x - width, y)
        };
        self.legend.iter().map(place).collect()
    }
}

/// A mark in a row of this height.
fn mark(area: &Area<'_>, mark: Mark, at: (i32, i32), color: RGBColor, row: f64) -> Result<()> {
    let (x, y) = at;
    let radius = whole((row * 0.22).clamp(1.0, 4.0));
    match mark {
        // So large that it shows around the other one, where nothing was clipped.
        Mark::Before => area.draw(&Circle::new(at, radius + if radius > 1 { 2 } else { 1 }, color)),
        Mark::After => area.draw(&Circle::new(at, radius, color.filled())),
        Mark::Limit => {
            let half = whole((row / 2.0).clamp(1.0, 8.0));
            area.draw(&PathElement::new([(x, y - half), (x, y + half)], INK.stroke_width(2)))
        }
        Mark::NotFinite => area.draw(&Cross::new(at, radius + 1, NOT_FINITE.stroke_width(2))),
        Mark::Group(color) => area.draw(&Rectangle::new([(x - 6, y - 6), (x + 6, y + 6)], color.filled())),
        Mark::More => Ok(()),
    }
    .map_err(failed)
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), font: (&'static str, u32), anchor: HPos) -> Result<()> {
    let style = TextStyle::from(font.into_font()).color(&INK).pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(text, at, style)).map_err(failed)
}

/// To whole pixels, or powers of ten.
#[expect(clippy::cast_possible_truncation, reason = "what is drawn is within some thousand pixels")]
fn whole(x: f64) -> i32 {
    x.round() as i32
}

/// Whether a norm has a place on a logarithmic axis.
fn is_on_axis(norm: f32) -> bool {
    norm.is_finite() && norm > 0.0
}

fn text_width(text: &str, height: u32) -> i32 {
    whole(text::width(text) as f64 * f64::from(height) * LETTER)
}

/// A power of ten, as a number along an axis.
fn power(exponent: i32) -> String {
    if (-3..=4).contains(&exponent) { format!("{}", 10_f64.powi(exponent)) } else { format!("1e{exponent}") }
}
