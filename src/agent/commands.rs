//! Commands from the broker: who may be answered, what is asked, and what was answered before. Takes bytes and time,
//! returns what to do; does no I/O.
//!
//! An id seen in the last ten minutes is answered again and never done again, since MQTT delivers at least once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ocelli_protocol::message::{CommandError, Outcome, Reply};
use ocelli_protocol::{Id, VERSION};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::pipeline::FPS_RANGE;

/// Largest request accepted, bytes.
pub const MAX_REQUEST_BYTES: usize = 4096;
/// How long an id is remembered.
pub const MEMORY: Duration = Duration::from_secs(600);
/// Ids remembered at most; more requests in [`MEMORY`] are refused, so that the rule above holds for all of them.
pub const MOST_REMEMBERED: usize = 512;

/// Largest answer that is remembered. A larger one, which only tells something, is made anew when it is asked for again.
const MAX_REMEMBERED_BYTES: usize = 16 * 1024;

/// The verbs of this agent.
const VERBS: &str = "ping, snapshot, set-rate, check-update, abort-trial, audit";

/// What a valid request asks for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// Answer.
    Ping,
    /// Publish the next frame of a stream as JPEG.
    Snapshot {
        /// The stream; `None`: the only one.
        stream: Option<String>,
    },
    /// Limit a stream.
    SetRate {
        /// The stream; `None`: the only one.
        stream: Option<String>,
        /// Frames a second; `None`: no limit.
        fps: Option<f32>,
    },
    /// Look for an update now.
    CheckUpdate,
    /// Go back to the confirmed model.
    AbortTrial,
    /// Tell rows of the audit log.
    Audit {
        /// Rows after this number.
        after: u64,
    },
}

/// What to do with a received request.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Received {
    /// Do it, then call [`Commands::finish`].
    Do {
        /// The request's id.
        id: Id,
        /// What is asked.
        command: Command,
    },
    /// Publish this answer; it is an error, nothing is done.
    Refuse {
        /// The request's id.
        id: Id,
        /// The answer's payload.
        payload: Vec<u8>,
        /// Code of the error.
        code: String,
    },
    /// Publish this answer again.
    Repeat {
        /// The request's id.
        id: Id,
        /// The answer's payload.
        payload: Vec<u8>,
    },
    /// Known, and not yet answered: the answer will come.
    Pending,
    /// Cannot be answered. With the reason, for log and audit.
    Ignore(String),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Done.
    pub done: u64,
    /// Answered with an error.
    pub refused: u64,
    /// Answered again.
    pub repeated: u64,
    /// Not answered.
    pub ignored: u64,
}

/// Memory of the last ten minutes.
#[derive(Debug, Default)]
pub struct Commands {
    seen: VecDeque<Seen>,
    counts: Counts,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    id: Id,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    /// It is being done.
    Pending,
    Known(Vec<u8>),
    /// Too large to be remembered.
    Large,
}

impl Commands {
    /// Takes a request as it arrived. `retained`: the broker kept it, so it was not sent to this run of the agent.
    pub fn receive(
        &mut self,
        verb: &str,
        payload: &[u8],
        retained: bool,
        now: Instant,
    ) -> Received {
        while self
            .seen
            .front()
            .is_some_and(|oldest| now.saturating_duration_since(oldest.at) >= MEMORY)
        {
            self.seen.pop_front();
        }
        let (id, arguments) = match parse(payload, retained) {
            Ok(request) => request,
            Err(reason) => {
                self.counts.ignored += 1;
                return Received::Ignore(reason);
            }
        };
        if let Some(seen) = self.seen.iter().find(|seen| seen.id == id) {
            match &seen.answer {
                Answer::Known(payload) => {
                    self.counts.repeated += 1;
                    return Received::Repeat { id, payload: payload.clone() };
                }
                Answer::Pending => {
                    self.counts.repeated += 1;
                    return Received::Pending;
                }
                Answer::Large => self.seen.retain(|seen| seen.id != id),
            }
        }
        if self.seen.len() >= MOST_REMEMBERED {
            let message =
                format!("more than {MOST_REMEMBERED} requests in ten minutes; ask again later");
            // Not remembered: nothing was done, so it may be asked again.
            self.counts.refused += 1;
            let code = "busy".to_owned();
            let payload = answer::<()>(&id, &Err(error("busy", message)));
            return Received::Refuse { id, payload, code };
        }
        self.seen.push_back(Seen { at: now, id: id.clone(), answer: Answer::Pending });
        match command(verb, &arguments) {
            Ok(command) => Received::Do { id, command },
            Err(refusal) => {
                let code = refusal.code.clone();
                let payload = self.finish::<()>(&id, &Err(refusal));
                Received::Refuse { id, payload, code }
            }
        }
    }

