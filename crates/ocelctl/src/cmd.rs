//! `ocelctl cmd`: one request to a device, and its answer.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use ocelli_protocol::Id;
use ocelli_protocol::message::{Outcome, Reply, Request};
use ocelli_protocol::topic::{DeviceTopic, DeviceTopics, parse_device_topic};
use rumqttc::QoS;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::connection::{Broker, Link, nonce};
use crate::files::Place;
use crate::{Failure, absent, files, written};

/// Arguments of `ocelctl cmd`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Verbs: ping, snapshot, set-rate, check-update, abort-trial. A device answers an unknown verb with the list.\n\n\
    Examples:\n  ocelctl cmd dock-3 ping\n  ocelctl cmd dock-3 snapshot --arg stream=front --save front.jpg\n  \
    ocelctl cmd dock-3 set-rate --arg stream=front --arg fps=2"
)]
pub(crate) struct Arguments {
    /// Device to ask
    device: Id,
    /// What to do
    verb: Id,
    /// Argument of the verb; a value that is JSON is sent as such, any other as text
    #[arg(long = "arg", value_name = "KEY=VALUE", value_parser = parse_argument)]
    arguments: Vec<(String, Value)>,
    /// Longest wait for the answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Write the picture that `snapshot` brings into this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    #[command(flatten)]
    broker: Broker,
}

fn parse_argument(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() || key == "id" {
        return Err("the key must not be empty or \"id\"".to_owned());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}

/// What has arrived so far.
#[derive(Default)]
struct Answers {
    reply: Option<Reply<Value>>,
    picture: Option<Vec<u8>>,
}

/// Sends the request and waits.
pub(crate) async fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let topics = DeviceTopics::new(&arguments.broker.root, &arguments.device);
    let id: Id =
        format!("ocelctl-{:016x}", nonce()).parse().map_err(|error| Failure(format!("{error}")))?;
    let mut filters = vec![topics.reply(&id)];
    if arguments.save.is_some() {
        filters.push(format!("{}/device/{}/snapshot/+", arguments.broker.root, arguments.device));
    }
    let mut link = arguments.broker.connect(&filters).await?;
    let fields: Map<String, Value> = arguments.arguments.iter().cloned().collect();
    let request = serde_json::to_vec(&Request { id: id.to_string(), arguments: fields })
        .map_err(|error| Failure(error.to_string()))?;
    let topic = topics.command(arguments.verb.as_str());
    let asked = link.client.try_publish(&topic, QoS::AtLeastOnce, false, request);
    asked.map_err(|error| Failure(format!("cannot publish to {topic}: {error}")))?;
    let mut answers = Answers::default();
    let deadline = Instant::now() + arguments.timeout;
    let waited = tokio::time::timeout_at(deadline, wait(&mut link, &arguments, &mut answers));
    match waited.await {
        Ok(outcome) => outcome?,
        Err(_) if answers.reply.is_some() => {
            let (device, waited) =
                (&arguments.device, humantime::format_duration(arguments.timeout));
            return Err(Failure(format!(
                "{device} answered, but no picture came within {waited}; is its camera there? See ocelctl watch {device}"
            )));
        }
        Err(_) => {
            let Arguments { broker, device, timeout, .. } = &arguments;
            return Err(absent::no_answer(broker, device, *timeout).await);
        }
    }
    conclude(&arguments, answers, out)
}

async fn wait(
    link: &mut Link,
    arguments: &Arguments,
    answers: &mut Answers,
) -> Result<(), Failure> {
    loop {
        let mut lost = None;
        let message = link.next(|why| lost = Some(why.to_owned())).await?;
        if let Some(why) = lost {
            // The request may have been lost with the connection: say so instead of waiting for nothing.
            return Err(Failure(format!("connection lost while waiting for the answer: {why}")));
        }
        match parse_device_topic(&arguments.broker.root, &message.topic) {
            Some((_, DeviceTopic::Reply(_))) => {
                let reply = serde_json::from_slice(&message.payload);
                answers.reply =
                    Some(reply.map_err(|error| Failure(format!("unreadable answer: {error}")))?);
            }
            Some((_, DeviceTopic::Snapshot(_))) => answers.picture = Some(message.payload),
            _ => {}
        }
        let refused =
            matches!(&answers.reply, Some(reply) if matches!(reply.outcome, Outcome::Error(_)));
        let complete = arguments.save.is_none() || answers.picture.is_some();
        if refused || (answers.reply.is_some() && complete) {
            return Ok(());
        }
    }
}

fn conclude(arguments: &Arguments, answers: Answers, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(reply) = answers.reply else {
        return Err(Failure(format!("{} gave no answer", arguments.device)));
    };
    match reply.outcome {
        Outcome::Ok(value) => {
            let text =
                serde_json::to_string_pretty(&value).map_err(|error| Failure(error.to_string()))?;
            written(writeln!(out, "{text}"))?;
        }
        Outcome::Error(error) => {
            return Err(Failure(format!(
                "{} refused: {} ({})",
                arguments.device, error.message, error.code
            )));
        }
    }
    if let (Some(path), Some(picture)) = (&arguments.save, answers.picture) {
        files::write(path, &picture, Place::Public)
            .map_err(|failure| Failure(format!("{failure}; check --save")))?;
        written(writeln!(out, "{}: {} bytes", path.display(), picture.len()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_json_where_they_can_be() {
        assert_eq!(parse_argument("fps=2.5").unwrap(), ("fps".to_owned(), Value::from(2.5)));
        assert_eq!(parse_argument("stream=front").unwrap().1, Value::from("front"));
        assert_eq!(parse_argument("on=true").unwrap().1, Value::from(true));
        assert!(parse_argument("fps").is_err());
        assert!(parse_argument("id=x").is_err());
    }
}
