//! The text format that Prometheus reads, version 0.0.4.

use std::fmt::{Display, Write};

use super::Histogram;

/// A metric: its name, and its description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name, with the unit at its end, and `_total` if it is a counter.
    pub name: &'static str,
    /// How to interpret its values.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Its meaning, in a sentence.
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises, but restarts with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Observations by size.
    Histogram,
}

impl MetricKind {
    /// Its name in the format.
    pub fn name(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        }
    }
}

/// Appends samples to a text, all of a metric together.
pub(super) struct Page<'a> {
    pub out: &'a mut String,
}

/// The samples of one metric.
pub(super) struct Samples<'a> {
    out: &'a mut String,
    metric: &'static Metric,
}

impl Page<'_> {
    /// Writes the `HELP` and `TYPE` lines of a metric; its samples follow.
    pub(super) fn begin(&mut self, metric: &'static Metric) -> Samples<'_> {
        let Metric {
            name, kind, help, ..
        } = metric;
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.out, "# HELP {name} {help}");
        let _ = writeln!(self.out, "# TYPE {name} {}", kind.name());
        Samples {
            out: self.out,
            metric,
        }
    }

    /// A metric without labels.
    pub(super) fn one(&mut self, metric: &'static Metric, value: impl Display) {
        self.begin(metric).add(&[], value);
    }
}

impl Samples<'_> {
    /// Adds a sample; `labels` are the values of [`Metric::labels`].
    pub(super) fn add(&mut self, labels: &[&str], value: impl Display) {
        debug_assert_eq!(labels.len(), self.metric.labels.len());
        self.out.push_str(self.metric.name);
        for (index, (name, value)) in self.metric.labels.iter().zip(labels).enumerate() {
            self.out.push(if index == 0 { '{' } else { ',' });
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(self.out, value);
            self.out.push('"');
        }
        self.out
            .push_str(if labels.is_empty() { " " } else { "} " });
        let _ = writeln!(self.out, "{value}");
    }

    /// Adds a histogram, which has no labels of its own.
    pub(super) fn histogram(&mut self, histogram: &Histogram) {
        let name = self.metric.name;
        for (bound, count) in histogram.cumulated() {
            let _ = match bound {
                Some(bound) => writeln!(
                    self.out,
                    "{name}_bucket{{le=\"{}\"}} {count}",
                    bound.as_secs_f64()
                ),
                None => writeln!(self.out, "{name}_bucket{{le=\"+Inf\"}} {count}"),
            };
        }
        let _ = writeln!(self.out, "{name}_sum {}", histogram.sum().as_secs_f64());
        let _ = writeln!(self.out, "{name}_count {}", histogram.count());
    }
}

/// A label's value may contain anything except these three unescaped.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WITH_LABELS: Metric = Metric {
        name: "a_total",
        kind: MetricKind::Counter,
        labels: &["x", "y"],
        help: "What it is.",
    };
    const TURNS: Metric = Metric {
        name: "b_seconds",
        kind: MetricKind::Histogram,
        labels: &[],
        help: "How long.",
    };

    #[test]
    fn values_of_labels_are_escaped() {
        let mut out = String::new();
        let mut page = Page { out: &mut out };
        let mut samples = page.begin(&WITH_LABELS);
        samples.add(&["a\\b\"c\nd", "é"], 7);
        samples.add(&["", ""], 0.25);
        let wanted = "# HELP a_total What it is.\n# TYPE a_total counter\n\
                      a_total{x=\"a\\\\b\\\"c\\nd\",y=\"é\"} 7\na_total{x=\"\",y=\"\"} 0.25\n";
        assert_eq!(out, wanted);
    }

    #[test]
    fn a_histogram_is_cumulated() {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_micros(3));
        histogram.observe(Duration::from_micros(10));
        histogram.observe(Duration::from_secs(1));
        let mut out = String::new();
        Page { out: &mut out }.begin(&TURNS).histogram(&histogram);
        for line in [
            "b_seconds_bucket{le=\"0.00001\"} 2",
            "b_seconds_bucket{le=\"0.1\"} 2",
            "b_seconds_bucket{le=\"+Inf\"} 3",
            "b_seconds_sum 1.000013",
            "b_seconds_count 3",
        ] {
            assert!(out.lines().any(|l| l == line), "no {line} in\n{out}");
        }
    }
}
