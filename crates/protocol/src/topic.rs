//! Names of MQTT topics. One copy of every topic string, for both ends.

use crate::Id;
use crate::repository::Digest;

/// The topic level under which everything lives, unless configured.
pub const DEFAULT_ROOT: &str = "ocelli";

/// Topics of one device, below `<root>/device/<device>/`.
///
/// ```
/// # use ocelli_protocol::topic::DeviceTopics;
/// let topics = DeviceTopics::new("ocelli", &"dock-3".parse().unwrap());
/// assert_eq!(topics.result(&"front".parse().unwrap()), "ocelli/device/dock-3/result/front");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTopics {
    prefix: String,
}

impl DeviceTopics {
    /// Topics of `device` under `root`.
    #[must_use]
    pub fn new(root: &str, device: &Id) -> Self {
        Self { prefix: format!("{root}/device/{device}") }
    }

    /// Retained presence and last will.
    #[must_use]
    pub fn status(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// Results of one stream.
    #[must_use]
    pub fn result(&self, stream: &Id) -> String {
        format!("{}/result/{stream}", self.prefix)
    }

    /// Sequence numbers that will not come.
    #[must_use]
    pub fn gap(&self) -> String {
        format!("{}/gap", self.prefix)
    }

    /// Retained health report.
    #[must_use]
    pub fn health(&self) -> String {
        format!("{}/health", self.prefix)
    }

    /// Retained model state.
    #[must_use]
    pub fn model(&self) -> String {
        format!("{}/model", self.prefix)
    }

    /// JPEG pictures on demand.
    #[must_use]
    pub fn snapshot(&self, stream: &Id) -> String {
        format!("{}/snapshot/{stream}", self.prefix)
    }

    /// Requests of one verb, as an operator publishes them.
    #[must_use]
    pub fn command(&self, verb: &str) -> String {
        format!("{}/cmd/{verb}", self.prefix)
    }

    /// The filter a device subscribes to for all its commands.
    #[must_use]
    pub fn command_filter(&self) -> String {
        format!("{}/cmd/+", self.prefix)
    }

    /// The verb of a command topic of this device; `None` for any other topic.
    #[must_use]
    pub fn command_verb<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let verb = topic.strip_prefix(&self.prefix)?.strip_prefix("/cmd/")?;
        (!verb.is_empty() && !verb.contains('/')).then_some(verb)
    }

    /// The answer to one request.
    #[must_use]
    pub fn reply(&self, request: &Id) -> String {
        format!("{}/reply/{request}", self.prefix)
    }

    /// The filter an operator subscribes to for everything of this device.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}/#", self.prefix)
    }
}

/// Topics of one repository, below `<root>/repo/<repo>/`. All are retained.
///
/// ```
/// # use ocelli_protocol::topic::RepoTopics;
/// let topics = RepoTopics::new("ocelli", &"factory-a".parse().unwrap());
/// assert_eq!(topics.metadata("1.root.json"), "ocelli/repo/factory-a/meta/1.root.json");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoTopics {
    prefix: String,
}

impl RepoTopics {
    /// Topics of `repo` under `root`.
    #[must_use]
    pub fn new(root: &str, repo: &Id) -> Self {
        Self { prefix: format!("{root}/repo/{repo}") }
    }

    /// The hint which versions are the newest, see [`crate::repository::Head`].
    #[must_use]
    pub fn head(&self) -> String {
        format!("{}/head", self.prefix)
    }

    /// A metadata file; its name must be one topic level.
    #[must_use]
    pub fn metadata(&self, file: &str) -> String {
        format!("{}/meta/{file}", self.prefix)
    }

    /// One chunk, raw bytes.
    #[must_use]
    pub fn chunk(&self, sha256: &Digest) -> String {
        format!("{}/chunk/{sha256}", self.prefix)
    }

    /// Whether a topic belongs to this repository.
    #[must_use]
    pub fn owns(&self, topic: &str) -> bool {
        topic.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The filter for everything of this repository.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}/#", self.prefix)
    }
}

/// What a device topic carries, as an operator's tool sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceTopic<'a> {
    /// `status`
    Status,
    /// `result/<stream>`
    Result(&'a str),
    /// `gap`
    Gap,
    /// `health`
    Health,
    /// `model`
    Model,
    /// `snapshot/<stream>`
    Snapshot(&'a str),
    /// `reply/<id>`
    Reply(&'a str),
}

/// Splits a received topic into device and meaning; `None` when it is not a device's own publication.
///
/// ```
/// # use ocelli_protocol::topic::{parse_device_topic, DeviceTopic};
/// assert_eq!(parse_device_topic("ocelli", "ocelli/device/d1/gap"), Some(("d1", DeviceTopic::Gap)));
/// ```
#[must_use]
pub fn parse_device_topic<'a>(root: &str, topic: &'a str) -> Option<(&'a str, DeviceTopic<'a>)> {
    let rest = topic.strip_prefix(root)?.strip_prefix("/device/")?;
    let (device, rest) = rest.split_once('/')?;
    let (kind, tail) = rest.split_once('/').map_or((rest, None), |(kind, tail)| (kind, Some(tail)));
    let meaning = match (kind, tail) {
        ("status", None) => DeviceTopic::Status,
        ("gap", None) => DeviceTopic::Gap,
        ("health", None) => DeviceTopic::Health,
        ("model", None) => DeviceTopic::Model,
        ("result", Some(stream)) => DeviceTopic::Result(stream),
        ("snapshot", Some(stream)) => DeviceTopic::Snapshot(stream),
        ("reply", Some(id)) => DeviceTopic::Reply(id),
        _ => return None,
    };
    Some((device, meaning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_topic_of_another_device_has_no_verb() {
        let topics = DeviceTopics::new("ocelli", &"a".parse().unwrap());
        assert_eq!(topics.command_verb("ocelli/device/a/cmd/ping"), Some("ping"));
        assert_eq!(topics.command_verb("ocelli/device/ab/cmd/ping"), None);
        assert_eq!(topics.command_verb("ocelli/device/a/cmd/"), None);
        assert_eq!(topics.command_verb("ocelli/device/a/cmd/x/y"), None);
    }

    #[test]
    fn device_topics_are_parsed_back() {
        let topics = DeviceTopics::new("site/one", &"a".parse().unwrap());
        let stream = "front".parse().unwrap();
        let cases = [
            (topics.status(), DeviceTopic::Status),
            (topics.gap(), DeviceTopic::Gap),
            (topics.health(), DeviceTopic::Health),
            (topics.model(), DeviceTopic::Model),
            (topics.result(&stream), DeviceTopic::Result("front")),
            (topics.snapshot(&stream), DeviceTopic::Snapshot("front")),
            (topics.reply(&stream), DeviceTopic::Reply("front")),
        ];
        for (topic, meaning) in cases {
            assert_eq!(parse_device_topic("site/one", &topic), Some(("a", meaning)), "{topic}");
        }
        assert_eq!(parse_device_topic("site/one", &topics.command("ping")), None);
    }
}
