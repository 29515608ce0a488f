//! Runs a quantised ONNX model: tract is the host, delegates are guests.
//!
//! `graph` reads and checks the file, delegates claim nodes, `partition` cuts segments, `session` runs them in order
//! and goes on with the next alternative where one fails.

pub mod delegate;
pub mod graph;
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
pub use session::{Session, SessionOptions};

/// Names of the delegates in this build, in the order in which they are preferred; the host last.
#[must_use]
pub fn delegate_names() -> Vec<String> {
    vec![tract::NAME.to_owned()]
}

/// Delegates by name, in order. The host is always last and left out here; a name that this build does not know gives
/// a delegate that is not available, which the session reports and goes on without.
#[must_use]
pub fn delegates(names: &[String]) -> Vec<Arc<dyn Delegate>> {
    let guests = names.iter().filter(|name| *name != tract::NAME);
    guests.map(|name| Arc::new(Absent(name.clone())) as Arc<dyn Delegate>).collect()
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
