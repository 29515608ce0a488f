//! Opens what is wired to the board and keeps it going: light, power meter, thermometers, trigger.

use std::path::Path;
use std::time::{Duration, Instant};

use ocelli_protocol::health::Power;

use crate::board::{
    self, Error, Indicator, PowerMeter, State, Thermometers, Trigger, Watchdog, accept, linux,
};
use crate::clock::Clock;
use crate::pipeline::{Control, Gate};

/// Longest wait of the trigger thread before it looks whether the pipeline still runs.
const TICK: Duration = Duration::from_millis(200);

/// Tells a state, or goes out.
type Light = Box<dyn FnMut(Option<State>, Instant)>;
type Meter = Box<dyn FnMut(Instant, u64) -> Option<Power>>;

/// What is there.
pub(super) struct Hardware {
    light: Option<Light>,
    meter: Option<Meter>,
    thermometers: Thermometers,
}

impl Hardware {
    /// Opens light and meter, and looks for thermometers.
    ///
    /// # Errors
    /// [`Error`] for a part that is required and not there, or settings that cannot be.
    pub(super) fn open(settings: &board::Settings, now: Instant) -> Result<Self, Error> {
        let mut light = None;
        if let Some(wired) = &settings.indicator {
            let pin = linux::open_output(&wired.line, wired.polarity);
            light = accept(pin, wired.presence)?.map(|pin| {
                let mut indicator = Indicator::new(pin, wired.polarity, now);
                Box::new(move |state, now| match state {
                    Some(state) => {
                        indicator.set(state, now);
                        indicator.tick(now);
                    }
                    None => indicator.off(),
                }) as Light
            });
        }
        let mut meter = None;
        if let Some(wired) = &settings.power_meter {
            let opened = linux::open_i2c(&wired.bus, wired.address)
                .and_then(|bus| PowerMeter::open(bus, wired, now));
            meter = accept(opened, wired.presence)?.map(|mut meter| {
                Box::new(move |now, inferences| {
                    let reading = meter.poll(now, inferences)?;
                    Some(Power {
                        watts: reading.watts,
                        volts: reading.volts,
                        joules: meter.energy().joules(),
                        joules_per_inference: meter.energy().joules_per_inference(),
                    })
                }) as Meter
            });
        }
        Ok(Self { light, meter, thermometers: Thermometers::find(Path::new("/sys/class")) })
    }

    /// Whether [`Hardware::show`] must be called often.
    pub(super) fn has_light(&self) -> bool {
        self.light.is_some()
    }

    /// Lets the light tell a state; to be called every 60 ms.
    pub(super) fn show(&mut self, state: State, now: Instant) {
        if let Some(light) = &mut self.light {
            light(Some(state), now);
        }
    }

    /// Switches the light off: the agent ends in order.
    pub(super) fn go_dark(&mut self, now: Instant) {
        if let Some(light) = &mut self.light {
            light(None, now);
        }
    }

    /// Reads the power meter; to be called every second.
    pub(super) fn power(&mut self, now: Instant, inferences: u64) -> Option<Power> {
        self.meter.as_mut().and_then(|meter| meter(now, inferences))
    }

    /// Reads the thermometers.
    pub(super) fn temperatures(&self) -> Vec<board::Temperature> {
        self.thermometers.read()
    }
}

/// Arms the hardware watchdog, where one is configured.
///
/// # Errors
/// [`Error`] when it is required and not there.
pub(super) fn arm_watchdog(settings: &board::Settings) -> Result<Option<Watchdog>, Error> {
    let Some(wired) = &settings.watchdog else { return Ok(None) };
    accept(Watchdog::arm(&wired.device, Path::new("/sys/class/watchdog")), wired.presence)
}

/// Starts the thread that turns edges of the trigger line into frames of the gated streams. It ends with the pipeline.
///
/// # Errors
/// [`Error`] when the line is required and not there.
pub(super) fn watch_trigger(
    settings: &board::Settings,
    streams: Vec<(String, Gate)>,
    control: Control,
    clock: std::sync::Arc<dyn Clock>,
) -> Result<(), Error> {
    let gated: Vec<String> = streams
        .into_iter()
        .filter(|(_, gate)| *gate == Gate::Triggered)
        .map(|(name, _)| name)
        .collect();
    let Some(wired) = &settings.trigger else {
        if !gated.is_empty() {
            log::warn!("streams wait for a trigger, but [board] has none: {}", gated.join(", "));
        }
        return Ok(());
    };
    let Some(edges) = accept(linux::Edges::watch(&wired.line), wired.presence)? else {
        return Ok(());
    };
    let mut trigger = Trigger::new(wired.edge, wired.debounce);
    let body = move || {
        while !control.is_stopping() {
            let Some(event) = edges.next(TICK) else { continue };
            trigger.feed(event);
            while trigger.take().is_some() {
                for stream in &gated {
                    // The names are those of the pipeline.
                    let _ = control.trigger(stream, clock.now());
                }
            }
        }
    };
    let spawned = std::thread::Builder::new().name("trigger-feed".to_owned()).spawn(body);
    spawned.map(drop).map_err(|error| Error::Unavailable {
        device: wired.line.to_string(),
        seen: format!("no thread to watch it: {error}"),
        cure: "raise the limit of tasks (TasksMax of the service)".to_owned(),
    })
}