    /// Remembers what came of a request, and gives the payload of its answer.
    #[must_use]
    pub fn finish<T: Serialize>(&mut self, id: &Id, outcome: &Result<T, CommandError>) -> Vec<u8> {
        match outcome {
            Ok(_) => self.counts.done += 1,
            Err(_) => self.counts.refused += 1,
        }
        let payload = answer(id, outcome);
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.id == *id) {
            let small = payload.len() <= MAX_REMEMBERED_BYTES;
            seen.answer = if small { Answer::Known(payload.clone()) } else { Answer::Large };
        }
        payload
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

/// An error for an answer; see docs/agent.md for the codes.
#[must_use]
pub fn error(code: &str, message: impl Into<String>) -> CommandError {
    CommandError { code: code.to_owned(), message: message.into() }
}

fn answer<T: Serialize>(id: &Id, outcome: &Result<T, CommandError>) -> Vec<u8> {
    let outcome = match outcome {
        Ok(value) => Outcome::Ok(value),
        Err(error) => Outcome::Error(error.clone()),
    };
    let reply = Reply { v: VERSION, id: id.as_str().to_owned(), outcome };
    serde_json::to_vec(&reply).expect("an answer is a tree of strings and finite numbers")
}

/// The id, or why there can be no answer.
fn parse(payload: &[u8], retained: bool) -> Result<(Id, Map<String, Value>), String> {
    if retained {
        return Err("it is retained; publish commands without retain".to_owned());
    }
    if payload.len() > MAX_REQUEST_BYTES {
        return Err(format!(
            "it has {} bytes, at most {MAX_REQUEST_BYTES} are read",
            payload.len()
        ));
    }
    let mut arguments: Map<String, Value> = serde_json::from_slice(payload)
        .map_err(|error| format!("it is no JSON object ({error})"))?;
    match arguments.remove("id") {
        Some(Value::String(id)) => {
            Ok((id.parse().map_err(|error| format!("id {error}"))?, arguments))
        }
        Some(_) => Err("its id is no string".to_owned()),
        None => Err("it has no id".to_owned()),
    }
}

fn command(verb: &str, arguments: &Map<String, Value>) -> Result<Command, CommandError> {
    match verb {
        "ping" => Ok(Command::Ping),
        "snapshot" => Ok(Command::Snapshot { stream: stream(arguments)? }),
        "set-rate" => Ok(Command::SetRate { stream: stream(arguments)?, fps: fps(arguments)? }),
        "check-update" => Ok(Command::CheckUpdate),
        "abort-trial" => Ok(Command::AbortTrial),
        "audit" => match arguments.get("after") {
            None | Some(Value::Null) => Ok(Command::Audit { after: 0 }),
            Some(number) => match number.as_u64() {
                // The store counts in 63 bits.
                Some(after) if after <= u64::MAX >> 1 => Ok(Command::Audit { after }),
                _ => Err(error("bad-request", "after must be the number of a row")),
            },
        },
        _ => {
            let verb: String = verb.chars().take(40).collect();
            Err(error("unknown-verb", format!("\"{verb}\" is not known; known are {VERBS}")))
        }
    }
}

fn stream(arguments: &Map<String, Value>) -> Result<Option<String>, CommandError> {
    match arguments.get("stream") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name.clone())),
        Some(_) => Err(error("bad-request", "stream must be the name of a stream")),
    }
}

