//! Captures from a camera and prints what came: mode, numbers, latencies, checksums. For trying a camera on a board, and for the
//! test with the kernel's vivid driver (`tests/v4l2/run.sh`).
//!
//! `v4l2-capture SOURCE [--size WxH] [--fps N] [--format CODE] [--frames N] [--save FILE] [--patience SECONDS]`
//!
//! `--save` writes the bytes of the last frame. Errors do not end it until there was no frame for `--patience`
//! (default 0: the first error ends it).

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ocelli::camera::v4l2::V4l2Camera;
use ocelli::camera::{self, Camera, Capture, Settings};
use ocelli::clock::{Clock, SystemClock};
use ocelli::frame::Frame;

struct Arguments {
    settings: Settings,
    format: Option<[u8; 4]>,
    frames: u64,
    save: Option<String>,
    patience: Duration,
}

fn parse(mut words: VecDeque<String>) -> Result<Arguments, Box<dyn Error>> {
    let source = words.pop_front().ok_or("name a camera, such as /dev/video0")?;
    let settings = Settings::new(source);
    let (format, save, patience) = (None, None, Duration::ZERO);
    let mut found = Arguments { settings, format, frames: 10, save, patience };
    while let Some(option) = words.pop_front() {
        let value = words.pop_front().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--size" => {
                let (width, height) = value.split_once('x').ok_or("--size is WIDTHxHEIGHT")?;
                found.settings.width = Some(width.parse()?);
                found.settings.height = Some(height.parse()?);
            }
            "--fps" => found.settings.fps = Some(value.parse()?),
            "--format" => found.format = Some(value.as_bytes().try_into()?),
            "--frames" => found.frames = value.parse()?,
            "--save" => found.save = Some(value),
            "--patience" => found.patience = Duration::from_secs(value.parse()?),
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    Ok(found)
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let clock = Arc::new(SystemClock);
    let mut camera: Box<dyn Camera> = match arguments.format {
        Some(code) => Box::new(V4l2Camera::open_format(&arguments.settings, code, clock.clone())?),
        None => camera::open(&arguments.settings, clock.clone())?,
    };
    describe(&*camera, out)?;
    let mut frame = Frame::empty(clock.now());
    let (begin, mut last) = (clock.now(), clock.now());
    let mut captured = 0;
    while captured < arguments.frames {
        match camera.capture(&mut frame, Duration::from_secs(1)) {
            Ok(Capture::Ended) => break,
            Ok(Capture::TimedOut) => writeln!(out, "timeout")?,
            Ok(outcome) => {
                captured += 1;
                last = clock.now();
                if outcome == Capture::Restarted {
                    writeln!(out, "restarted")?;
                    describe(&*camera, out)?;
                }
                print(&frame, last.saturating_duration_since(frame.captured), out)?;
            }
            Err(error) => {
                writeln!(out, "error: {error}")?;
                if clock.now().saturating_duration_since(last) >= arguments.patience {
                    return Err(error.into());
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
    let seconds = clock.now().saturating_duration_since(begin).as_secs_f64();
    writeln!(out, "frames={captured} damaged={} seconds={seconds:.2}", camera.frames_damaged())?;
    if let Some(path) = &arguments.save {
        std::fs::write(path, &frame.data)?;
    }
    Ok(())
}

fn describe(camera: &dyn Camera, out: &mut dyn Write) -> std::io::Result<()> {
    let info = camera.info();
    let fps = info.fps.map_or("unknown".into(), |fps| format!("{fps:.2}"));
    writeln!(
        out,
        "open source={} camera=\"{}\" format={:?} size={}x{} fps={fps}",
        info.source, info.description, info.format, info.width, info.height
    )
}

fn print(frame: &Frame, age: Duration, out: &mut dyn Write) -> std::io::Result<()> {
    // FNV-1a: enough to see whether two frames are the same.
    let sum = frame.data.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    writeln!(
        out,
        "frame number={} format={:?} size={}x{} stride={} bytes={} age_us={} fnv={sum:016x}",
        frame.number,
        frame.format,
        frame.width,
        frame.height,
        frame.stride,
        frame.data.len(),
        age.as_micros()
    )?;
    out.flush()
}

fn main() -> ExitCode {
    let words = std::env::args().skip(1).collect();
    let done = parse(words).and_then(|arguments| run(&arguments, &mut std::io::stdout().lock()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "v4l2-capture: {error}"); // nowhere else to say it
            ExitCode::FAILURE
        }
    }
}
