//! The supervisor's rules, without I/O: events and the time go in, what to do comes out.
//!
//! | what | then |
//! |---|---|
//! | the agent ends | started again after 1, 2, 4, … 60 s; the pause is short again after it has proved itself |
//! | it was ready and is silent for longer than `silence` | with a hardware watchdog: no longer fed, the board is reset; else killed |
//! | it never gets ready, or ends again and again, for `patience` | the board starts anew, which may cure what a restart does not |
//! | ready and alive for `proof` | the boot is confirmed |

use std::time::{Duration, Instant};

/// Times.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest time between two signs of life of an agent that is ready; given to it as `WATCHDOG_USEC`.
    pub silence: Duration,
    /// How long it must be ready and alive for the boot to count.
    pub proof: Duration,
    /// How long the board is kept up without a sign of life.
    pub patience: Duration,
    /// First pause before a restart.
    pub back_off: Duration,
    /// Whether there is a hardware watchdog.
    pub hardware: bool,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            silence: seconds(30),
            proof: seconds(30),
            patience: seconds(600),
            back_off: seconds(1),
            hardware: false,
        }
    }
}

/// The longest pause before a restart.
const LONGEST: Duration = Duration::from_secs(60);
/// Time between two feedings; common hardware takes 16 s at most.
const FEEDING: Duration = Duration::from_secs(2);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The agent wrote to the socket.
    Said(String),
    /// The agent ended or could not be started.
    Ended,
    /// The boot is confirmed.
    Confirmed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Start the agent.
    Start,
    /// Feed the hardware watchdog.
    Feed,
    /// Told once when feeding ends.
    Starve(&'static str),
    /// Kill the agent; it is started again.
    Kill(&'static str),
    /// Confirm the boot.
    Confirm,
    /// Start the board anew.
    Reboot(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Down { until: Instant },
    Starting,
    Ready { since: Instant },
}

/// The supervisor's mind.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    agent: Agent,
    pause: Duration,
    /// The last sign of life, or the start.
    alive: Instant,
    fed: Option<Instant>,
    starved: bool,
    confirmed: bool,
}

impl Watch {
    /// Begins with the agent not started.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            agent: Agent::Down { until: now },
            pause: limits.back_off,
            alive: now,
            fed: None,
            starved: false,
            confirmed: false,
        }
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Said(text) => text.lines().map(str::trim).for_each(|line| self.hear(line, now)),
            Event::Ended => {
                self.agent = Agent::Down { until: now + self.pause };
                self.pause = (self.pause * 2).min(LONGEST);
            }
            Event::Confirmed => self.confirmed = true,
        }
    }

    fn hear(&mut self, line: &str, now: Instant) {
        match (line, self.agent) {
            ("READY=1", Agent::Starting) => {
                self.agent = Agent::Ready { since: now };
                self.alive = now;
            }
            ("WATCHDOG=1", Agent::Ready { .. }) => self.alive = now,
            _ => {}
        }
    }

    /// What to do now; to be asked a few times a second.
    pub fn decide(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        if let Agent::Down { until } = self.agent
            && now >= until
        {
            self.agent = Agent::Starting;
            acts.push(Act::Start);
        }
        let silent = now - self.alive;
        match self.agent {
            Agent::Ready { .. } if silent > self.limits.silence => {
                self.hung("the agent hangs: no WATCHDOG=1 in time", &mut acts);
            }
            Agent::Ready { since } => {
                if self.alive - since >= self.limits.proof {
                    self.pause = self.limits.back_off;
                    if !self.confirmed {
                        acts.push(Act::Confirm);
                    }
                }
                self.feed(now, &mut acts);
            }
            _ if silent > self.limits.patience => {
                // Once; should the reboot fail, the next is asked for after as long again.
                self.alive = now;
                acts.push(Act::Reboot("no agent that is ready for too long"));
            }
            _ => self.feed(now, &mut acts),
        }
        acts
    }

    fn hung(&mut self, reason: &'static str, acts: &mut Vec<Act>) {
        if !self.limits.hardware {
            self.agent = Agent::Starting;
            acts.push(Act::Kill(reason));
        } else if !self.starved {
            self.starved = true;
            acts.push(Act::Starve(reason));
        }
    }

    fn feed(&mut self, now: Instant, acts: &mut Vec<Act>) {
        self.starved = false;
        if self.limits.hardware && self.fed.is_none_or(|fed| now - fed >= FEEDING) {
            self.fed = Some(now);
            acts.push(Act::Feed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    struct Scene {
        watch: Watch,
        now: Instant,
    }

    impl Scene {
        fn new(hardware: bool) -> Self {
            let now = clock::now();
            Self { watch: Watch::new(Limits { hardware, ..Limits::default() }, now), now }
        }

        fn says(&mut self, text: &str) {
            self.watch.handle(&Event::Said(text.to_owned()), self.now);
        }

        /// Lets seconds pass, asking each second: what was to be done, and how often was fed.
        fn pass(&mut self, seconds: u64) -> (Vec<Act>, usize) {
            let (mut acts, mut fed) = (Vec::new(), 0);
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                for act in self.watch.decide(self.now) {
                    if act == Act::Feed { fed += 1 } else { acts.push(act) }
                }
            }
            (acts, fed)
        }

        /// The same while the agent says that it lives.
        fn live(&mut self, seconds: u64) -> (Vec<Act>, usize) {
            let (mut acts, mut fed) = (Vec::new(), 0);
            for _ in 0..seconds {
                self.says("WATCHDOG=1");
                let (more, food) = self.pass(1);
                acts.extend(more);
                fed += food;
            }
            (acts, fed)
        }
    }

    #[test]
    fn a_boot_is_confirmed_once_after_the_time_of_proof() {
        let mut scene = Scene::new(true);
        assert_eq!(scene.pass(1).0, [Act::Start]);
        assert_eq!(scene.pass(40).0, [], "not ready: nothing to confirm");
        scene.says("READY=1\nSTATUS=model loaded");
        assert_eq!(scene.live(30).0, []);
        assert_eq!(scene.live(1).0, [Act::Confirm]);
        scene.watch.handle(&Event::Confirmed, scene.now);
        assert_eq!(scene.live(1000).0, []);
    }

    #[test]
    fn a_confirmation_that_failed_is_tried_again() {
        let mut scene = Scene::new(true);
        scene.pass(1);
        scene.says("READY=1");
        assert_eq!(scene.live(33).0, [Act::Confirm; 3]);
    }

    #[test]
    fn a_hung_agent_starves_the_hardware_watchdog() {
        let mut scene = Scene::new(true);
        scene.pass(1);
        scene.says("READY=1");
        assert!(scene.live(20).1 >= 9, "fed while it lives");
        let (acts, fed) = scene.pass(60);
        assert!(matches!(acts[..], [Act::Starve(_)]), "{acts:?}");
        assert!(fed <= 16, "fed {fed} times, which must end with the limit of 30 s");
        assert_eq!(scene.pass(100), (vec![], 0));
    }

    #[test]
    fn without_a_hardware_watchdog_it_is_killed_and_started_again() {
        let mut scene = Scene::new(false);
        scene.pass(1);
        scene.says("READY=1");
        scene.live(5);
        let (acts, fed) = scene.pass(31);
        assert!(matches!(acts[..], [Act::Kill(_)]), "{acts:?}");
        assert_eq!(fed, 0);
        scene.watch.handle(&Event::Ended, scene.now);
        assert_eq!(scene.pass(1).0, [Act::Start]);
    }

    #[test]
    fn restarts_come_after_longer_and_longer_pauses() {
        let mut scene = Scene::new(true);
        scene.pass(1);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            scene.watch.handle(&Event::Ended, scene.now);
            let start = scene.now;
            while scene.pass(1).0.is_empty() {}
            pauses.push((scene.now - start).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        scene.says("READY=1");
        scene.live(31);
        scene.watch.handle(&Event::Ended, scene.now);
        assert_eq!(scene.pass(1).0, [Act::Start], "short again after it has proved itself");
    }

    #[test]
    fn a_board_whose_agent_never_gets_ready_starts_anew() {
        for hardware in [true, false] {
            let mut scene = Scene::new(hardware);
            let start = scene.now;
            let mut others = Vec::new();
            while others.is_empty() && scene.now < start + Duration::from_secs(700) {
                let (acts, _) = scene.pass(1);
                if acts.contains(&Act::Start) {
                    scene.watch.handle(&Event::Ended, scene.now);
                }
                others.extend(acts.into_iter().filter(|act| *act != Act::Start));
            }
            assert!(matches!(others[..], [Act::Reboot(_)]), "{others:?}");
            assert_eq!((scene.now - start).as_secs(), 601);
        }
    }

    #[test]
    fn what_is_said_before_the_agent_is_started_confirms_nothing() {
        let mut scene = Scene::new(true);
        scene.says("READY=1");
        assert_eq!(scene.live(100).0, [Act::Start]);
    }
}
