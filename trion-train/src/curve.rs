//! Loss curves of runs, and losses by size, as SVG.

use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, IntoDrawingArea, PathElement, RGBColor, SVGBackend, WHITE,
};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::layout::Entry;
use crate::trained::{METRICS, Trained};

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
    let highest = curves.iter().filter_map(|curve| curve.get(curve.len() / 20)).map(|point| point.1);
    let highest = highest.fold(0.0, f64::max);
    let names = runs.iter().map(|run| run.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let lines = names.zip(curves).map(|(name, points)| Line { name, points, dots: false });
    let lines: Vec<_> = lines.collect();
    picture(&lines, ["million tokens", "loss, nats a token"], |tokens| format!("{tokens}"), Some(highest), to)
}

/// Draws the last measurement of runs, in bits a byte, by the parameters of their models on a logarithmic axis: a line for
/// ternary models, and one for their float twins.
///
/// # Errors
/// As [`draw`], and [`Error::Malformed`] if a run was never measured.
pub fn draw_sizes(runs: &[PathBuf], to: &Path) -> Result<()> {
    let mut lines = ["ternary", "float"].map(|name| Line { name: name.to_owned(), points: Vec::new(), dots: true });
    for run in runs {
        let trained = Trained::described(run)?;
        let parameters = trained.entries().iter().map(Entry::count).sum::<usize>();
        let metrics = metrics(run)?;
        let measured = metrics.iter().rev().find_map(|line| line["evaluation"]["bits_per_byte"].as_f64());
        let bits = measured.ok_or_else(|| Error::malformed(run.join(METRICS), "has no measurement of other text"))?;
        lines[usize::from(!trained.recipe.ternary)].points.push(((parameters as f64 / 1e6).log2(), bits));
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let label = |power: &f64| format!("{:.1}", power.exp2());
    picture(&lines, ["million parameters", "bits a byte of other text"], label, None, to)
}

/// What a picture shows by one colour.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    /// Whether each point is marked.
    dots: bool,
}

/// Draws lines, up to `highest` or to the highest point. `label` says how numbers are written below.
fn picture(
    lines: &[Line],
    [x, y]: [&str; 2],
    label: fn(&f64) -> String,
    highest: Option<f64>,
    to: &Path,
) -> Result<()> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    let high = highest.map_or(high, |highest| highest.max(low));
    let (side, room) = (((right - left) * 0.02).max(0.01), ((high - low) * 0.05).max(0.01));
    let mut svg = String::new();
    let wrong = |e: &dyn std::fmt::Display| Error::malformed(to, e.to_string());
    {
        let area = SVGBackend::with_string(&mut svg, (860, 480)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| wrong(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(left - side..right + side, low - room..high + room)
            .map_err(|e| wrong(&e))?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| wrong(&e))?;
        for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
            chart
                .draw_series([PathElement::new(line.points.clone(), color)])
                .map_err(|e| wrong(&e))?
                .label(line.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
            if line.dots {
                let dots = line.points.iter().map(|point| Circle::new(*point, 4, color.filled()));
                chart.draw_series(dots).map_err(|e| wrong(&e))?;
            }
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

/// The lines of a run's metrics.
fn metrics(run: &Path) -> Result<Vec<Value>> {
    let path = run.join(METRICS);
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Points (million tokens, loss) of a run.
fn read(run: &Path) -> Result<Vec<(f64, f64)>> {
    let metrics = metrics(run)?;
    let points = metrics.iter().filter_map(|v| Some((v["tokens"].as_f64()? / 1e6, v["loss"].as_f64()?)));
    let points: Vec<_> = points.collect();
    if points.is_empty() {
        return Err(Error::malformed(run.join(METRICS), "has no losses"));
    }
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count)
    };
    Ok(points.chunks(points.len().div_ceil(POINTS)).map(mean).collect())
}
