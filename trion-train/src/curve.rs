//! Loss curves of runs, as SVG.

use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::{BLACK, ChartBuilder, Color, IntoDrawingArea, PathElement, RGBColor, SVGBackend, WHITE};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::trained::METRICS;

const COLORS: [RGBColor; 6] = [
    RGBColor(0x20, 0x6b, 0xa4),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x9e, 0x77),
    RGBColor(0x75, 0x70, 0xb3),
    RGBColor(0xe7, 0x29, 0x8a),
    RGBColor(0x66, 0x66, 0x66),
];
/// Points of a curve: more cannot be seen.
const POINTS: usize = 400;

/// Draws the training losses of runs, each the mean of what lies between two points, by tokens.
///
/// # Errors
/// [`Error::Malformed`] if a run has no metrics, [`Error::Io`] if the picture cannot be written.
pub fn draw(runs: &[PathBuf], to: &Path) -> Result<()> {
    let curves = runs.iter().map(|run| read(run)).collect::<Result<Vec<_>>>()?;
    let all = || curves.iter().flatten();
    let most_tokens = all().map(|point| point.0).fold(0.0, f64::max);
    let lowest = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let highest = curves.iter().filter_map(|curve| curve.get(curve.len() / 20)).map(|point| point.1);
    let highest = highest.fold(lowest, f64::max);
    let room = ((highest - lowest) * 0.05).max(0.01);
    let mut svg = String::new();
    let wrong = |e: &dyn std::fmt::Display| Error::malformed(to, e.to_string());
    {
        let area = SVGBackend::with_string(&mut svg, (860, 480)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| wrong(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most_tokens, lowest - room..highest + room)
            .map_err(|e| wrong(&e))?;
        chart
            .configure_mesh()
            .x_desc("million tokens")
            .y_desc("loss, nats a token")
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| wrong(&e))?;
        for ((curve, run), color) in curves.iter().zip(runs).zip(COLORS.iter().cycle()) {
            let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
            chart
                .draw_series([PathElement::new(curve.clone(), color)])
                .map_err(|e| wrong(&e))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()
            .map_err(|e| wrong(&e))?;
        area.present().map_err(|e| wrong(&e))?;
    }
    crate::files::write_whole(to, |file| std::io::Write::write_all(file, svg.as_bytes()))
}

/// Points (million tokens, loss) of a run.
fn read(run: &Path) -> Result<Vec<(f64, f64)>> {
    let path = run.join(METRICS);
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let points: Vec<_> = lines.filter_map(|v| Some((v["tokens"].as_f64()? / 1e6, v["loss"].as_f64()?))).collect();
    if points.is_empty() {
        return Err(Error::malformed(path, "has no losses"));
    }
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count)
    };
    Ok(points.chunks(points.len().div_ceil(POINTS)).map(mean).collect())
}
