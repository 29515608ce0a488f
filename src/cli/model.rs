//! Which model a command means, and where the zoo lies.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use crate::agent::{self, Accelerators, Loaded, ModelSettings};
use crate::clock::Clock;
use crate::processor::Processor;

/// The zoo's detector, used when none is named.
pub(super) const DEFAULT_MODEL: &str = "nanodet-g-coco";
/// Folder of the sample pictures in the zoo.
pub(super) const PICTURES: &str = "pictures";
/// Longest look at one picture from the command line.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Where files of the zoo can lie: beside the program, in the working directory, or where packages install them.
pub(super) fn zoo_path(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|folder| folder.join("models"));
    let folders: Vec<PathBuf> =
        beside.into_iter().chain(["models".into(), "/usr/share/ocelli/models".into()]).collect();
    folders.iter().map(|folder| folder.join(name)).find(|path| path.exists()).ok_or_else(|| {
        let tried: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Failure::Failed(format!(
            "no {name} in {}; it comes with the repository and the packages; name another",
            tried.join(", ")
        ))
    })
}

/// Loads a package as the agent does, golden pictures included.
pub(super) fn load(
    path: PathBuf,
    delegates: Vec<String>,
    clock: &Arc<dyn Clock>,
) -> Result<Loaded, Failure> {
    let settings = ModelSettings {
        path,
        delegates,
        processor: Processor::default(),
        deadline: PATIENCE,
        profile: None,
        accelerators: Accelerators::default(),
    };
    agent::load(&settings, clock).map_err(Failure::failed)
}
