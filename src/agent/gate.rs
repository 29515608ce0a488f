//! The gate that an accelerator passes before it serves a model: the package's compiled form for it, warm-up, and the golden
//! pictures compared with its stand-in. The digest is checked where the package is opened; target, runtime and tensors where
//! the form is compiled.

use std::sync::Arc;

use ocelli_protocol::manifest::{DelegateElement, DelegateIo, DelegateLayout};

use crate::clock::Clock;
use crate::inference::session::Closeness;
use crate::inference::{Blob, BlobTensor, Session, WorkerSettings};
use crate::model::{DelegateFile, ModelSpec};
use crate::tensor::{ElementType, Tensor};
use crate::vision::preprocess::{Preprocess, Preprocessor};

/// Runs before the first comparison: devices allocate, compile and clock up.
const WARM_UP: usize = 3;

/// Plug-ins with what the package has for them.
#[must_use]
pub(crate) fn plugins_for(spec: &ModelSpec, plugins: &[WorkerSettings]) -> Vec<WorkerSettings> {
    let with_blobs = |plugin: &WorkerSettings| {
        let own = spec.delegates().iter().filter(|file| file.entry.kind == plugin.name);
        WorkerSettings { blobs: own.map(blob).collect(), ..plugin.clone() }
    };
    plugins.iter().map(with_blobs).collect()
}

fn blob(file: &DelegateFile) -> Blob {
    let entry = &file.entry;
    let tensor = |io: &DelegateIo| BlobTensor {
        tensor: io.tensor.clone(),
        name: io.name.clone().unwrap_or_else(|| io.tensor.clone()),
        element: match io.element {
            DelegateElement::F32 => ElementType::F32,
            DelegateElement::U8 => ElementType::U8,
            DelegateElement::I8 => ElementType::I8,
        },
        scale: io.scale,
        zero_point: io.zero_point,
        channels_last: io.layout == DelegateLayout::ChannelsLast,
    };
    let closeness = entry.tolerance.as_ref();
    Blob {
        bytes: Arc::clone(&file.bytes),
        target: entry.target.clone(),
        toolchain: entry.toolchain.clone(),
        runtime: entry.runtime.clone(),
        io: entry.io.iter().map(tensor).collect(),
        closeness: closeness.map(|one| Closeness { steps: one.steps, share: one.share }),
    }
}

/// Warms accelerators up, then compares them with their stand-ins on each golden picture; puts those aside that fail or
/// whose answers are others.
pub(super) fn prove(
    session: &mut Session,
    preprocess: &mut Preprocessor,
    spec: &ModelSpec,
    clock: &dyn Clock,
) -> Result<(), String> {
    let mut input = Tensor::zeros(session.inputs()[0].clone());
    for _ in 0..WARM_UP {
        session.warm_up(&[input.view()]).map_err(|error| error.to_string())?;
    }
    for sample in spec.golden() {
        let frame = super::picture(&sample.image, clock)?;
        let seen = preprocess.run(&frame, &mut input.view_mut());
        seen.map_err(|error| error.to_string())?;
        let wrong = session.cross_check(&[input.view()]).map_err(|error| error.to_string())?;
        log::info!("picture={} accelerators put aside={wrong}", sample.name);
    }
    Ok(())
}

/// The accelerator for which the package has a compiled form that this device does not serve, and why.
pub(super) fn misfit(session: &Session, spec: &ModelSpec) -> Option<String> {
    let report = session.report();
    let mut gone = report.segments.iter().flat_map(|segment| {
        let gone = segment.workers.iter().filter(|worker| worker.state == "gone");
        gone.map(move |worker| (worker, segment.last_error.as_deref()))
    });
    let own = |name: &str| spec.delegates().iter().any(|file| file.entry.kind == name);
    let (worker, reason) = gone.find(|(worker, _)| own(&worker.delegate))?;
    let model = spec.id();
    Some(format!(
        "{} {} does not fit the accelerator {}: {}",
        model.name,
        model.version,
        worker.delegate,
        reason.unwrap_or("put aside")
    ))
}
