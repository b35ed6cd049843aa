//! The plot of `gradclip bench`: time and percent of the roofline against size, on the GPU and on the CPU.

use anyhow::{Result, ensure};
use gradclip_measure::ops::Op;
use gradclip_measure::report::{Path, Row, SetReport, duration};
use gradclip_measure::sets::GradientSet;
use gradclip_measure::timing::Workload;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::plot::{BLUE, FONT, ORANGE, TITLE, failed};

const SIZE: (u32, u32) = (960, 960);
const GPU: RGBColor = BLUE;
const CPU: RGBColor = ORANGE;
/// The error for a selection without points.
pub(crate) const NOTHING: &str =
    "there is nothing to plot: a plot needs `clip exceeded` of a single f32 tensor";

/// A series of points: log2 of the elements, and the value.
struct Series {
    name: String,
    color: RGBColor,
    /// Drawn as a thin line.
    minor: bool,
    points: Vec<(f64, f64)>,
}

/// Draws the measured single f32 tensors as an SVG.
pub(crate) fn svg(all: &[SetReport]) -> Result<String> {
    let times = [
        series(all, "CPU, wall time", Path::Cpu, Op::Exceeded, false, |row| row.seconds().log10()),
        series(all, "GPU, GPU clock", Path::Gpu, Op::Exceeded, false, |row| row.seconds().log10()),
        series(all, "GPU, wall time", Path::Gpu, Op::Exceeded, true, |row| row.timing.wall.median.log10()),
    ];
    let percents = [
        series(all, "CPU, clip exceeded", Path::Cpu, Op::Exceeded, false, Row::percent_of_roofline),
        series(all, "CPU, norm", Path::Cpu, Op::Norm, true, Row::percent_of_roofline),
        series(all, "GPU, clip exceeded", Path::Gpu, Op::Exceeded, false, Row::percent_of_roofline),
        series(all, "GPU, norm", Path::Gpu, Op::Norm, true, Row::percent_of_roofline),
    ];
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let (upper, lower) = area.split_vertically(SIZE.1 / 2);
        chart(&upper, "Time of an exceeded clip", &times, SeriesLabelPosition::UpperLeft, &|y| {
            duration(10_f64.powf(*y))
        })?;
        chart(&lower, "Percent of the roofline", &percents, SeriesLabelPosition::LowerRight, &|y| {
            format!("{y:.0} %")
        })?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn series(
    all: &[SetReport],
    name: &str,
    path: Path,
    op: Op,
    minor: bool,
    value: impl Fn(&Row) -> f64,
) -> Series {
    let layout = if path == Path::Gpu { "arena" } else { "slices" };
    let row = |set_report: &'_ SetReport| {
        let row = set_report.find(path, layout, Workload::Op(op))?;
        Some(((set_report.set.elements() as f64).log2(), value(row)))
    };
    let singles = all.iter().filter(|set_report| is_single(&set_report.set));
    let color = if path == Path::Gpu { GPU } else { CPU };
    Series { name: name.into(), color, minor, points: singles.filter_map(row).collect() }
}

/// Whether the set is a single, uncached f32 tensor, which is a point of the plot.
pub(crate) fn is_single(set: &GradientSet) -> bool {
    set.lens.len() == 1 && set.model_tensors == 1 && !set.cached && set.dtype == gradclip::DType::F32
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    series: &[Series],
    legend: SeriesLabelPosition,
    y_label: &dyn Fn(&f64) -> String,
) -> Result<()> {
    let points = || series.iter().flat_map(|series| &series.points);
    ensure!(points().next().is_some(), NOTHING);
    let [x, y] = [range(points().map(|point| point.0)), range(points().map(|point| point.1))];
    let y = if y.end > 20.0 { 0.0..y.end.max(105.0) } else { y };
    let mut chart = ChartBuilder::on(area)
        .caption(title, TITLE)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("elements (f32)")
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("2^{x}") } else { String::new() })
        .y_label_formatter(&y_label)
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()
        .map_err(failed)?;
    for Series { name, color, minor, points } in series.iter().filter(|series| !series.points.is_empty()) {
        let style = color.mix(if *minor { 0.5 } else { 1.0 }).stroke_width(if *minor { 2 } else { 3 });
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
        chart
            .draw_series(points.iter().map(|&point| Circle::new(point, 3, style.filled())))
            .map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .label_font(FONT)
        .draw()
        .map_err(failed)
}

/// Returns a non-empty range that covers all values.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (x.min(low), x.max(high)));
    low - 0.25..high + 0.25
}
