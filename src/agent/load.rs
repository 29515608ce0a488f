//! From a model package to a detector that has proved itself: parse, compile, build the head, look at the golden pictures.
//!
//! Used at the start; a model that fails any step is refused with a message that names the step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ocelli_protocol::message::Findings;
use ocelli_protocol::repository::Digest;

use crate::agent::settings::Misfit;
use crate::agent::{ModelSettings, choice, gate};
use crate::clock::Clock;
use crate::frame::{Frame, PixelFormat};
use crate::inference::session::{LoadError, Reread};
use crate::inference::{Session, SessionOptions, delegate_names, delegates_with};
use crate::model::golden::{Mismatch, compare};
use crate::model::{GoldenSample, ModelSpec, Package, PackageError};
use crate::pipeline::{DetectError, Detector, DetectorError, SessionNetwork, SessionWatch};
use crate::vision::annotate::Picture;
use crate::vision::postprocess::{HeadError, head};
use crate::vision::preprocess::Preprocessor;

/// Longest look at one golden picture; a cold model on a slow board takes its time.
const GOLDEN_DEADLINE: Duration = Duration::from_secs(60);

/// A model that passed its golden pictures.
pub struct Loaded {
    /// Ready for the pipeline.
    pub detector: Detector,
    /// Name, digest, labels.
    pub spec: ModelSpec,
    /// Reports which delegate runs what.
    pub watch: Arc<SessionWatch>,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A delegate that this build does not have.
    #[error("model: delegate \"{name}\" is not known; this build has: {known}")]
    UnknownDelegate {
        /// As configured.
        name: String,
        /// What there is.
        known: String,
    },
    /// The package is not in order.
    #[error("model: {0}")]
    Package(#[from] PackageError),
    /// The ONNX file cannot be run.
    #[error("model {}: {source}", path.display())]
    Load {
        /// The package.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// The manifest and the ONNX file disagree.
    #[error("model {}: {detail}", path.display())]
    Unfit {
        /// The package.
        path: PathBuf,
        /// How.
        detail: String,
    },
    /// The head does not fit the outputs.
    #[error("model {}: {source}", path.display())]
    Head {
        /// The package.
        path: PathBuf,
        /// Why.
        source: HeadError,
    },
    /// A golden picture could not be looked at.
    #[error("model {}: golden picture {picture}: {detail}", path.display())]
    GoldenFailed {
        /// The package.
        path: PathBuf,
        /// The picture.
        picture: String,
        /// Why.
        detail: String,
    },
    /// The model finds something else in a golden picture than it should.
    #[error("model {}: golden picture {picture}: {mismatch}", path.display())]
    GoldenMismatch {
        /// The package.
        path: PathBuf,
        /// The picture.
        picture: String,
        /// The first difference.
        mismatch: Mismatch,
    },
}

/// Loads a model and checks it on each of its golden pictures.
///
/// # Errors
/// [`ModelError`] names the package and the step.
pub fn load(settings: &ModelSettings, clock: &Arc<dyn Clock>) -> Result<Loaded, ModelError> {
    load_this(settings, None, clock)
}

/// [`load`], but only the package with this digest: a file may have been changed since it was verified.
pub(super) fn load_this(
    settings: &ModelSettings,
    verified: Option<Digest>,
    clock: &Arc<dyn Clock>,
) -> Result<Loaded, ModelError> {
    let mut known = delegate_names();
    known.extend(settings.accelerators.plugins.iter().map(|plugin| plugin.name.clone()));
    if let Some(name) = settings.delegates.iter().find(|name| !known.contains(name)) {
        return Err(ModelError::UnknownDelegate { name: name.clone(), known: known.join(", ") });
    }
    let path = settings.path.clone();
    let mut spec = Package::open(&settings.path)?.into_spec();
    let found = Digest(spec.sha256().0);
    if let Some(verified) = verified.filter(|verified| *verified != found) {
        let detail = format!(
            "it is not the package that was verified: sha256 is {found}, was {verified}; it was changed on this device's disk"
        );
        return Err(ModelError::Unfit { path, detail });
    }
    let plugins = gate::plugins_for(&spec, &settings.accelerators.plugins);
    let chosen = settings
        .profile
        .as_ref()
        .map(|profile| choice::order(settings, profile, &spec, &plugins, clock));
    let names = chosen.as_ref().unwrap_or(&settings.delegates);
    let delegates = delegates_with(names, &plugins, clock);
    delegates.iter().for_each(|delegate| delegate.use_processor(&settings.processor));
    let options = SessionOptions {
        shadow_every: settings.accelerators.shadow_every,
        closeness: settings.accelerators.closeness,
        ..SessionOptions::default()
    };
    let package = path.clone();
    let reread: Reread = Arc::new(move || {
        let again = Package::open(&package).map_err(|error| error.to_string())?;
        Ok(again.into_spec().take_onnx().to_vec())
    });
    let mut session =
        Session::open(spec.take_onnx(), reread, &delegates, options, Arc::clone(clock))
            .map_err(|source| ModelError::Load { path: path.clone(), source })?;
    let unfit = |detail: String| ModelError::Unfit { path: path.clone(), detail };
    let input = match session.inputs() {
        [input] if input.name == spec.input().tensor => input.clone(),
        inputs => {
            let found: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
            let (wanted, found) = (&spec.input().tensor, found.join(", "));
            return Err(unfit(format!(
                "input.tensor is \"{wanted}\", the model's inputs are: {found}; it must be its only one"
            )));
        }
    };
    let manifest = spec.input();
    let mut preprocess = match input.quantisation {
        Some(quantisation) => Preprocessor::quantised(manifest, quantisation),
        None => Preprocessor::new(manifest),
    };
    let mut accelerated = false;
    if !plugins.is_empty() {
        let failed = gate::prove(&mut session, &mut preprocess, &spec, &**clock);
        failed.map_err(|detail| unfit(format!("comparison with the stand-in: {detail}")))?;
        accelerated = session.running().any(|name| plugins.iter().any(|one| one.name == name));
        if let Some(detail) = gate::misfit(&session, &spec) {
            match settings.accelerators.misfit {
                Misfit::Refuse => return Err(unfit(detail)),
                Misfit::StandIn => log::error!("{detail}; another delegate runs it"),
            }
        }
    }
    let (width, height) = (manifest.width, manifest.height);
    let labels = Arc::clone(spec.labels());
    let head = head(spec.head(), spec.task(), labels, session.outputs(), width, height)
        .map_err(|source| ModelError::Head { path: path.clone(), source })?;
    let (network, watch) = SessionNetwork::new(session);
    let detector = Detector::new(Box::new(preprocess), Box::new(network), head, spec.id().clone());
    let mut detector = detector.map_err(|error: DetectorError| unfit(error.to_string()))?;
    for sample in spec.golden() {
        match check_golden(&mut detector, sample, &**clock, &path) {
            Err(error) if accelerated && settings.accelerators.misfit == Misfit::StandIn => {
                log::error!("{error}; the model runs without accelerators");
                drop(detector);
                return load(&settings.without_accelerators(), clock);
            }
            checked => checked?,
        }
    }
    Ok(Loaded { detector, spec, watch })
}

fn check_golden(
    detector: &mut Detector,
    sample: &GoldenSample,
    clock: &dyn Clock,
    path: &Path,
) -> Result<(), ModelError> {
    let failed = |detail: String| ModelError::GoldenFailed {
        path: path.to_owned(),
        picture: sample.name.clone(),
        detail,
    };
    let frame = picture(&sample.image, clock).map_err(failed)?;
    let mut found = Findings::Detections(Vec::new());
    let looked = detector.detect(&frame, GOLDEN_DEADLINE, clock, &mut found);
    looked.map_err(|error: DetectError| failed(error.to_string()))?;
    compare(&sample.expected, &found, sample.score_tolerance).map_err(|mismatch| {
        ModelError::GoldenMismatch { path: path.to_owned(), picture: sample.name.clone(), mismatch }
    })
}

/// A JPEG or PNG file as a frame.
///
/// # Errors
/// What is wrong with the file; a JPEG is looked into by the preprocessing.
pub(crate) fn picture(file: &[u8], clock: &dyn Clock) -> Result<Frame, String> {
    let frame = Frame { captured_at: clock.wall(), ..Frame::empty(clock.now()) };
    if !file.starts_with(b"\x89PNG") {
        return Ok(Frame { data: file.to_vec(), format: PixelFormat::Mjpeg, ..frame });
    }
    let picture = Picture::decode(file).map_err(|error| error.to_string())?;
    let Picture { width, height, rgb: data } = picture;
    Ok(Frame { data, width, height, stride: width * 3, format: PixelFormat::Rgb24, ..frame })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::processor::Processor;

    fn settings(delegates: &[&str]) -> ModelSettings {
        ModelSettings {
            path: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-classifier").into(),
            delegates: delegates.iter().map(|name| (*name).to_owned()).collect(),
            processor: Processor::default(),
            deadline: Duration::from_secs(2),
            profile: None,
            accelerators: crate::agent::Accelerators::default(),
        }
    }

    fn clock() -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    #[test]
    fn only_the_package_that_was_verified_is_loaded() {
        let settings = settings(&["tract"]);
        let found = Digest(load(&settings, &clock()).unwrap().spec.sha256().0);
        assert!(load_this(&settings, Some(found), &clock()).is_ok());
        let verified = Digest([7; 32]);
        let error = load_this(&settings, Some(verified), &clock()).err().unwrap().to_string();
        assert!(error.contains(&format!("sha256 is {found}, was {verified}")), "{error}");
    }

    #[test]
    fn a_package_becomes_a_detector_that_knows_its_golden_pictures() {
        let loaded = load(&settings(&["tract"]), &clock()).unwrap();
        assert_eq!(loaded.detector.model().name, loaded.spec.id().name);
        assert_eq!(loaded.detector.backend(), ["tract"]);
        assert!(!loaded.spec.golden().is_empty());
    }

    #[test]
    fn an_unknown_delegate_is_answered_with_the_known_ones() {
        let error = load(&settings(&["rknn"]), &clock()).map(|_| ()).unwrap_err();
        assert!(matches!(error, ModelError::UnknownDelegate { .. }));
        assert!(error.to_string().contains("this build has: "), "{error}");
    }

    #[test]
    fn a_model_that_finds_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&settings(&[]).path, folder.path());
        let golden = folder.path().join("golden");
        let expectation = std::fs::read_dir(&golden)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "json"))
            .unwrap();
        let mut classes: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(&expectation).unwrap()).unwrap();
        classes.reverse();
        let scores: Vec<_> = (0..classes.len()).map(|n| 0.9 - 0.2 * n as f64).collect();
        for (class, score) in classes.iter_mut().zip(scores) {
            class["score"] = score.into();
        }
        std::fs::write(&expectation, serde_json::to_vec(&classes).unwrap()).unwrap();
        let settings = ModelSettings { path: folder.path().to_owned(), ..settings(&[]) };
        let error = load(&settings, &clock()).map(|_| ()).unwrap_err();
        assert!(matches!(error, ModelError::GoldenMismatch { .. }), "{error}");
    }

    fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy_folder(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }
}
