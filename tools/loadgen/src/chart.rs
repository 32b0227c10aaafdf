//! A report as one SVG file: for each phase throughput over time on the left, latency percentiles on the right.
//!
//! The percentile axis is logarithmic in what is left (each step to the right is ten times rarer), the latency axis in
//! latency: so the tail has as much room as the bulk.

use std::fmt::Write;

use gabion::cli::units::show_size;

use crate::measure::Totals;
use crate::report::{Interval, PhaseReport, RunReport, show_micros, show_mode};

const WIDTH: f64 = 1120.0;
const ROW: f64 = 330.0;
const MIB: f64 = (1u64 << 20) as f64;
const TITLE: f64 = 44.0;
const COLOURS: [&str; 4] = ["#1f6feb", "#d1242f", "#1a7f37", "#8250df"];
/// `log10` of the rarest share that is drawn: p99.99.
const RAREST: f64 = 4.0;
const CURVE_POINTS: u32 = 160;

/// A plot's place on the page, inside its axes.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    /// From shares of the width, left to right, and of the height, bottom to top.
    fn point(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + x.clamp(0.0, 1.0) * self.width, self.top + (1.0 - y.clamp(0.0, 1.0)) * self.height)
    }
}

/// A run's chart.
pub fn draw(report: &RunReport) -> String {
    let height = TITLE + ROW * report.phases.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#1f2328\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, (20.0, 28.0), "start", &format!("loadgen {}, seed {}", report.scenario, report.seed), 18);
    for (index, phase) in report.phases.iter().enumerate() {
        let top = TITLE + ROW * index as f64;
        let title = format!("{}: {}, {} at a time", phase.name, show_mode(phase.mode), phase.workers);
        text(&mut svg, (20.0, top + 18.0), "start", &title, 14);
        throughput(&mut svg, phase, &Frame { left: 80.0, top: top + 50.0, width: 420.0, height: 225.0 });
        percentiles(&mut svg, phase, &Frame { left: 650.0, top: top + 50.0, width: 430.0, height: 225.0 });
    }
    svg + "</svg>\n"
}

fn throughput(svg: &mut String, phase: &PhaseReport, frame: &Frame) {
    let shown = long_enough(&phase.intervals);
    let per_second = |value: fn(&Interval) -> u64| {
        move |interval: &&Interval| value(interval) as f64 / interval.length().as_secs_f64()
    };
    let bytes: Vec<f64> = shown.iter().map(per_second(|interval| interval.bytes)).collect();
    let operations: Vec<f64> = shown.iter().map(per_second(|interval| interval.operations)).collect();
    let (bytes_max, operations_max) = (round_up(max_of(&bytes) / MIB) * MIB, round_up(max_of(&operations)));
    let seconds_max = phase.elapsed.as_secs_f64().max(1e-3);
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        level(svg, frame, share, &format!("{}/s", show_size((bytes_max * share) as u64)));
        let (right, y) = frame.point(1.0, share);
        text(svg, (right + 8.0, y + 4.0), "start", &trimmed(operations_max * share).to_string(), 12);
        let (x, bottom) = frame.point(share, 0.0);
        text(svg, (x, bottom + 18.0), "middle", &format!("{:.1} s", seconds_max * share), 12);
    }
    for (values, max, colour) in [(&bytes, bytes_max, COLOURS[0]), (&operations, operations_max, COLOURS[1])] {
        let points = shown.iter().zip(values).flat_map(|(interval, value)| {
            // A step as long as the interval.
            [interval.began, interval.ended].map(|at| frame.point(at.as_secs_f64() / seconds_max, value / max))
        });
        line(svg, points, colour);
    }
    text(svg, (frame.left, frame.top - 10.0), "start", "throughput", 12);
    legend(svg, frame, &[("bytes, left", COLOURS[0]), ("operations/s, right", COLOURS[1])]);
}

fn percentiles(svg: &mut String, phase: &PhaseReport, frame: &Frame) {
    let kinds: Vec<_> = phase.kinds.iter().filter(|(_, totals)| totals.latency.count() > 0).collect();
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (_, totals) in &kinds {
        low = low.min(micros_log(totals, 0.0));
        high = high.max(micros_log(totals, rarest(totals)));
    }
    let (low, high) = if low.is_finite() { (low.floor(), high.ceil().max(low.floor() + 1.0)) } else { (0.0, 1.0) };
    let decades = (high - low) as u32;
    for decade in 0..=decades {
        let micros = 10f64.powf(low + f64::from(decade));
        level(svg, frame, f64::from(decade) / f64::from(decades), &show_micros(micros as u64));
    }
    for (rarity, label) in [(0.0, "0"), (1.0, "p90"), (2.0, "p99"), (3.0, "p99.9"), (RAREST, "p99.99")] {
        let (x, bottom) = frame.point(rarity / RAREST, 0.0);
        text(svg, (x, bottom + 18.0), "middle", label, 12);
    }
    let mut names = Vec::new();
    for ((kind, totals), colour) in kinds.iter().zip(COLOURS) {
        let points = (0..=CURVE_POINTS).map(|step| {
            let rarity = rarest(totals) * f64::from(step) / f64::from(CURVE_POINTS);
            frame.point(rarity / RAREST, (micros_log(totals, rarity) - low) / (high - low))
        });
        line(svg, points, colour);
        names.push((kind.name(), colour));
    }
    text(svg, (frame.left, frame.top - 10.0), "start", "latency", 12);
    legend(svg, frame, &names);
}

