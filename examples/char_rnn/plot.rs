//! The picture: loss and gradient norm of each training, step by step.

use std::error::Error;
use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::History;

/// Draws two panels into an SVG file, on logarithmic axes. What is not finite is left out.
pub(crate) fn save(file: &Path, trainings: &[(&str, &History)], guessing: f32) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (900, 760)).into_drawing_area();
    root.fill(&WHITE)?;
    let panels = root.split_evenly((2, 1));
    let losses: Vec<_> = trainings.iter().map(|(name, history)| (*name, &history.losses[..])).collect();
    let norms: Vec<_> = trainings.iter().map(|(name, history)| (*name, &history.norms[..])).collect();
    panel(&panels[0], "loss", &losses, Some(("guessing", guessing)))?;
    panel(&panels[1], "gradient norm before clipping", &norms, None)?;
    root.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    lines: &[(&str, &[f32])],
    level: Option<(&str, f32)>,
) -> Result<(), Box<dyn Error>> {
    let shown = |y: &f32| y.is_finite() && *y > 0.0;
    let all = lines.iter().flat_map(|(_, ys)| ys.iter().copied()).filter(shown);
    let (low, high) = all.fold((f32::MAX, f32::MIN_POSITIVE), |(low, high), y| (low.min(y), high.max(y)));
    let steps = lines.iter().map(|(_, ys)| ys.len()).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(70)
        .build_cartesian_2d(0..steps, (low / 1.5..high * 1.5).log_scale())?;
    chart.configure_mesh().x_desc("step").y_label_formatter(&|y| format!("{y:.0e}")).draw()?;
    for ((name, ys), color) in lines.iter().zip([BLUE, RED]) {
        let points = ys.iter().copied().enumerate().filter(|(_, y)| shown(y));
        let line = chart.draw_series(LineSeries::new(points, &color))?;
        line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
    }
    if let Some((name, level)) = level {
        let line = DashedLineSeries::new([(0, level), (steps, level)], 6, 4, BLACK.into());
        let line = chart.draw_series(line)?;
        line.label(name).legend(|(x, y)| DashedPathElement::new([(x, y), (x + 20, y)], 6, 4, BLACK));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    Ok(())
}
