//! From the configuration to what each module is told.

use std::path::Path;
use std::time::Duration;

use ocelli_protocol::Id;
use ocelli_protocol::topic::RepoTopics;

use super::{Config, Durability, Mqtt, Outbox, Overflow, Part, Plugin, PowerChip, Stream};
use crate::pipeline::Gate;
use crate::{agent, board, camera, inference, mqtt, report, store, update};

/// Longest time that an orderly end may spend on delivering; the rest stays in the store.
const FLUSH: Duration = Duration::from_secs(5);
/// Largest root of trust read, bytes.
pub const MAX_ROOT_BYTES: u64 = 256 * 1024;

impl Stream {
    /// The camera and which of its frames are looked at.
    fn settings(&self, pictures: &Path) -> agent::StreamSettings {
        let source = self.camera.as_deref().unwrap_or(pictures).to_string_lossy().into_owned();
        let looped = if self.repeat { camera::Loop::Forever } else { camera::Loop::Once };
        let [width, height] = [self.size.map(|size| size.0), self.size.map(|size| size.1)];
        let fps = Some(self.fps);
        agent::StreamSettings {
            name: self.name.clone(),
            camera: camera::Settings {
                looped,
                fps,
                width,
                height,
                ..camera::Settings::new(source)
            },
            gate: if self.triggered { Gate::Triggered } else { Gate::Open },
        }
    }
}

impl Outbox {
    fn settings(&self) -> report::OutboxSettings {
        report::OutboxSettings {
            durability: match self.durability {
                Durability::Spill => report::Durability::Spill,
                Durability::Results => report::Durability::Results,
            },
            overflow: match self.overflow {
                Overflow::DropOldest => report::Overflow::DropOldest,
                Overflow::Block => report::Overflow::Block,
            },
            max_bytes: self.max_bytes,
            max_age: self.max_age,
            ..report::OutboxSettings::default()
        }
    }
}

impl Mqtt {
    /// How to reach the broker.
    #[must_use]
    pub fn settings(&self) -> mqtt::Settings {
        let client = |(chain, key): &(_, _)| mqtt::ClientCertificate {
            chain: std::path::PathBuf::clone(chain),
            key: std::path::PathBuf::clone(key),
        };
        mqtt::Settings {
            tls: self.tls.as_ref().map(|tls| mqtt::TlsSettings {
                ca: tls.ca.clone(),
                client: tls.identity.as_ref().map(client),
            }),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            keep_alive: self.keep_alive,
            backoff: mqtt::BackoffSettings { max: self.retry_max, ..Default::default() },
            ..mqtt::Settings::new(&self.client_id, &self.host, self.port)
        }
    }
}

impl Config {
    /// Where updates come from, and how a new model is tried.
    ///
    /// # Errors
    /// The first root cannot be read, or this program does not know where it lies.
    fn update_settings(&self) -> Result<Option<agent::UpdateSettings>, String> {
        let (Some(config), Some(mqtt)) = (&self.update, &self.mqtt) else { return Ok(None) };
        let root = crate::file::read_regular(&config.root, MAX_ROOT_BYTES);
        let root = root.map_err(|error| {
            let path = config.root.display();
            format!("update.root: {path}: {error}; copy the repository's 1.root.json there")
        })?;
        let program = std::env::current_exe()
            .map_err(|error| format!("where is this program, to try models with? {error}"))?;
        let probation = update::Probation {
            frames: config.probation_frames,
            time: config.probation,
            longest: config.probation.max(update::Probation::default().longest),
        };
        let clock = match config.require_clock {
            true => update::ClockRule::Refuse,
            false => update::ClockRule::UseFloor,
        };
        let words = |ids: &[Id]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        Ok(Some(agent::UpdateSettings {
            folder: self.store.join("update"),
            session: update::Settings {
                topic_root: mqtt.root.clone(),
                repo: config.repo.clone(),
                model: config.model.clone(),
                channel: config.channel.clone(),
                device: self.device.id.clone(),
                labels: self.device.labels.clone(),
                first_root: root,
                clock,
                probation,
            },
            trial: update::trial::Settings {
                program,
                runner: config.runner.clone(),
                delegates: self.delegates_inside(),
                labels: words(&self.device.labels),
                timeout: config.trial_timeout,
            },
        }))
    }

