//! A planned graph with its memory: load once, run often, without allocation.

use std::sync::Arc;

use crate::border::{Input, Io, Output};
use crate::execute::{self, Scratch};
use crate::kernels::Kernels;
use crate::kernels::aligned::Aligned;
use crate::plan::Plan;
use crate::tensor::Shape;
use crate::{Graph, GraphError, Pool, RunError};

/// Runs one graph.
///
/// ```
/// # use ocelli_int8::*;
/// let mut builder = GraphBuilder::new();
/// let q = Quantisation::new(ElementType::U8, 0.5, 0)?;
/// let x = builder.input(Shape::new(1, 2, 2, 1)?, q, InputForm::F32Nchw)?;
/// let y = builder.global_average_pool(x, q)?;
/// builder.output(y, OutputForm::F32Nchw)?;
/// let mut engine = Engine::new(&builder.build()?)?;
/// let mut mean = [0.0];
/// engine.run(&[Input::F32(&[1.0, 2.0, 3.0, 4.0])], &mut [Output::F32(&mut mean)])?;
/// assert_eq!(mean, [2.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    kernels: &'static Kernels,
    plan: Plan,
    io: Io,
    arena: Aligned,
    scratch: Scratch,
}

/// A step of the plan, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// ONNX's word for the operator, with what is fused behind it: `Conv 3x3/2 +Add`.
    pub name: String,
    /// Shape of the tensor it completes.
    pub shape: Shape,
    /// Multiplications.
    pub macs: u64,
}

impl Engine {
    /// Plans a graph for this machine: the best kernels it has, or those that the environment variable `OCELLI_ISA`
    /// names (one of [`Engine::instruction_sets`]).
    ///
    /// # Errors
    /// [`GraphError::Shape`] when the tensors alive at one time need more than 1 GiB,
    /// [`GraphError::InstructionSet`] when `OCELLI_ISA` names none that this machine has.
    pub fn new(graph: &Graph) -> Result<Self, GraphError> {
        Self::with_kernels(graph.clone(), Kernels::detect()?)
    }

    /// As [`Engine::new`], but takes the graph: its weights go one layer after the other while they are packed.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn consume(graph: Graph) -> Result<Self, GraphError> {
        Self::with_kernels(graph, Kernels::detect()?)
    }

    /// Names of the instruction sets that this machine has kernels for, the fastest first.
    ///
    /// ```
    /// assert_eq!(ocelli_int8::Engine::instruction_sets().last(), Some("scalar"));
    /// ```
    pub fn instruction_sets() -> impl Iterator<Item = &'static str> {
        Kernels::available().map(|kernels| kernels.name)
    }

    /// Name of the instruction set that [`Engine::new`] takes.
    ///
    /// # Errors
    /// [`GraphError::InstructionSet`] as [`Engine::new`].
    pub fn preferred_instruction_set() -> Result<&'static str, GraphError> {
        Kernels::detect().map(|kernels| kernels.name)
    }

    /// Plans a graph for one instruction set; `None` when this machine cannot run it or the name is unknown.
    ///
    /// # Errors
    /// [`GraphError::Shape`] as [`Engine::new`].
    pub fn with_isa(graph: &Graph, isa: &str) -> Result<Option<Self>, GraphError> {
        Kernels::by_name(isa).map(|kernels| Self::with_kernels(graph.clone(), kernels)).transpose()
    }

    fn with_kernels(graph: Graph, kernels: &'static Kernels) -> Result<Self, GraphError> {
        let io = graph.io();
        let plan = Plan::new(graph, kernels)?;
        Ok(Self {
            io,
            arena: Aligned::new(plan.arena_bytes),
            scratch: Scratch::new(&plan),
            kernels,
            plan,
        })
    }

    /// From now on the threads of a pool help with convolutions; the bytes of results do not change. Allocates scratch
    /// memory for each.
    pub fn share(&mut self, pool: &Arc<Pool>) {
        self.scratch.team.share(pool);
    }

    /// Runs once: no allocation, no lock.
    ///
    /// # Errors
    /// [`RunError`] when the buffers do not fit the graph; nothing is written then.
    pub fn run(
        &mut self,
        inputs: &[Input<'_>],
        outputs: &mut [Output<'_>],
    ) -> Result<(), RunError> {
        self.run_observed(inputs, outputs, &mut |_| {})
    }

    /// Runs once and calls `after` behind each step with its place in [`Engine::layers`]; for timing.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_observed(
        &mut self,
        inputs: &[Input<'_>],
        outputs: &mut [Output<'_>],
        after: &mut dyn FnMut(usize),
    ) -> Result<(), RunError> {
        let mut always = |index| {
            after(index);
            true
        };
        self.run_while(inputs, outputs, &mut always)
    }

    /// Runs once as long as `go_on` says so behind each step, of which it is given the place in [`Engine::layers`].
    ///
    /// # Errors
    /// As [`Engine::run`]; [`RunError::Stopped`] when `go_on` said no, and nothing has been written then.
    pub fn run_while(
        &mut self,
        inputs: &[Input<'_>],
        outputs: &mut [Output<'_>],
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), RunError> {
        self.io.check(inputs, outputs)?;
        let arena = self.arena.cells();
        for (index, step) in self.plan.steps.iter().enumerate() {
            execute::step(step, self.kernels, arena, inputs, &mut self.scratch);
            if !go_on(index) {
                return Err(RunError::Stopped { step: index });
            }
        }
        for (output, leaving) in outputs.iter_mut().zip(&self.plan.outputs) {
            execute::store(arena, leaving, output);
        }
        Ok(())
    }

    /// Steps in order.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.plan.layers
    }

    /// Name of the instruction set in use.
    #[must_use]
    pub fn isa(&self) -> &'static str {
        self.kernels.name
    }

    /// Bytes of the arena that holds all tensors.
    #[must_use]
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }
}
