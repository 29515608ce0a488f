//! Temperatures of CPU and SoC, as the kernel tells them below `/sys/class`: thermal zones, then hwmon sensors.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most sensors read; boards have fewer than ten.
pub const MOST_SENSORS: usize = 32;
/// Values outside, °C, come from sensors that are switched off or broken.
const PLAUSIBLE: std::ops::RangeInclusive<f32> = -60.0..=200.0;

/// One temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Temperature {
    /// The kernel's name: type of the thermal zone (`cpu-thermal`), or chip and label (`nvme Composite`).
    pub name: String,
    /// Degrees Celsius.
    pub celsius: f32,
}

/// The board's thermometers. They are looked for once.
#[derive(Debug)]
pub struct Thermometers {
    sensors: Vec<(String, PathBuf)>,
}

impl Thermometers {
    /// Looks for thermometers below `class`, which is `/sys/class` on a device. None is no error.
    #[must_use]
    pub fn find(class: &Path) -> Self {
        let mut sensors = Vec::new();
        for zone in numbered(&class.join("thermal"), "thermal_zone") {
            if let Some(name) = line(&zone.join("type")) {
                sensors.push((name, zone.join("temp")));
            }
        }
        let zones: Vec<String> = sensors.iter().map(|(name, _)| hwmon_name(name)).collect();
        for chip in numbered(&class.join("hwmon"), "hwmon") {
            // The kernel shows every thermal zone as a hwmon chip too.
            if let Some(name) = line(&chip.join("name")).filter(|name| !zones.contains(name)) {
                sensors.extend(inputs(&chip, &name));
            }
        }
        sensors.truncate(MOST_SENSORS);
        Self { sensors }
    }

    /// Reads all of them. One that fails, or tells what cannot be, is left out.
    #[must_use]
    pub fn read(&self) -> Vec<Temperature> {
        let one = |(name, path): &(String, PathBuf)| {
            let millidegrees: i32 = line(path)?.parse().ok()?;
            let celsius = millidegrees as f32 / 1000.0;
            PLAUSIBLE.contains(&celsius).then(|| Temperature { name: name.clone(), celsius })
        };
        self.sensors.iter().filter_map(one).collect()
    }
}

/// The inputs of a hwmon chip with their names.
fn inputs(chip: &Path, name: &str) -> Vec<(String, PathBuf)> {
    let files = numbered(chip, "temp").into_iter();
    let inputs = files.filter(|path| path.to_string_lossy().ends_with("_input"));
    let named = |path: PathBuf| {
        let label = path.to_string_lossy().replace("_input", "_label");
        match line(Path::new(&label)) {
            Some(label) => (format!("{name} {label}"), path),
            None => (name.to_owned(), path),
        }
    };
    inputs.map(named).collect()
}

/// As `thermal_add_hwmon_sysfs` writes a zone's type (drivers/thermal/thermal_hwmon.c).
fn hwmon_name(zone: &str) -> String {
    zone.replace('-', "_")
}

/// Entries of a folder called `prefix` and a number, perhaps with more behind it, in order of the number.
fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let number = |path: &PathBuf| -> Option<u32> {
        let rest = path.file_name()?.to_str()?.strip_prefix(prefix)?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The one line of a small file; `None` when it cannot be read or is empty.
fn line(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(64).read_to_end(&mut bytes).ok()?;
    let text = std::str::from_utf8(&bytes).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn read(files: &[(&str, &str)]) -> Vec<(String, f32)> {
        let folder = tree(files);
        let read = Thermometers::find(folder.path()).read();
        read.into_iter().map(|found| (found.name, found.celsius)).collect()
    }

    fn named(name: &str, celsius: f32) -> (String, f32) {
        (name.to_owned(), celsius)
    }

    #[test]
    fn reads_zones_and_chips_in_order_and_each_once() {
        let found = read(&[
            ("thermal/thermal_zone10/type", "gpu-thermal\n"),
            ("thermal/thermal_zone10/temp", "41250\n"),
            ("thermal/thermal_zone2/type", "soc-thermal\n"),
            ("thermal/thermal_zone2/temp", "-5000\n"),
            ("thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("thermal/thermal_zone0/temp", "48312\n"),
            ("thermal/cooling_device0/type", "fan\n"),
            ("hwmon/hwmon0/name", "cpu_thermal\n"),
            ("hwmon/hwmon0/temp1_input", "48312\n"),
            ("hwmon/hwmon1/name", "nvme\n"),
            ("hwmon/hwmon1/temp1_input", "35850\n"),
            ("hwmon/hwmon1/temp1_label", "Composite\n"),
            ("hwmon/hwmon1/temp1_max", "84850\n"),
            ("hwmon/hwmon2/name", "rp1_adc\n"),
            ("hwmon/hwmon2/temp1_input", "52000\n"),
            ("hwmon/hwmon2/in1_input", "1400\n"),
        ]);
        let expected = [
            named("cpu-thermal", 48.312),
            named("soc-thermal", -5.0),
            named("gpu-thermal", 41.25),
            named("nvme Composite", 35.85),
            named("rp1_adc", 52.0),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        let zone =
            |temp| [("thermal/thermal_zone0/type", "cpu"), ("thermal/thermal_zone0/temp", temp)];
        for temp in
            ["", "\n", "hot", "48.3", "48312 C", "999999999999", "300000", "-274000", "0x10", "\0"]
        {
            assert_eq!(read(&zone(temp)), [], "{temp:?}");
        }
        assert_eq!(read(&zone("0")), [named("cpu", 0.0)]);
        assert_eq!(read(&[("thermal/thermal_zone0/type", "no temp file")]), []);
        assert_eq!(read(&[("thermal/thermal_zone0/temp", "48000")]), []);
        assert_eq!(read(&[("hwmon/hwmon0/temp1_input", "48000")]), []);
        assert_eq!(read(&[("hwmon/hwmonx/name", "no number")]), []);
        assert_eq!(read(&[]), []);
    }

    #[test]
    fn a_sensor_that_goes_is_missed_and_comes_back() {
        let folder =
            tree(&[("thermal/thermal_zone0/type", "cpu"), ("thermal/thermal_zone0/temp", "40000")]);
        let thermometers = Thermometers::find(folder.path());
        let file = folder.path().join("thermal/thermal_zone0/temp");
        fs::remove_file(&file).unwrap();
        assert_eq!(thermometers.read(), []);
        fs::write(&file, "41000").unwrap();
        assert_eq!(thermometers.read(), [Temperature { name: "cpu".into(), celsius: 41.0 }]);
    }

    #[test]
    fn the_number_of_sensors_is_bounded() {
        let files: Vec<(String, &str)> = (0..100)
            .flat_map(|n| {
                let file = |name| format!("thermal/thermal_zone{n}/{name}");
                [(file("type"), "zone"), (file("temp"), "1000")]
            })
            .collect();
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (&path[..], *text)).collect();
        assert_eq!(read(&files).len(), MOST_SENSORS);
    }
}