    /// A trial is not the place for vendors' code: accelerators prove themselves when the model takes over.
    fn delegates_inside(&self) -> Vec<String> {
        let inside = inference::delegate_names();
        self.known_delegates().into_iter().filter(|name| inside.contains(name)).collect()
    }

    /// A delegate of another build is told by `ocelli check`; what it would run goes to the next one.
    fn known_delegates(&self) -> Vec<String> {
        let mut known = inference::delegate_names();
        known.extend(self.plugins.iter().map(|plugin| plugin.name.to_string()));
        let delegates = self.model.delegates.iter().map(ToString::to_string);
        delegates.filter(|name| known.contains(name)).collect()
    }

    /// Everything the agent needs. `model` and `pictures` stand in where the configuration names none.
    ///
    /// # Errors
    /// The root of trust of `[update]` cannot be read.
    pub fn agent_settings(&self, model: &Path, pictures: &Path) -> Result<agent::Settings, String> {
        let repository = |mqtt: &Mqtt| {
            self.update.as_ref().map(|update| RepoTopics::new(&mqtt.root, &update.repo))
        };
        Ok(agent::Settings {
            streams: self.streams.iter().map(|stream| stream.settings(pictures)).collect(),
            model: agent::ModelSettings {
                path: self.model.path.clone().unwrap_or_else(|| model.to_owned()),
                delegates: self.known_delegates(),
                processor: self.model.processor.clone(),
                deadline: self.model.deadline,
                profile: self.model.by_measurement.then(|| self.store.join("delegates.json")),
                accelerators: self.accelerators(),
            },
            delivery: self.mqtt.as_ref().map(|mqtt| agent::DeliverySettings {
                device: self.device.id.clone(),
                root: mqtt.root.clone(),
                mqtt: mqtt.settings(),
                outbox: self.outbox.settings(),
                store: store::Settings::in_dir(&self.store),
                repository: repository(mqtt),
                flush: FLUSH,
            }),
            updates: self.update_settings()?,
            board: self.board_settings(),
            health_interval: self.health_interval,
            watchdog: agent::WatchdogLimits::default(),
        })
    }

    fn accelerators(&self) -> agent::Accelerators {
        let plugin = |plugin: &Plugin| inference::WorkerSettings {
            options: plugin.options.clone(),
            program: self.npu.worker.clone().unwrap_or_else(inference::worker_beside),
            runner: self.npu.runner.clone(),
            sandbox: plugin.sandbox,
            memory_bytes: plugin.memory,
            cache_dir: plugin.cache.clone(),
            patience: plugin.patience,
            ..inference::WorkerSettings::new(plugin.name.as_str(), &plugin.library)
        };
        agent::Accelerators {
            plugins: self.plugins.iter().map(plugin).collect(),
            shadow_every: self.npu.shadow_every,
            closeness: self.npu.closeness,
            misfit: agent::Misfit::StandIn,
        }
    }

    fn board_settings(&self) -> board::Settings {
        let presence = |part: Part| match self.board.required.contains(&part) {
            true => board::Presence::Required,
            false => board::Presence::Optional,
        };
        let line =
            |line: &super::GpioLine| board::Line { chip: line.chip.clone(), offset: line.line };
        board::Settings {
            indicator: self.board.indicator.as_ref().map(|indicator| board::IndicatorSettings {
                line: line(indicator),
                polarity: board::Polarity::default(),
                presence: presence(Part::Indicator),
            }),
            trigger: self.board.trigger.as_ref().map(|trigger| board::TriggerSettings {
                line: line(trigger),
                edge: board::Edge::Rising,
                debounce: Duration::from_millis(20),
                presence: presence(Part::Trigger),
            }),
            power_meter: self.board.power_meter.as_ref().map(|meter| board::PowerMeterSettings {
                bus: meter.bus.clone(),
                address: meter.address,
                chip: match meter.chip {
                    PowerChip::Ina219 => board::Chip::Ina219,
                    PowerChip::Ina226 => board::Chip::Ina226,
                },
                shunt_ohm: meter.shunt_ohm,
                presence: presence(Part::PowerMeter),
            }),
            watchdog: self.board.watchdog.as_ref().map(|device| board::WatchdogSettings {
                device: device.clone(),
                presence: presence(Part::Watchdog),
            }),
        }
    }
}
