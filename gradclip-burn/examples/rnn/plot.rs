//! Plots the loss and the gradient norm of each method over all seeds.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::{GUESSING, History, MAX_NORM, Run, mean, spread};

const COLORS: [RGBColor; 3] = [RGBColor(213, 94, 0), RGBColor(0, 114, 178), RGBColor(0, 158, 115)];
/// The number of points per line. Each point is the mean over a window of steps.
const POINTS: usize = 60;

/// Draws two panels into an SVG file. Lines are medians over the seeds; bands are ranges.
pub(crate) fn save(file: &Path, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (900, 800)).into_drawing_area();
    root.fill(&WHITE)?;
    let seeds = runs[0].histories.len();
    let title = "An RNN recalls a number after 29 zeros";
    let subtitle =
        format!("Median and range of {seeds} seeds. Values above the axis and NaN are drawn at the top.");
    let area = root.margin(8, 0, 0, 0).titled(title, ("sans-serif", 22))?;
    let area = area.titled(&subtitle, ("sans-serif", 15))?;
    let panels = area.split_evenly((2, 1));
    let losses = Panel {
        name: "mean squared error",
        axis: 1e-4..1e1,
        level: ("guessing: always 0", GUESSING),
        values: |history| &history.losses,
    };
    let norms = Panel {
        name: "gradient norm before clipping",
        axis: 1e-3..1e4,
        level: ("limit (max_norm)", MAX_NORM),
        values: |history| &history.norms,
    };
    losses.draw(&panels[0], runs)?;
    norms.draw(&panels[1], runs)?;
    root.present()?;
    Ok(())
}

struct Panel {
    name: &'static str,
    axis: Range<f32>,
    /// The dashed line.
    level: (&'static str, f32),
    values: fn(&History) -> &[f32],
}

impl Panel {
    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, runs: &[Run]) -> Result<(), Box<dyn Error>> {
        let steps = runs[0].histories[0].losses.len();
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(25)
            .x_label_area_size(45)
            .y_label_area_size(75)
            .build_cartesian_2d(0..steps, self.axis.clone().log_scale())?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc(self.name)
            .y_label_formatter(&|y| format!("{y}"))
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 17))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (run, color) in runs.iter().zip(COLORS) {
            let points = self.points(run);
            let lowest = points.iter().map(|&(step, [lowest, ..])| (step, lowest));
            let highest = points.iter().rev().map(|&(step, [.., highest])| (step, highest));
            let range: Vec<_> = lowest.chain(highest).collect();
            chart.draw_series([Polygon::new(range, color.mix(0.15))])?;
            let median = points.iter().map(|&(step, [_, median, _])| (step, median));
            chart
                .draw_series(LineSeries::new(median, color.stroke_width(2)))?
                .label(run.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        }
        let (name, level) = self.level;
        chart
            .draw_series(DashedLineSeries::new([(0, level), (steps, level)], 6, 4, BLACK.into()))?
            .label(name)
            .legend(|(x, y)| DashedPathElement::new([(x, y), (x + 20, y)], 6, 4, BLACK));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .label_font(("sans-serif", 15))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        Ok(())
    }

    /// Returns the middle step of each window, and the spread over the seeds of the mean in that window.
    fn points(&self, run: &Run) -> Vec<(usize, [f32; 3])> {
        let steps = run.histories[0].losses.len();
        let window = steps.div_ceil(POINTS);
        (0..steps)
            .step_by(window)
            .map(|start| {
                let end = (start + window).min(steps);
                let means = run.histories.iter().map(|history| mean(&(self.values)(history)[start..end]));
                let shown = means.map(|mean| mean.clamp(self.axis.start, self.axis.end));
                (usize::midpoint(start, end), spread(shown.collect()))
            })
            .collect()
    }
}