/// `log10` of the latency that all but one of `10^rarity` stay below.
fn micros_log(totals: &Totals, rarity: f64) -> f64 {
    (totals.latency.micros_at(1.0 - 10f64.powf(-rarity)).max(1) as f64).log10()
}

/// Where a curve ends: what is rarer than one of all operations was not measured.
fn rarest(totals: &Totals) -> f64 {
    (totals.latency.count().max(1) as f64).log10().min(RAREST)
}

/// Without the last sliver of an interval, whose rate says nothing.
fn long_enough(intervals: &[Interval]) -> Vec<&Interval> {
    let longest = intervals.iter().map(Interval::length).max().unwrap_or_default();
    intervals.iter().filter(|interval| interval.length() * 4 >= longest).collect()
}

fn max_of(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// To 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-3).log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

/// To four digits, so that no label is longer than its margin.
fn trimmed(value: f64) -> f64 {
    if value >= 100.0 { value.round() } else { (value * 100.0).round() / 100.0 }
}

fn level(svg: &mut String, frame: &Frame, share: f64, label: &str) {
    let ((left, y), (right, _)) = (frame.point(0.0, share), frame.point(1.0, share));
    let _ = writeln!(svg, "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#d0d7de\" fill=\"none\"/>");
    text(svg, (left - 8.0, y + 4.0), "end", label, 12);
}

fn line(svg: &mut String, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let points = points.join(" ");
    let _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>");
}

fn legend(svg: &mut String, frame: &Frame, names: &[(&str, &str)]) {
    for (index, (name, colour)) in names.iter().enumerate() {
        let (x, y) = (frame.left + 110.0 + 130.0 * index as f64, frame.top - 14.0);
        let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"3\" fill=\"{colour}\"/>", y - 1.0);
        text(svg, (x + 20.0, y + 4.0), "start", name, 12);
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, content: &str, size: u32) {
    let content = escaped(content);
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{content}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    /// Every element ends where it should, attributes are quoted, no stray `<` or `&`; the number of elements.
    fn elements(svg: &str) -> usize {
        let (mut open, mut count, mut rest) = (Vec::new(), 0, svg);
        while let Some((before, after)) = rest.split_once('<') {
            assert!(open.last().is_some() || before.trim().is_empty(), "text outside of the root: {before}");
            for entity in before.split('&').skip(1) {
                assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "&{entity}");
            }
            let (tag, next) = after.split_once('>').unwrap();
            assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
            let name = tag.trim_matches('/').split_whitespace().next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                count += 1;
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
            rest = next;
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        count
    }

    #[test]
    fn a_chart_is_well_formed_and_every_number_in_it_finite() {
        let svg = draw(&sample());
        assert!(elements(&svg) > 30);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(
            svg.matches("<polyline").count(),
            4,
            "bytes, operations, latency of the gets and of the put that failed"
        );
    }

    #[test]
    fn a_run_of_which_nothing_was_measured_still_draws() {
        let mut report = sample();
        report.phases.push(PhaseReport { name: "a < b & \"c\"", ..PhaseReport::default() });
        let svg = draw(&report);
        assert!(elements(&svg) > 30);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        report.phases.clear();
        elements(&draw(&report));
    }

    #[test]
    fn the_tail_is_drawn_at_the_right_end() {
        let report = sample();
        let totals = &report.phases[0].kinds[&crate::measure::Kind::Get];
        assert!((10f64.powf(micros_log(totals, 0.0)) - 1000.0).abs() < 2.0, "the fastest");
        assert!((10f64.powf(micros_log(totals, 1.0)) / 900_000.0 - 1.0).abs() < 0.002, "p90");
        assert!((10f64.powf(micros_log(totals, RAREST)) / 1_000_000.0 - 1.0).abs() < 0.002, "p99.99");
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, wanted) in [(0.9, 1.0), (11.0, 20.0), (20.0, 20.0), (230.0, 500.0), (5100.0, 10_000.0)] {
            assert!((round_up(value) - wanted).abs() < 1e-6, "{value}");
        }
    }
}
