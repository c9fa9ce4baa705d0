//! Charts of results, as SVG.

use std::fmt::Display;
use std::path::Path;

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind};
use plotters::prelude::{
    BLACK, Color, DrawingBackend, IntoDrawingArea, IntoFont, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};
use plotters::style::TextStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Outcome;

/// Numbers of a kind, which have a scale of their own.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// A number.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) is_ours: bool,
}

const OURS: RGBColor = RGBColor(0x20, 0x6b, 0xa4);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb8, 0xc0);
/// Pixels: of a panel, of a bar with the room around it, of the title, of a label, and of a number behind a bar.
const WIDTH: i32 = 440;
const BAR: i32 = 34;
const TITLE: i32 = 40;
const LABEL: i32 = 150;
const NUMBER: i32 = 60;

/// Draws panels beside each other, their bars below each other.
///
/// # Errors
///
/// A file that cannot be written.
pub(crate) fn draw(file: &Path, panels: &[Panel]) -> Outcome {
    let bars = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
    let size = (WIDTH as u32 * panels.len() as u32, (TITLE + BAR * bars as i32 + 10) as u32);
    let wrong = |e: &dyn Display| format!("{}: {e}", file.display());
    let area = SVGBackend::new(file, size).into_drawing_area();
    area.fill(&WHITE).map_err(|e| wrong(&e))?;
    for (panel, area) in panels.iter().zip(area.split_evenly((1, panels.len()))) {
        draw_panel(panel, &area).map_err(|e| wrong(&e))?;
    }
    area.present().map_err(|e| wrong(&e))
}

fn draw_panel<B: DrawingBackend>(
    panel: &Panel,
    area: &DrawingArea<B, Shift>,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let style = |size: i32, horizontal: HPos| {
        TextStyle::from(("sans-serif", size).into_font()).color(&BLACK).pos(Pos::new(horizontal, VPos::Center))
    };
    area.draw(&Text::new(panel.title.clone(), (WIDTH / 2, TITLE / 2), style(16, HPos::Center)))?;
    let most = panel.bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    for (n, bar) in panel.bars.iter().enumerate() {
        let top = TITLE + BAR * n as i32;
        let middle = top + BAR / 2;
        let end = LABEL + (f64::from(WIDTH - LABEL - NUMBER) * bar.value / most) as i32;
        let color = if bar.is_ours { OURS } else { OTHERS };
        area.draw(&Rectangle::new([(LABEL, top + 4), (end, top + BAR - 4)], color.filled()))?;
        area.draw(&Text::new(bar.label.clone(), (LABEL - 8, middle), style(13, HPos::Right)))?;
        area.draw(&Text::new(format!("{:.1}", bar.value), (end + 6, middle), style(13, HPos::Left)))?;
    }
    Ok(())
}
