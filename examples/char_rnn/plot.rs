//! Plots the loss and the gradient norm of each run over the steps, and clipping's share of a step's time.

use std::error::Error;
use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::History;
use super::timing::Share;

/// Writes an SVG with three panels. Two show the loss and the norm over the steps, on logarithmic axes, and omit points that
/// are not finite and positive. The third has a bar for each share of a step's time.
pub(crate) fn save(
    file: &Path,
    runs: &[(&str, &History)],
    uniform_loss: f32,
    shares: &[(String, Share)],
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (900, 920)).into_drawing_area();
    root.fill(&WHITE)?;
    let (curves, bars) = root.split_vertically(760);
    let panels = curves.split_evenly((2, 1));
    let losses: Vec<_> = runs.iter().map(|(name, history)| (*name, &history.losses[..])).collect();
    let norms: Vec<_> = runs.iter().map(|(name, history)| (*name, &history.norms[..])).collect();
    panel(&panels[0], "loss", &losses, Some(("uniform prediction", uniform_loss)))?;
    panel(&panels[1], "gradient norm before clipping", &norms, None)?;
    bar_panel(&bars, "clipping's share of a step", shares)?;
    root.present()?;
    Ok(())
}

/// Draws a horizontal bar for each share, the first one on top: a bar for the median, a line for the quartiles.
fn bar_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    shares: &[(String, Share)],
) -> Result<(), Box<dyn Error>> {
    let least = shares.iter().map(|(_, share)| 100.0 * share.low).fold(0.0, f64::min);
    let most = shares.iter().map(|(_, share)| 100.0 * share.high).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(70)
        // The labels take almost half of the width.
        .build_cartesian_2d(least..most + 0.9 * (most - least), 0.0..shares.len() as f64)?;
    let format = |percent: &f64| format!("{percent:.0} %");
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_label_formatter(&format).draw()?;
    for ((name, share), y) in shares.iter().zip((0..shares.len()).rev()) {
        let [low, median, high] = [share.low, share.median, share.high].map(|share| 100.0 * share);
        let [bottom, middle, top] = [0.2, 0.5, 0.8].map(|part| y as f64 + part);
        chart.draw_series([Rectangle::new([(0.0, bottom), (median, top)], BLUE.mix(0.6).filled())])?;
        chart.draw_series([PathElement::new([(low, middle), (high, middle)], BLACK)])?;
        let label = format!("{name}: {median:.1} %");
        let at = (high.max(0.0) + 0.02 * most, y as f64 + 0.6);
        chart.draw_series([Text::new(label, at, ("sans-serif", 15))])?;
    }
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    curves: &[(&str, &[f32])],
    baseline: Option<(&str, f32)>,
) -> Result<(), Box<dyn Error>> {
    let is_plotted = |y: &f32| y.is_finite() && *y > 0.0;
    let values = curves.iter().flat_map(|(_, ys)| ys.iter().copied()).filter(is_plotted);
    let (low, high) = values.fold((f32::MAX, f32::MIN_POSITIVE), |(low, high), y| (low.min(y), high.max(y)));
    let steps = curves.iter().map(|(_, ys)| ys.len()).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(70)
        .build_cartesian_2d(0..steps, (low / 1.5..high * 1.5).log_scale())?;
    chart.configure_mesh().x_desc("step").y_label_formatter(&|y| format!("{y:.0e}")).draw()?;
    for ((name, ys), color) in curves.iter().zip([BLUE, RED]) {
        let points = ys.iter().copied().enumerate().filter(|(_, y)| is_plotted(y));
        let line = chart.draw_series(LineSeries::new(points, &color))?;
        line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
    }
    if let Some((name, y)) = baseline {
        let line = DashedLineSeries::new([(0, y), (steps, y)], 6, 4, BLACK.into());
        let line = chart.draw_series(line)?;
        line.label(name).legend(|(x, y)| DashedPathElement::new([(x, y), (x + 20, y)], 6, 4, BLACK));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    Ok(())
}
