//! A benchmark's figures as text.

use std::io::Write;

use super::stages::{Spread, StageTable};
use super::{BenchError, Figures, milliseconds};
use crate::inference::session::SegmentReport;

pub(super) fn print(figures: &Figures, out: &mut dyn Write) -> Result<(), BenchError> {
    writeln!(out, "{}: {} runs after load in {} ms", figures.model, figures.runs, figures.load_ms)?;
    writeln!(
        out,
        "min {} ms, p50 {} ms, p90 {} ms, p99 {} ms; peak RSS {} MiB",
        figures.min_ms, figures.p50_ms, figures.p90_ms, figures.p99_ms, figures.peak_rss_mib
    )?;
    for segment in &figures.segments {
        let (delegate, nodes, macs) = (&segment.delegate, segment.nodes, segment.macs);
        writeln!(out, "{delegate}: {nodes} nodes, {:.1} MMAC", macs as f64 / 1e6)?;
    }
    Ok(())
}

pub(super) fn print_stages(
    source: &str,
    table: &StageTable,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    writeln!(
        out,
        "\n{source}, {} frames {:>19} {:>9} {:>9}",
        table.frames, "min µs", "p50 µs", "p99 µs"
    )?;
    let rows: [(&str, Spread); 7] = [
        ("capture hand-over", table.capture),
        ("preprocess", table.preprocess),
        ("inference", table.inference),
        ("postprocess", table.postprocess),
        ("JSON", table.json),
        ("hand-over to MQTT", table.mqtt),
        ("all but inference", table.not_inference),
    ];
    for (stage, spread) in rows {
        let Spread { min_us, p50_us, p99_us } = spread;
        writeln!(out, "  {stage:<31} {min_us:>9} {p50_us:>9} {p99_us:>9}")?;
    }
    Ok(())
}

pub(super) fn print_segments(
    report: &[SegmentReport],
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    writeln!(
        out,
        "{:>4}  {:<10} {:>6} {:>10} {:>10}",
        "#", "delegate", "nodes", "MMAC", "last ms"
    )?;
    for (place, segment) in report.iter().enumerate() {
        let (macs, time) = (segment.macs as f64 / 1e6, milliseconds(segment.last_run));
        let nodes = segment.nodes.len();
        writeln!(out, "{place:>4}  {:<10} {nodes:>6} {macs:>10.2} {time:>10.3}", segment.delegate)?;
        let ends = segment.nodes.first().zip(segment.nodes.last());
        if let Some((first, last)) = ends {
            writeln!(out, "      {first} … {last}")?;
        }
        if let Some(error) = &segment.last_error {
            writeln!(out, "      {} fallbacks, last: {error}", segment.fallbacks)?;
        }
    }
    Ok(())
}
