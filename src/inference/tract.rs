//! The host: runs what no delegate claims, each remainder by a tract plan of its own.
//!
//! The only place that turns nodes into tract operators; nothing of tract shows in its signatures. A panic in tract
//! becomes an error.

mod caught;
mod lower;
mod operators;
mod resize;
mod steps;
mod wire;

use std::time::Instant;

use tract_core::internal::*;
use tract_core::runtime::RunOptions;

pub(super) use caught::catch;

use super::delegate::{CompileError, CompiledSegment, RunError, SegmentIo};
use super::graph::{GraphView, NodeSet};
use crate::tensor::{TensorSpec, TensorView, TensorViewMut, Values, ValuesMut};

/// Name of the host, where a delegate's name would stand.
pub(super) const NAME: &str = "tract";

/// A remainder, ready to run.
pub(super) struct TractSegment {
    io: SegmentIo,
    state: TypedSimpleState,
}

impl TractSegment {
    /// Builds a plan. Takes seconds for large nets.
    pub(super) fn compile(
        graph: &GraphView<'_>,
        nodes: &NodeSet,
        io: &SegmentIo,
    ) -> Result<Self, CompileError> {
        let state = catch(|| plan(graph, nodes, io))
            .map_err(|panic| CompileError::Failed(format!("tract panicked: {panic}")))?
            .map_err(|error| CompileError::Failed(format!("{error:#}")))?;
        Ok(Self { io: io.clone(), state })
    }
}

fn plan(graph: &GraphView<'_>, nodes: &NodeSet, io: &SegmentIo) -> TractResult<TypedSimpleState> {
    let model = wire::wire(lower::lower(graph, nodes, io), graph, io)?.into_decluttered()?;
    for (place, spec) in io.outputs.iter().enumerate() {
        let fact = model.output_fact(place)?;
        let shape = fact.shape.as_concrete().map(<[usize]>::to_vec);
        ensure!(
            shape.as_ref() == Some(&spec.shape),
            "tract sees shape {:?} for `{}`, expected {:?}",
            fact.shape,
            spec.name,
            spec.shape
        );
    }
    let model = model.into_optimized()?;
    TypedSimplePlan::new_with_options(model, &RunOptions::default())?.spawn()
}

impl CompiledSegment for TractSegment {
    fn io(&self) -> &SegmentIo {
        &self.io
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        _deadline: Instant,
    ) -> Result<(), RunError> {
        let state = &mut self.state;
        let results = catch(move || {
            let inputs = inputs.iter().map(import).collect::<TractResult<TVec<_>>>()?;
            state.run(inputs)
        });
        let results = results
            .map_err(|panic| RunError::Fault(format!("tract panicked: {panic}")))?
            .map_err(|error| RunError::Fault(format!("{error:#}")))?;
        if results.len() != outputs.len() {
            let what = format!("{} outputs instead of {}", results.len(), outputs.len());
            return Err(RunError::WrongTensor(what));
        }
        for ((result, output), spec) in results.iter().zip(outputs).zip(&self.io.outputs) {
            export(result, output, spec)
                .map_err(|error| RunError::WrongTensor(format!("{error:#}")))?;
        }
        Ok(())
    }
}

fn import(view: &TensorView<'_>) -> TractResult<TValue> {
    let tensor = match view.values {
        Values::F32(values) => Tensor::from_shape(view.shape, values),
        Values::U8(values) => Tensor::from_shape(view.shape, values),
        Values::I8(values) => Tensor::from_shape(view.shape, values),
        Values::I32(values) => Tensor::from_shape(view.shape, values),
        Values::I64(values) => Tensor::from_shape(view.shape, values),
    };
    Ok(tensor?.into_tvalue())
}

fn export(result: &Tensor, output: &mut TensorViewMut<'_>, spec: &TensorSpec) -> TractResult<()> {
    ensure!(result.shape() == output.shape, "`{}` has shape {:?}", spec.name, result.shape());
    match &mut output.values {
        ValuesMut::F32(values) => copy(result, values),
        ValuesMut::U8(values) => copy(result, values),
        ValuesMut::I8(values) => copy(result, values),
        ValuesMut::I32(values) => copy(result, values),
        ValuesMut::I64(values) => copy(result, values),
    }
}

fn copy<T: Datum + Copy>(from: &Tensor, to: &mut [T]) -> TractResult<()> {
    // tract keeps i64 as symbolic dimensions; other types are as agreed.
    let from = from.cast_to::<T>()?;
    let plain = from.try_as_plain_ram()?;
    let from = plain.as_slice::<T>()?;
    ensure!(from.len() == to.len(), "{} values instead of {}", from.len(), to.len());
    to.copy_from_slice(from);
    Ok(())
}

#[cfg(test)]
mod tests;
