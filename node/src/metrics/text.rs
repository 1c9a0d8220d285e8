//! The exposition format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use super::sample::{CoreSample, Series};
use super::table::{BUCKETS_US, Id, Kind, Metric};

/// The content type of what [`render`] writes.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics that have lines.
pub(super) fn render(sample: &CoreSample) -> String {
    let mut text = String::with_capacity(32 * 1024);
    for id in Id::ALL {
        let mut series = sample.of(*id).peekable();
        if series.peek().is_none() {
            continue;
        }
        let metric = id.metric();
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string does not fail.
        let _infallible =
            writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", metric.name, metric.help, metric.name);
        for series in series {
            match metric.kind {
                Kind::Counter | Kind::Gauge => line(&mut text, metric, "", series, None, series.value),
                Kind::Histogram => histogram(&mut text, metric, series),
            }
        }
    }
    text
}

fn histogram(text: &mut String, metric: &Metric, series: &Series) {
    let mut count = 0;
    let bounds = BUCKETS_US.iter().map(|bound| (*bound as f64 / 1e6).to_string());
    for (bound, in_bucket) in bounds.chain(["+Inf".to_owned()]).zip(&series.buckets) {
        count += in_bucket;
        line(text, metric, "_bucket", series, Some(&bound), count as f64);
    }
    line(text, metric, "_sum", series, None, series.value);
    line(text, metric, "_count", series, None, count as f64);
}

fn line(text: &mut String, metric: &Metric, suffix: &str, series: &Series, bound: Option<&str>, value: f64) {
    text.push_str(metric.name);
    text.push_str(suffix);
    let labels = metric.labels.iter().copied().zip(series.labels.iter().map(String::as_str));
    let mut separator = '{';
    for (label, value) in labels.chain(bound.map(|bound| ("le", bound))) {
        text.push(separator);
        text.push_str(label);
        text.push_str("=\"");
        escape(text, value);
        text.push('"');
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    let _infallible = writeln!(text, " {value}");
}

/// Appends a label's value: backslashes, quotes and line feeds would end it.
fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Times;
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_look_as_prometheus_reads_them() {
        let times = Times::new();
        times.record(Duration::from_micros(60));
        times.record(Duration::from_secs(30));
        let mut sample = CoreSample::default();
        sample.add(Id::BuildInfo, &["a\"b\\c\nd"], 1);
        sample.add_times(Id::RequestTimes, &["put"], &times);
        sample.add_fraction(Id::Uptime, &[], 1.5);
        let text = render(&sample);
        for line in [
            "# TYPE krita_request_duration_seconds histogram\n",
            "krita_request_duration_seconds_bucket{operation=\"put\",le=\"0.00005\"} 0\n",
            "krita_request_duration_seconds_bucket{operation=\"put\",le=\"0.0001\"} 1\n",
            "krita_request_duration_seconds_bucket{operation=\"put\",le=\"10\"} 1\n",
            "krita_request_duration_seconds_bucket{operation=\"put\",le=\"+Inf\"} 2\n",
            "krita_request_duration_seconds_sum{operation=\"put\"} 30.00006\n",
            "krita_request_duration_seconds_count{operation=\"put\"} 2\n",
            "krita_build_info{version=\"a\\\"b\\\\c\\nd\"} 1\n",
            "krita_uptime_seconds 1.5\n",
        ] {
            assert!(text.contains(line), "{line}not in:\n{text}");
        }
    }
}
