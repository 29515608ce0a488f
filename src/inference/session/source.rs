//! Where the graph comes from: kept in memory, or read again when a stand-in must be built long after the load.

use std::sync::{Arc, Mutex, PoisonError};

use crate::inference::delegate::CompileError;
use crate::inference::graph::{Graph, Limits};
use crate::model::Sha256;

/// Reads the model file again.
pub type Reread = Arc<dyn Fn() -> Result<Vec<u8>, String> + Send + Sync>;

pub(super) struct Source {
    limits: Limits,
    /// There while the model loads, and afterwards if it cannot be read again.
    graph: Mutex<Option<Arc<Graph>>>,
    reread: Option<(Reread, Sha256)>,
}

impl Source {
    pub(super) fn new(
        graph: Arc<Graph>,
        limits: Limits,
        reread: Option<(Reread, Sha256)>,
    ) -> Arc<Self> {
        Arc::new(Self { limits, graph: Mutex::new(Some(graph)), reread })
    }

    /// The graph, with its constants. May read and parse the file, which takes its time and memory.
    pub(super) fn graph(&self) -> Result<Arc<Graph>, CompileError> {
        if let Some(graph) = &*self.graph.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(graph));
        }
        let Some((reread, sha256)) = &self.reread else {
            return Err(CompileError::Failed("the graph is gone".to_owned()));
        };
        let onnx =
            reread().map_err(|reason| CompileError::Failed(format!("model file: {reason}")))?;
        if Sha256::of(&onnx) != *sha256 {
            let what = "the model file is another than the one that was loaded; load it again";
            return Err(CompileError::Failed(what.to_owned()));
        }
        let graph = Graph::parse(&onnx, &self.limits);
        graph.map(Arc::new).map_err(|error| CompileError::Failed(error.to_string()))
    }

    /// Gives the memory of the graph back, if it can be had again.
    pub(super) fn release(&self) {
        if self.reread.is_some() {
            *self.graph.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}
