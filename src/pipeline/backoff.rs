//! Pauses between tries that grow while tries fail. Pure: the caller waits.

use std::time::Duration;

/// First pause.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses of 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, … seconds.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The pause after one more failure.
    pub(super) fn fail(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause
    }

    /// The pause after a failure that another try will hardly cure.
    pub(super) fn fail_hard(&mut self) -> Duration {
        self.next = LONGEST;
        LONGEST
    }

    /// Begins again after a success.
    pub(super) fn succeed(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_seconds_and_begin_again() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..7).map(|_| backoff.fail().as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.succeed();
        assert_eq!(backoff.fail(), FIRST);
        assert_eq!(backoff.fail_hard(), LONGEST);
        assert_eq!(backoff.fail(), LONGEST);
    }
}
