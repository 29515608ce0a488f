//! Without a broker: results as JSON lines on standard output, one line a frame.

use std::io::{self, Write};
use std::time::Duration;

use ocelli_protocol::message::FrameResult;
use ocelli_protocol::{Id, VERSION};

use crate::agent::AgentError;
use crate::agent::signals::Signals;
use crate::pipeline::{CameraState, Control, Report, Reports};

use crate::clock::Clock;

/// Name of the device in results that go nowhere.
pub const DEVICE: &str = "local";

/// Writes results until a signal, the end of all cameras, or until nobody reads them.
pub(super) async fn print(
    mut reports: Reports,
    control: &Control,
    boot_id: &str,
    clock: &dyn Clock,
    out: &mut dyn Write,
) -> Result<(), AgentError> {
    let mut signals = Signals::new()?;
    let streams: Vec<Id> = control.stream_names().cloned().collect();
    let mut ticker = tokio::time::interval(Duration::from_secs(1));
    let mut seq = 0;
    let mut stopping = false;
    loop {
        tokio::select! {
            () = signals.next() => {
                if stopping {
                    return Err(AgentError::Interrupted);
                }
                stopping = true;
                control.request_stop();
            }
            _ = ticker.tick() => {
                if let Some(why) = hopeless(control, clock) {
                    return Err(AgentError::Camera(why));
                }
            }
            report = reports.recv() => {
                let Some(report) = report else { break };
                seq += 1;
                match write_line(&report, &streams[report.stream], seq, boot_id, out) {
                    Ok(()) => {}
                    // `ocelli run | head`: who read the lines has enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => return Err(AgentError::Output(error)),
                }
            }
        }
    }
    control.failure().map_or(Ok(()), |why| Err(AgentError::Inference(why)))
}

fn write_line(
    report: &Report,
    stream: &Id,
    seq: u64,
    boot_id: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let result = FrameResult {
        v: VERSION,
        device: DEVICE.to_owned(),
        stream: stream.as_str().to_owned(),
        seq,
        boot_id: boot_id.to_owned(),
        frame: report.frame,
        captured_at: report.captured_at.to_string(),
        model: (*report.model).clone(),
        backend: report.backend.clone(),
        latency_us: report.latency,
        findings: report.findings.clone(),
    };
    serde_json::to_writer(&mut *out, &result)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Why no camera will ever bring a frame, where that is so. One that is away may come back and is waited for.
fn hopeless(control: &Control, clock: &dyn Clock) -> Option<String> {
    let mut reason = None;
    for stream in control.streams(clock.now()) {
        match stream.camera {
            CameraState::Unusable(why) => reason = Some(why),
            _ => return None,
        }
    }
    reason
}
