//! `--layers`: what each layer takes, and how near it comes to the processor's measured peak.

use std::io::{self, Write};
use std::time::Duration;

use crate::clock::Clock;
use crate::inference::session::{LayerTime, SessionError};
use crate::inference::{Session, peak_macs_per_second};
use crate::tensor::TensorView;

/// A layer of one segment, over several runs.
struct Row {
    segment: usize,
    name: String,
    output: String,
    macs: u64,
    /// Sorted.
    times: Vec<Duration>,
}

/// The times of all layers that can be timed, and the peak of the machine.
pub(super) struct LayerTable {
    rows: Vec<Row>,
    /// Multiply-accumulates a second; `None` where there is no yardstick.
    peak: Option<f64>,
}

/// Runs the model `runs` times more, layer by layer.
///
/// # Errors
/// As [`Session::profile`].
pub(super) fn measure(
    session: &mut Session,
    inputs: &[TensorView<'_>],
    runs: usize,
    clock: &dyn Clock,
) -> Result<LayerTable, SessionError> {
    let mut rows: Vec<Row> = Vec::new();
    for run in 0..runs.max(1) {
        let segments = session.profile(inputs)?;
        let layers = segments.into_iter().enumerate();
        let layers =
            layers.flat_map(|(segment, layers)| layers.into_iter().map(move |l| (segment, l)));
        for (place, (segment, LayerTime { layer, time })) in layers.enumerate() {
            if run == 0 {
                let (name, output, macs) = (layer.name, layer.output, layer.macs);
                rows.push(Row { segment, name, output, macs, times: Vec::new() });
            }
            if let Some(row) = rows.get_mut(place) {
                row.times.push(time);
            }
        }
    }
    rows.iter_mut().for_each(|row| row.times.sort_unstable());
    Ok(LayerTable { rows, peak: peak_macs_per_second(clock) })
}

impl LayerTable {
    /// One line for each layer.
    ///
    /// # Errors
    /// What the writer says.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        if let Some(peak) = self.peak {
            writeln!(out, "peak of this machine's multiplications: {:.1} GMAC/s", peak / 1e9)?;
        }
        let all: f64 = self.rows.iter().map(|row| milliseconds(row.median())).sum();
        writeln!(
            out,
            "{:>3} {:<26} {:>14} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6}",
            "#", "layer", "output", "MMAC", "min ms", "p50 ms", "share", "GMAC/s", "peak"
        )?;
        for row in &self.rows {
            let (least, median) = (row.times[0], row.median());
            let rate = row.macs as f64 / median.as_secs_f64().max(1e-9);
            let share = 100.0 * milliseconds(median) / all.max(1e-9);
            let Row { segment, name, output, macs, .. } = row;
            write!(
                out,
                "{segment:>3} {name:<26} {output:>14} {:>8.2} {:>8.3} {:>8.3} {share:>5.1}%",
                *macs as f64 / 1e6,
                milliseconds(least),
                milliseconds(median),
            )?;
            match self.peak.filter(|_| *macs > 0) {
                Some(peak) => writeln!(out, " {:>7.1} {:>5.0}%", rate / 1e9, 100.0 * rate / peak)?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    }
}

impl Row {
    fn median(&self) -> Duration {
        self.times[self.times.len() / 2]
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
