//! What became of accelerators' processes, as rows for the audit log: one for each change. No I/O.

use serde_json::{Value, json};

use crate::inference::session::{SessionReport, WorkerReport};

/// The accelerators of the running model, as last told.
#[derive(Debug, Default)]
pub(super) struct Journal {
    any: bool,
    told: Vec<WorkerReport>,
}

impl Journal {
    /// For a model that takes over.
    pub(super) fn of(report: &SessionReport) -> Self {
        let any = report.segments.iter().any(|segment| !segment.workers.is_empty());
        Self { any, told: Vec::new() }
    }

    /// Whether there is anything to tell at all.
    pub(super) fn has_any(&self) -> bool {
        self.any
    }

    /// Name and details of each accelerator that started, faulted, was late, is stuck or was given up since the last call.
    pub(super) fn changes(&mut self, report: SessionReport) -> Vec<(String, Value)> {
        let mut rows = Vec::new();
        let mut seen = Vec::new();
        for segment in report.segments {
            for worker in segment.workers {
                let same = |told: &WorkerReport| {
                    told.counts == worker.counts
                        && (told.state == "gone") == (worker.state == "gone")
                };
                if !self.told.get(seen.len()).is_some_and(same) {
                    let counts = worker.counts;
                    let detail = json!({
                        "state": worker.state, "starts": counts.starts, "faults": counts.faults,
                        "overruns": counts.overruns, "stuck": counts.stuck,
                        "last_error": &segment.last_error,
                    });
                    rows.push((worker.delegate.clone(), detail));
                }
                seen.push(worker);
            }
        }
        self.told = seen;
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inference::delegate::WorkerCounts;
    use crate::inference::session::SegmentReport;

    fn report(state: &'static str, faults: u64) -> SessionReport {
        let counts = WorkerCounts { starts: 1, faults, ..WorkerCounts::default() };
        let segment = SegmentReport {
            delegate: "npu".to_owned(),
            nodes: vec!["conv".to_owned()],
            macs: 1,
            fallbacks: faults,
            last_error: (faults > 0).then(|| "the process ended".to_owned()),
            last_run: Duration::ZERO,
            workers: vec![WorkerReport { delegate: "npu".to_owned(), state, counts }],
        };
        SessionReport { segments: vec![segment] }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut journal = Journal::of(&report("ready", 0));
        assert!(journal.has_any());
        let told = [("ready", 0), ("ready", 0), ("paused", 1), ("starting", 1), ("gone", 1)]
            .map(|(state, faults)| journal.changes(report(state, faults)).len());
        assert_eq!(told, [1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_model_without_accelerators_is_not_asked() {
        assert!(!Journal::of(&SessionReport { segments: Vec::new() }).has_any());
    }
}