fn fps(arguments: &Map<String, Value>) -> Result<Option<f32>, CommandError> {
    let wanted = "fps must be a number from 0.01 to 1000, or null for no limit";
    match arguments.get("fps") {
        Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => {
            let fps = number.as_f64().map(|fps| fps as f32).filter(|fps| FPS_RANGE.contains(fps));
            fps.map(Some).ok_or_else(|| error("bad-request", format!("{wanted}, not {number}")))
        }
        _ => Err(error("bad-request", wanted)),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    #[test]
    fn a_valid_request_is_done() {
        let front = Some("front".to_owned());
        let cases = [
            ("ping", r#"{"id":"a"}"#, Command::Ping),
            ("ping", r#"{"id":"a","later":[1]}"#, Command::Ping),
            (
                "snapshot",
                r#"{"id":"a","stream":"front"}"#,
                Command::Snapshot { stream: front.clone() },
            ),
            ("snapshot", r#"{"id":"a"}"#, Command::Snapshot { stream: None }),
            (
                "set-rate",
                r#"{"id":"a","stream":"front","fps":2.5}"#,
                Command::SetRate { stream: front, fps: Some(2.5) },
            ),
            ("set-rate", r#"{"id":"a","fps":null}"#, Command::SetRate { stream: None, fps: None }),
            ("check-update", r#"{"id":"a"}"#, Command::CheckUpdate),
            ("abort-trial", r#"{"id":"a"}"#, Command::AbortTrial),
        ];
        for (verb, payload, command) in cases {
            let got = Commands::default().receive(verb, payload.as_bytes(), false, Instant::now());
            assert_eq!(got, Received::Do { id: id("a"), command }, "{verb} {payload}");
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_answered_with_its_code() {
        let cases = [
            ("query", r#"{"id":"a"}"#, "unknown-verb"),
            ("reboot", r#"{"id":"a"}"#, "unknown-verb"),
            ("snapshot", r#"{"id":"a","stream":7}"#, "bad-request"),
            ("set-rate", r#"{"id":"a"}"#, "bad-request"),
            ("set-rate", r#"{"id":"a","fps":"2"}"#, "bad-request"),
            ("set-rate", r#"{"id":"a","fps":0}"#, "bad-request"),
            ("set-rate", r#"{"id":"a","fps":-1}"#, "bad-request"),
            ("set-rate", r#"{"id":"a","fps":1001}"#, "bad-request"),
            ("set-rate", r#"{"id":"a","fps":1e300}"#, "bad-request"),
        ];
        for (verb, payload, want) in cases {
            let got = Commands::default().receive(verb, payload.as_bytes(), false, Instant::now());
            let Received::Refuse { payload: reply, code, .. } = &got else {
                panic!("{verb}: {got:?}")
            };
            let reply: Reply<Value> = serde_json::from_slice(reply).unwrap();
            let Outcome::Error(error) = reply.outcome else { panic!("{verb}: ok") };
            assert_eq!((error.code.as_str(), code.as_str()), (want, want), "{verb} {payload}");
        }
    }

    #[test]
    fn a_request_without_a_usable_id_is_ignored_with_a_reason() {
        let long = format!(r#"{{"id":"a","x":"{}"}}"#, "y".repeat(MAX_REQUEST_BYTES));
        let deep = format!("{}{}", "[".repeat(4000), "]".repeat(90));
        let cases = [
            ("", false, "no JSON object"),
            ("{", false, "no JSON object"),
            ("[1]", false, "no JSON object"),
            ("\u{0}\u{1}", false, "no JSON object"),
            (deep.as_str(), false, "no JSON object"),
            ("{}", false, "no id"),
            (r#"{"id":7}"#, false, "no string"),
            (r#"{"id":""}"#, false, "no identifier"),
            (r#"{"id":"A B"}"#, false, "no identifier"),
            (r#"{"id":"a/b"}"#, false, "no identifier"),
            (long.as_str(), false, "at most 4096"),
            (r#"{"id":"a"}"#, true, "retained"),
        ];
        for (payload, retained, says) in cases {
            let mut commands = Commands::default();
            let got = commands.receive("ping", payload.as_bytes(), retained, Instant::now());
            let Received::Ignore(reason) = &got else { panic!("{payload}: {got:?}") };
            assert!(reason.contains(says), "{payload}: {reason}");
            assert_eq!(commands.counts().ignored, 1);
        }
    }

    #[test]
    fn a_known_id_is_answered_again_for_ten_minutes_and_not_done_again() {
        let start = Instant::now();
        let ask = |commands: &mut Commands, after| {
            commands.receive("ping", br#"{"id":"a"}"#, false, start + Duration::from_secs(after))
        };
        let mut commands = Commands::default();
        assert_eq!(ask(&mut commands, 0), Received::Do { id: id("a"), command: Command::Ping });
        assert_eq!(ask(&mut commands, 1), Received::Pending);
        let payload = commands.finish(&id("a"), &Ok(7));
        assert_eq!(payload, br#"{"v":1,"id":"a","ok":7}"#);
        assert_eq!(ask(&mut commands, 599), Received::Repeat { id: id("a"), payload });
        assert!(matches!(ask(&mut commands, 600), Received::Do { .. }));
        let want = Counts { done: 1, refused: 0, repeated: 2, ignored: 0 };
        assert_eq!(commands.counts(), want);
    }

    #[test]
    fn large_answers_are_not_hoarded() {
        let start = Instant::now();
        let mut commands = Commands::default();
        let ask =
            |commands: &mut Commands| commands.receive("audit", br#"{"id":"a"}"#, false, start);
        let page = "x".repeat(256 * 1024);
        for _ in 0..3 {
            let command = Command::Audit { after: 0 };
            assert_eq!(ask(&mut commands), Received::Do { id: id("a"), command });
            assert!(commands.finish(&id("a"), &Ok(&page)).len() > page.len());
            assert_eq!(commands.seen.len(), 1);
        }
        assert!(matches!(commands.seen[0].answer, Answer::Large));
    }

    #[test]
    fn a_flood_is_refused_and_forgets_no_id() {
        let start = Instant::now();
        let mut commands = Commands::default();
        let ask = |commands: &mut Commands, number: usize, at| {
            let payload = format!(r#"{{"id":"n{number}"}}"#);
            commands.receive("ping", payload.as_bytes(), false, at)
        };
        for number in 0..MOST_REMEMBERED {
            assert!(matches!(ask(&mut commands, number, start), Received::Do { .. }));
        }
        let one_more = ask(&mut commands, MOST_REMEMBERED, start);
        assert!(matches!(one_more, Received::Refuse { ref code, .. } if code == "busy"));
        assert_eq!(ask(&mut commands, 0, start), Received::Pending);
        let later = ask(&mut commands, MOST_REMEMBERED, start + MEMORY);
        assert!(matches!(later, Received::Do { .. }));
        assert_eq!(commands.seen.len(), 1);
    }
}
