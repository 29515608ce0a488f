//! A segment that a worker runs: tensors go through memory shared with it, one copy in and one out.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use ocelli_delegate::wire::{self, Reply, Request};

use super::Shared;
use super::passage::{BlobTensor, Passage};
use super::worker::{Fault, Worker};
use crate::inference::delegate::{CompiledSegment, RunError, SegmentIo, WorkerStats};
use crate::tensor::{TensorSpec, TensorView, TensorViewMut};

/// Where the tensors of a run lie in the shared memory, and what becomes of them on the way.
pub(super) struct Places {
    inputs: Vec<Passage>,
    outputs: Vec<Passage>,
    pub(super) n_bytes: u64,
}

impl Places {
    /// Compares what the plug-in describes with the model and with what the package says of its compiled form.
    pub(super) fn check(
        inputs: &[wire::Tensor],
        outputs: &[wire::Tensor],
        io: &SegmentIo,
        listed: &[BlobTensor],
    ) -> Result<Self, String> {
        let passages = |what: &str, found: &[wire::Tensor], agreed: &[TensorSpec]| {
            if found.len() != agreed.len() {
                let (found, agreed) = (found.len(), agreed.len());
                return Err(format!("it has {found} {what}, the model {agreed}"));
            }
            let pairs = found.iter().zip(agreed);
            pairs
                .map(|(found, agreed)| {
                    let listed = listed.iter().find(|listed| listed.tensor == agreed.name);
                    Passage::check(found, agreed, listed)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let mut inputs_pass = passages("inputs", inputs, &io.inputs)?;
        let mut outputs_pass = passages("outputs", outputs, &io.outputs)?;
        let sizes = inputs.iter().chain(outputs).map(|tensor| tensor.n_bytes);
        let (places, n_bytes) = wire::places(sizes);
        for (passage, at) in inputs_pass.iter_mut().chain(&mut outputs_pass).zip(places) {
            passage.place(at);
        }
        Ok(Self { inputs: inputs_pass, outputs: outputs_pass, n_bytes })
    }
}

/// The segment.
pub(super) struct Remote {
    shared: Arc<Shared>,
    /// `None`: it has failed.
    worker: Option<Worker>,
    memory: File,
    places: Places,
    io: SegmentIo,
}

impl Remote {
    pub(super) fn new(
        shared: Arc<Shared>,
        worker: Worker,
        memory: File,
        places: Places,
        io: &SegmentIo,
    ) -> Self {
        Self { shared, worker: Some(worker), memory, places, io: io.clone() }
    }

    fn run_with(
        &mut self,
        worker: &mut Worker,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        deadline: Instant,
    ) -> Result<(), Fault> {
        let memory = |error: std::io::Error| Fault::Died(format!("shared memory: {error}"));
        for (view, passage) in inputs.iter().zip(&mut self.places.inputs) {
            passage.write(view, &self.memory).map_err(memory)?;
        }
        worker.run(deadline, &*self.shared.clock)?;
        for (view, passage) in outputs.iter_mut().zip(&mut self.places.outputs) {
            passage.read(view, &self.memory).map_err(memory)?;
        }
        Ok(())
    }
}

impl CompiledSegment for Remote {
    fn io(&self) -> &SegmentIo {
        &self.io
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        deadline: Instant,
    ) -> Result<(), RunError> {
        let Some(mut worker) = self.worker.take() else {
            return Err(RunError::Fault("its worker has ended".to_owned()));
        };
        match self.run_with(&mut worker, inputs, outputs, deadline) {
            Ok(()) => {
                self.worker = Some(worker);
                Ok(())
            }
            Err(fault) => Err(self.shared.bury(worker, fault).into_run_error()),
        }
    }

    fn stats(&mut self) -> Option<WorkerStats> {
        let mut worker = self.worker.take()?;
        match self.shared.ask(&mut worker, &Request::Stats { device: 0 }, None) {
            Ok(Reply::Stats(stats)) => {
                self.worker = Some(worker);
                let (rss_bytes, power_watt) = (stats.worker_rss_bytes, stats.power_watt);
                Some(WorkerStats { rss_bytes, power_watt })
            }
            Ok(other) => {
                self.shared.bury(worker, Fault::Nonsense(format!("{other:?}")));
                None
            }
            Err(fault) => {
                self.shared.bury(worker, fault);
                None
            }
        }
    }

    fn is_alive(&self) -> bool {
        self.worker.is_some()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.shared.dismiss(worker);
        }
    }
}
