//! A chart of a run as SVG: times by percentile, and the rate over time, a line for each number of clients.

use std::path::Path;

use plotters::prelude::*;

use crate::Failure;
use crate::arguments::Arguments;
use crate::report::Row;

/// Size of the picture.
const SIZE: (u32, u32) = (960, 900);

/// The percentile that ends the axis: five nines.
const NINES_MAX: f64 = 5.0;

/// Steps of a line.
const STEPS: u32 = 200;

/// Draws to a file.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, rows: &[Row], arguments: &Arguments) -> Result<(), Failure> {
    let mut text = String::new();
    draw_text(&mut text, rows, arguments)
        .map_err(|error| Failure::new(format!("cannot draw the chart: {error}")))?;
    std::fs::write(path, text)
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

fn colour(position: usize) -> RGBAColor {
    Palette99::pick(position).to_rgba()
}

fn label(row: &Row) -> String {
    format!("{} clients: {:.0} per second", row.clients, row.rate())
}

fn draw_text(
    text: &mut String,
    rows: &[Row],
    arguments: &Arguments,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{} on {}", arguments.workload.name(), arguments.target.name());
    let root = root.titled(&title, ("sans-serif", 24))?;
    let (upper, lower) = root.split_vertically(500);
    let slowest = rows.iter().map(|row| row.tally.times().max()).max().unwrap_or(1).max(10) as f64;
    let mut chart = ChartBuilder::on(&upper)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..NINES_MAX, (10.0..slowest * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .x_labels(6)
        .x_label_formatter(&|nines: &f64| format!("{}", 100.0 - 100.0 / 10f64.powf(*nines)))
        .y_desc("microseconds")
        .y_label_formatter(&|time: &f64| format!("{time:.0}"))
        .draw()?;
    for (position, row) in rows.iter().enumerate() {
        let times = row.tally.times();
        let line = (0..=STEPS).map(|step| {
            let nines = NINES_MAX * f64::from(step) / f64::from(STEPS);
            let quantile = 1.0 - 1.0 / 10f64.powf(nines);
            (nines, (times.value_at_quantile(quantile) as f64).max(10.0))
        });
        let colour = colour(position);
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(label(row))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    let seconds = rows.iter().map(|row| row.per_second.len()).max().unwrap_or(1).max(2);
    let fastest = rows.iter().flat_map(|row| &row.per_second).fold(1.0f64, |most, rate| most.max(*rate));
    let mut chart = ChartBuilder::on(&lower)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(1.0..seconds as f64, 0.0..fastest * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("second")
        .y_desc("operations per second")
        .y_label_formatter(&|rate: &f64| format!("{rate:.0}"))
        .draw()?;
    for (position, row) in rows.iter().enumerate() {
        let line = row.per_second.iter().zip(1u32..).map(|(rate, second)| (f64::from(second), *rate));
        chart.draw_series(LineSeries::new(line, colour(position).stroke_width(2)))?;
    }
    root.present()?;
    Ok(())
}
