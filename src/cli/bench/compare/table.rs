//! A comparison as a table for people.

use std::io::Write;

use super::super::BenchError;
use super::super::arguments::Settings;
use super::{Comparison, FP32, Goal};

/// Prints rows, what they mean for quantisation, and the recommendation.
pub(super) fn print(
    comparison: &Comparison,
    settings: &Settings,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    writeln!(
        out,
        "{:<12} {:>6} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>8} {:>9} {:>7} {:>7} {:>7} {:>7}",
        "delegate",
        "own %",
        "load ms",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "fps",
        "TOPS",
        "RSS MiB",
        "J/run",
        "TOPS/W",
        "agree %",
        "same %",
        "right %"
    )?;
    let share = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.2}", s * 100.0));
    for row in &comparison.rows {
        if let Some(error) = &row.error {
            writeln!(out, "{:<12} {error}", row.delegate)?;
            continue;
        }
        let joules = row.joules.map_or("-".to_owned(), |joules| format!("{joules:.4}"));
        let per_watt = row.tops_per_watt.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let simulated = if row.simulated { "  functional, not timing" } else { "" };
        writeln!(
            out,
            "{:<12} {:>6.1} {:>9.1} {:>9.3} {:>9.3} {:>9.3} {:>8.1} {:>7.3} {:>8.1} {joules:>9} {per_watt:>7} {:>7.2} {:>7} {:>7}{simulated}",
            row.delegate,
            row.share * 100.0,
            row.load_ms,
            row.p50_ms,
            row.p90_ms,
            row.p99_ms,
            row.fps,
            row.tops,
            row.peak_rss_mib,
            row.agreement * 100.0,
            share(row.same_findings),
            share(row.accuracy)
        )?;
    }
    print_quantisation(comparison, out)?;
    match (&comparison.recommended, settings.recommend) {
        (Some(choice), _) => {
            writeln!(out, "recommended: {}: {}", choice.delegate, choice.reason)?;
        }
        (None, Some(Goal::Energy)) => {
            writeln!(out, "recommended: none: no power sensor, or nobody agrees well enough")?;
        }
        (None, Some(_)) => writeln!(out, "recommended: none: nobody agrees well enough")?,
        (None, None) => {}
    }
    Ok(())
}

/// What the quantised model gains and loses against the one before, by the fastest real row.
fn print_quantisation(comparison: &Comparison, out: &mut dyn Write) -> Result<(), BenchError> {
    let usable = || comparison.rows.iter().filter(|row| row.error.is_none() && !row.simulated);
    let Some(before) = usable().find(|row| row.delegate == FP32) else { return Ok(()) };
    let quantised = usable().filter(|row| row.delegate != FP32);
    let Some(after) = quantised.min_by(|a, b| a.p50_ms.total_cmp(&b.p50_ms)) else {
        return Ok(());
    };
    let faster = before.p50_ms / after.p50_ms.max(1e-6);
    let answers = match (before.accuracy, after.accuracy, before.same_findings) {
        (Some(before), Some(after), _) => {
            format!("right in {:.2} % instead of {:.2} %", after * 100.0, before * 100.0)
        }
        (_, _, Some(same)) => format!("the same findings in {:.2} %", same * 100.0),
        _ => format!("its answers agree to {:.2} %", before.agreement * 100.0),
    };
    writeln!(
        out,
        "quantised, on {}: {faster:.1} times as fast as in fp32 on tract, {answers}",
        after.delegate
    )?;
    Ok(())
}
