//! What the system tells of energy and memory.

use std::fs;
use std::path::{Path, PathBuf};

/// Energy that all processor packages used so far, where the kernel's powercap (RAPL) tells and we may read it.
pub(super) fn energy_joules() -> Option<f64> {
    let packages =
        fs::read_dir("/sys/class/powercap").ok()?.filter_map(Result::ok).filter(|zone| {
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
            let name = zone.file_name();
            name.to_str().is_some_and(|name| name.matches(':').count() == 1)
        });
    let energy = packages.filter_map(|zone| {
        let text = fs::read_to_string(zone.path().join("energy_uj")).ok()?;
        text.trim().parse::<f64>().ok()
    });
    let total: f64 = energy.sum();
    (total > 0.0).then_some(total / 1e6)
}

/// The most memory that this process had resident, where the system tells.
pub(super) fn peak_rss_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib / 102.4).round() / 10.0)
}

/// A power sensor of the board's supply: an INA2xx as the kernel's hwmon shows it.
pub(super) struct PowerSensor(PathBuf);

impl PowerSensor {
    /// The first there is.
    pub(super) fn find() -> Option<Self> {
        Self::below(Path::new("/sys/class/hwmon"))
    }

    fn below(folder: &Path) -> Option<Self> {
        let chips = fs::read_dir(folder).ok()?.filter_map(|chip| Some(chip.ok()?.path()));
        let is_meter = |chip: &PathBuf| {
            let name = fs::read_to_string(chip.join("name")).unwrap_or_default();
            name.starts_with("ina") && chip.join("power1_input").exists()
        };
        chips.into_iter().find(is_meter).map(|chip| Self(chip.join("power1_input")))
    }

    /// Now; the file holds microwatts.
    pub(super) fn watt(&self) -> Option<f64> {
        let text = fs::read_to_string(&self.0).ok()?;
        text.trim().parse::<f64>().ok().map(|microwatt| microwatt / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_meter_is_found_among_other_sensors() {
        let folder = tempfile::tempdir().expect("a folder");
        for (chip, name) in [("hwmon0", "cpu_thermal"), ("hwmon1", "ina226")] {
            fs::create_dir(folder.path().join(chip)).expect("a folder");
            fs::write(folder.path().join(chip).join("name"), name).expect("written");
            fs::write(folder.path().join(chip).join("power1_input"), "4250000\n").expect("written");
        }
        let sensor = PowerSensor::below(folder.path()).expect("a sensor");
        assert!(sensor.0.starts_with(folder.path().join("hwmon1")));
        assert_eq!(sensor.watt(), Some(4.25));
        assert!(PowerSensor::below(&folder.path().join("hwmon0")).is_none());
    }
}
