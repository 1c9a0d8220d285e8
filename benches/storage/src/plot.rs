//! The plot of space amplification over time: one line for each store, PNG.

use std::path::Path;
use std::sync::Once;

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::stores::Failure;

/// One line: a name, and points of (overwrites as a multiple of the keys, amplification).
#[derive(Clone, Debug)]
pub struct Line {
    /// As it stands in the legend.
    pub name: String,
    /// The points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Colours that also the colour-blind tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(0, 0, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

fn load_font() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        // The font comes with the program; were it refused, drawing text would fail and say so.
        let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    });
}

/// Draws the lines to a PNG file.
pub fn draw(path: &Path, title: &str, lines: &[Line]) -> Result<(), Failure> {
    load_font();
    let all = || lines.iter().flat_map(|line| &line.points);
    let right = all().map(|point| point.0).fold(1.0, f64::max);
    let top = all().map(|point| point.1).fold(2.0, f64::max) * 1.1;
    let area = BitMapBackend::new(path, (1200, 700)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 24))
        .margin(20)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 18))
        .x_desc("overwrites, as a multiple of the number of keys")
        .y_desc("bytes on disk / live bytes")
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(3);
        let series = chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        series.label(&line.name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 24, y)], style));
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 18))
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK)
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_a_png() {
        let path = std::env::temp_dir().join(format!("krita-plot-{}.png", std::process::id()));
        let points = vec![(0.0, 1.0), (1.0, 1.7), (2.0, 1.6)];
        let lines = [Line { name: "one".into(), points }];
        let drawn = draw(&path, "Title", &lines);
        assert!(drawn.is_ok(), "{drawn:?}");
        let bytes = std::fs::read(&path).expect("it was written");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 5_000, "{} bytes", bytes.len());
        std::fs::remove_file(&path).expect("it goes again");
    }
}
