//! Retained messages that are waited for: one subscription each, with an end. MQTT has no "not found": a topic without a
//! message some time after its subscription was granted counts as absent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Wait for a retained message after SUBACK.
pub(super) const ABSENT_AFTER: Duration = Duration::from_secs(10);
/// Wait for SUBACK itself, which may also have been lost on the way to us.
const UNANSWERED_AFTER: Duration = Duration::from_secs(30);

/// Topics that are waited for.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    wanted: BTreeMap<String, Want>,
    connected: bool,
}

#[derive(Debug, Clone, Copy)]
struct Want {
    asked: Instant,
    granted: Option<Instant>,
}

impl Mailbox {
    /// Begins to wait; the caller subscribes.
    pub(super) fn ask(&mut self, topic: String, now: Instant) {
        self.wanted.insert(topic, Want { asked: now, granted: None });
    }

    /// Whether a message on this topic is waited for; it is no longer afterwards.
    pub(super) fn take(&mut self, topic: &str) -> bool {
        self.wanted.remove(topic).is_some()
    }

    /// The broker granted a subscription.
    pub(super) fn granted(&mut self, topic: &str, now: Instant) {
        if let Some(want) = self.wanted.get_mut(topic) {
            want.granted = Some(now);
        }
    }

    /// Waits begin anew with the session; without one nothing expires.
    pub(super) fn set_connected(&mut self, connected: bool, now: Instant) {
        self.connected = connected;
        for want in self.wanted.values_mut() {
            *want = Want { asked: now, granted: None };
        }
    }

    /// A topic that was waited for long enough; it is no longer waited for.
    pub(super) fn expired(&mut self, now: Instant) -> Option<String> {
        if !self.connected {
            return None;
        }
        let over = |want: &Want| match want.granted {
            Some(at) => now.saturating_duration_since(at) >= ABSENT_AFTER,
            None => now.saturating_duration_since(want.asked) >= UNANSWERED_AFTER,
        };
        let topic = self.wanted.iter().find(|(_, want)| over(want))?.0.clone();
        self.wanted.remove(&topic);
        Some(topic)
    }

    /// Stops waiting; gives the topics to unsubscribe from.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = String> + use<> {
        std::mem::take(&mut self.wanted).into_keys()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_absent_some_time_after_its_subscription_not_after_the_question() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut mailbox = Mailbox::default();
        mailbox.set_connected(true, start);
        mailbox.ask("a".into(), start);
        mailbox.ask("b".into(), start);
        mailbox.granted("a", at(15));
        assert_eq!(mailbox.expired(at(24)), None);
        assert_eq!(mailbox.expired(at(25)).as_deref(), Some("a"));
        assert_eq!(mailbox.expired(at(29)), None);
        assert_eq!(mailbox.expired(at(30)).as_deref(), Some("b"));
    }

    #[test]
    fn nothing_expires_without_a_session() {
        let start = Instant::now();
        let mut mailbox = Mailbox::default();
        mailbox.set_connected(true, start);
        mailbox.ask("a".into(), start);
        mailbox.granted("a", start);
        mailbox.set_connected(false, start);
        assert_eq!(mailbox.expired(start + Duration::from_secs(999)), None);
        mailbox.set_connected(true, start + Duration::from_secs(999));
        assert_eq!(mailbox.expired(start + Duration::from_secs(1028)), None);
        assert!(mailbox.take("a") && !mailbox.take("a"));
    }
}
