//! Runs a quantised ONNX model: tract is the host, delegates are guests.
//!
//! `graph` reads and checks the file, delegates claim nodes, `partition` cuts segments, `session` runs them in order
//! and goes on with the next alternative where one fails.

pub mod delegate;
mod function;
pub mod graph;
mod int8;
mod npu;
pub mod partition;
#[cfg(test)]
mod reference;
pub mod session;
#[cfg(test)]
mod testing;
mod tract;

use std::sync::Arc;

use self::delegate::{CompileError, CompiledSegment, Delegate, DeviceInfo, Segment, Unavailable};
use self::graph::{GraphView, NodeSet};
use crate::clock::Clock;
pub use int8::peak_macs_per_second;
pub use npu::{Blob, BlobTensor, WorkerSettings, worker_beside};
pub use ocelli_delegate::wire::Sandbox;
pub use session::{Session, SessionOptions};

/// Names of the delegates in this build, in the order in which they are preferred; the host last.
#[must_use]
pub fn delegate_names() -> Vec<String> {
    [int8::NAME, tract::NAME].map(str::to_owned).into()
}

/// Delegates by name, in order. The host is always last and left out here; a name that this build does not know gives
/// a delegate that is not available, which the session reports and goes on without. Those that run in this process
/// ask `clock` whether their deadline has passed.
#[must_use]
pub fn delegates(names: &[String], clock: &Arc<dyn Clock>) -> Vec<Arc<dyn Delegate>> {
    delegates_with(names, &[], clock)
}

/// As [`delegates`], with plug-ins that are known by the names in their settings.
#[must_use]
pub fn delegates_with(
    names: &[String],
    plugins: &[WorkerSettings],
    clock: &Arc<dyn Clock>,
) -> Vec<Arc<dyn Delegate>> {
    let guest = |name: &String| -> Arc<dyn Delegate> {
        let plugin = plugins.iter().find(|plugin| plugin.name == *name);
        match (name.as_str(), plugin) {
            (int8::NAME, _) => Arc::new(int8::Int8::new(Arc::clone(clock))),
            (_, Some(plugin)) => Arc::new(npu::Npu::new(plugin.clone(), Arc::clone(clock))),
            _ => Arc::new(Absent(name.clone())),
        }
    };
    names.iter().filter(|name| *name != tract::NAME).map(guest).collect()
}

/// A delegate that this build does not have.
struct Absent(String);

impl Delegate for Absent {
    fn name(&self) -> &str {
        &self.0
    }

    fn probe(&self) -> Result<DeviceInfo, Unavailable> {
        let known = delegate_names().join(", ");
        let reason = format!("this build does not have it; it has: {known}");
        Err(Unavailable { delegate: self.0.clone(), reason })
    }

    fn claim(&self, _graph: &GraphView<'_>) -> NodeSet {
        NodeSet::default()
    }

    fn compile(&self, _segment: &Segment<'_>) -> Result<Box<dyn CompiledSegment>, CompileError> {
        Err(CompileError::Refused("this build does not have the delegate".to_owned()))
    }
}
