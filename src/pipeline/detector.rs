//! What looks at a frame: preprocessing, network and head of one model, with the tensor between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli_protocol::message::ModelId;

use crate::clock::Clock;
use crate::detection::Findings;
use crate::frame::Frame;
use crate::tensor::{Tensor, TensorSpec, TensorView, Values};
use crate::vision::postprocess::{Head, HeadError};
use crate::vision::preprocess::{Preprocess, PreprocessError};

/// Most outputs a network may have.
pub const MAX_OUTPUTS: usize = 32;

/// A model that can be run: the port that `inference::Session` fills.
pub trait Network: Send {
    /// The input tensor.
    fn input(&self) -> &TensorSpec;

    /// Number of outputs, at most [`MAX_OUTPUTS`].
    fn outputs(&self) -> usize;

    /// Runs once on `input`.
    ///
    /// # Errors
    /// [`NetworkError`]; outputs are then undefined.
    fn run(&mut self, input: TensorView<'_>, deadline: Instant) -> Result<(), NetworkError>;

    /// Output `index` of the last run.
    fn output(&self, index: usize) -> TensorView<'_>;

    /// Delegates that run it now, in order of execution, each named once.
    fn backend(&self) -> &[String];
}

/// Why a network brought no outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A replacement is being built; this frame is skipped.
    #[error("not ready: a replacement is being built")]
    NotReady,
    /// Nobody could run it.
    #[error("{0}")]
    Failed(String),
}

/// Everything that turns a frame into findings.
pub struct Detector {
    preprocess: Box<dyn Preprocess>,
    network: Box<dyn Network>,
    head: Box<dyn Head>,
    model: Arc<ModelId>,
    input: Tensor,
}

/// A network that the pipeline cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model has {outputs} outputs, at most {MAX_OUTPUTS} are supported")]
pub struct DetectorError {
    /// Outputs of the network.
    pub outputs: usize,
}

/// Why a frame brought no findings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// The frame is no picture, or no picture for this model.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The network did not run.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The outputs do not fit the head.
    #[error(transparent)]
    Head(#[from] HeadError),
}

/// Time that each part of a [`Detector`] took on one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Picture to tensor.
    pub preprocess: Duration,
    /// The network.
    pub inference: Duration,
    /// Tensors to findings.
    pub postprocess: Duration,
}

impl Detector {
    /// Puts the parts together and allocates the input tensor.
    ///
    /// # Errors
    /// [`DetectorError`] for a network with too many outputs.
    pub fn new(
        preprocess: Box<dyn Preprocess>,
        network: Box<dyn Network>,
        head: Box<dyn Head>,
        model: ModelId,
    ) -> Result<Self, DetectorError> {
        let outputs = network.outputs();
        if outputs > MAX_OUTPUTS {
            return Err(DetectorError { outputs });
        }
        let input = Tensor::zeros(network.input().clone());
        Ok(Self { preprocess, network, head, model: Arc::new(model), input })
    }

    /// Name and version of the model.
    #[must_use]
    pub fn model(&self) -> &Arc<ModelId> {
        &self.model
    }

    /// Delegates that run it now.
    #[must_use]
    pub fn backend(&self) -> &[String] {
        self.network.backend()
    }

    /// Looks at one frame: replaces the content of `findings`. Allocates nothing of its own.
    ///
    /// # Errors
    /// [`DetectError`]; `findings` is then undefined.
    pub fn detect(
        &mut self,
        frame: &Frame,
        deadline: Duration,
        clock: &dyn Clock,
        findings: &mut Findings,
    ) -> Result<Spent, DetectError> {
        let start = clock.now();
        let geometry = self.preprocess.run(frame, &mut self.input.view_mut())?;
        let prepared = clock.now();
        self.network.run(self.input.view(), prepared + deadline)?;
        let inferred = clock.now();
        let mut views = [TensorView { shape: &[], values: Values::U8(&[]) }; MAX_OUTPUTS];
        let count = self.network.outputs();
        for (index, view) in views[..count].iter_mut().enumerate() {
            *view = self.network.output(index);
        }
        self.head.decode(&views[..count], &geometry, findings)?;
        Ok(Spent {
            preprocess: prepared - start,
            inference: inferred - prepared,
            postprocess: clock.now() - inferred,
        })
    }
}
