//! Payload of the `model` topic: which model runs, and how an update stands. Field names are a contract: add, never change.

use serde::{Deserialize, Serialize};

/// `model`: retained, published at the start and at every change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelState {
    /// Payload version, [`crate::VERSION`].
    pub v: u32,
    /// The model that runs.
    pub running: RunningModel,
    /// How an update stands.
    pub update: UpdateState,
}

/// The model that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningModel {
    /// Package name.
    pub name: String,
    /// Package version, semver.
    pub version: String,
    /// Digest of the package's canonical tar, hex.
    pub sha256: String,
    /// Where it lies: `config` for the model of the configuration, else a slot.
    pub slot: String,
    /// Whether it may still be taken back.
    pub state: Trust,
    /// Delegates that run it, in order of execution, each named once.
    pub backend: Vec<String>,
    /// Golden pictures that it was checked with when it was loaded.
    pub golden: usize,
}

/// Whether a running model may still be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// In trial or probation.
    Trial,
    /// Stays.
    Confirmed,
}

/// How an update stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateState {
    /// What the updater does.
    pub state: UpdatePhase,
    /// `<name>-<version>` it works towards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Bytes held of bytes needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it does not go on, where something is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What came of the last update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastUpdate>,
}

/// What the updater does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UpdatePhase {
    /// Updates are not configured.
    Off,
    /// Waits for news.
    Idle,
    /// Fetches and verifies metadata.
    Checking,
    /// Fetches chunks of a package.
    Fetching,
    /// A new model is tried in a child process.
    Trial,
    /// A new model runs and is watched.
    Probation,
}

/// Bytes held of bytes needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Held.
    pub bytes: u64,
    /// Needed.
    pub of: u64,
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UpdateOutcome {
    /// The new model stays.
    Confirmed,
    /// It never looked at a frame.
    Rejected,
    /// It ran, and the model before it was put back.
    RolledBack,
}

/// What came of the last update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUpdate {
    /// `<name>-<version>`.
    pub target: String,
    /// What came of it.
    pub outcome: UpdateOutcome,
    /// Why.
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_documented_fields() {
        let state = ModelState {
            v: crate::VERSION,
            running: RunningModel {
                name: "nanodet-g-coco".into(),
                version: "1.0.0".into(),
                sha256: "ab".into(),
                slot: "config".into(),
                state: Trust::Confirmed,
                backend: vec!["tract".into()],
                golden: 2,
            },
            update: UpdateState {
                state: UpdatePhase::Off,
                target: None,
                progress: None,
                reason: None,
                last: None,
            },
        };
        let json = r#"{"v":1,"running":{"name":"nanodet-g-coco","version":"1.0.0","sha256":"ab","slot":"config","state":"confirmed","backend":["tract"],"golden":2},"update":{"state":"off"}}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), json);
        assert_eq!(serde_json::from_str::<ModelState>(json).unwrap(), state);
    }
}
