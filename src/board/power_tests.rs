//! The power meter against exact I2C transfers from the datasheets, and energy against sums done by hand.

use embedded_hal::i2c::NoAcknowledgeSource;
use embedded_hal_mock::eh1::i2c::{Mock, Transaction};

use crate::board::Presence;
use crate::clock::{Clock, SystemClock};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings(chip: Chip, shunt_ohm: f32) -> PowerMeterSettings {
    let bus = "/dev/i2c-1".into();
    PowerMeterSettings { bus, address: 0x40, chip, shunt_ohm, presence: Presence::Optional }
}

fn write(register: u8, value: u16) -> Transaction {
    let [high, low] = value.to_be_bytes();
    Transaction::write(0x40, vec![register, high, low])
}

fn read(register: u8, value: u16) -> Transaction {
    Transaction::write_read(0x40, vec![register], value.to_be_bytes().to_vec())
}

fn set_up(chip: Chip) -> Vec<Transaction> {
    match chip {
        Chip::Ina219 => vec![write(0, 0x8000), read(0, 0x399f), write(0, 0x3fff)],
        Chip::Ina226 => vec![write(0, 0x8000), read(0, 0x4127), write(0, 0x4727)],
    }
}

#[test]
fn reads_volts_and_amperes_as_the_datasheets_say() {
    use Chip::{Ina219, Ina226};
    type Case = (&'static str, Chip, f32, u16, u16, [f64; 2]);
    let cases: &[Case] = &[
        // SBOS448G §8.6.3.1: -320 mV is 8300h; §8.6.3.2: bits 15 to 3, 4 mV; CNVR (bit 1) set.
        ("ina219, 5 V, 1 A", Ina219, 0.1, 10_000, (1250 << 3) | 2, [5.0, 1.0]),
        ("ina219, back flow", Ina219, 0.1, 0xf830, (3000 << 3) | 2, [12.0, -0.2]),
        ("ina219, nothing", Ina219, 0.1, 0, 2, [0.0, 0.0]),
        ("ina219, just in range", Ina219, 0.01, 31_999, (8000 << 3) | 2, [32.0, 31.999]),
        // SBOS547, table "Configure/Measure/Calculate Example": 2570h is 11.98 V, 1F40h at 2 mOhm is 10 A.
        ("ina226, the datasheet's example", Ina226, 0.002, 0x1f40, 0x2570, [11.98, 10.0]),
        // SBOS547B §7.1: -80 mV reads 8300h.
        ("ina226, back flow", Ina226, 0.1, 0x8300, 4000, [5.0, -0.8]),
    ];
    for (name, chip, shunt_ohm, shunt, bus, [volts, amperes]) in cases {
        let mut transfers = set_up(*chip);
        transfers.extend([read(1, *shunt), read(2, *bus)]);
        let mut i2c = Mock::new(&transfers);
        let start = SystemClock.now();
        let mut meter = PowerMeter::open(i2c.clone(), &settings(*chip, *shunt_ohm), start).unwrap();
        assert_eq!(meter.poll(start, 0), None, "{name}: nothing converted yet");
        let reading = meter.poll(start + SECOND, 0).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        assert!(near(reading.volts, *volts), "{name}: {reading:?}");
        assert!(near(reading.amperes, *amperes), "{name}: {reading:?}");
        assert!(near(reading.watts, volts * amperes), "{name}: {reading:?}");
        i2c.done();
    }
}

#[test]
fn a_chip_that_is_not_there_or_another_is_refused_with_the_cure() {
    let nack = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);
    let cases = [
        (Chip::Ina219, vec![write(0, 0x8000).with_error(nack)], "no chip answers"),
        (Chip::Ina219, vec![write(0, 0x8000), read(0, 0x4127)], "configuration 0x4127"),
        (Chip::Ina226, vec![write(0, 0x8000), read(0, 0x399f)], "configuration 0x399f"),
        (
            Chip::Ina226,
            vec![write(0, 0x8000).with_error(ErrorKind::Bus)],
            "I2C transfer failed: Bus error",
        ),
    ];
    for (chip, transfers, seen_part) in cases {
        let mut i2c = Mock::new(&transfers);
        let opened = PowerMeter::open(i2c.clone(), &settings(chip, 0.1), SystemClock.now());
        let error = opened.err().expect("refused");
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("at 0x40 on /dev/i2c-1"), "{message}");
        assert!(message.contains(seen_part), "{message}");
        i2c.done();
    }
}

#[test]
fn impossible_settings_are_refused_before_the_bus_is_touched() {
    let wrong = [
        (0x3f, 0.1, "address is 0x3f"),
        (0x50, 0.1, "address is 0x50"),
        (0x40, 0.0, "shunt_ohm is 0"),
        (0x40, -0.1, "shunt_ohm is -0.1"),
        (0x40, f32::NAN, "shunt_ohm is NaN"),
        (0x40, f32::INFINITY, "shunt_ohm is inf"),
    ];
    for (address, shunt_ohm, said) in wrong {
        let mut i2c = Mock::new(&[]);
        let wanted = PowerMeterSettings { address, ..settings(Chip::Ina219, shunt_ohm) };
        let opened = PowerMeter::open(i2c.clone(), &wanted, SystemClock.now());
        let error = opened.err().expect("refused");
        assert!(matches!(error, Error::Setting { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        i2c.done();
    }
}

#[test]
fn bus_errors_are_counted_waited_out_and_followed_by_a_new_set_up() {
    let nack = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);
    let mut transfers = set_up(Chip::Ina219);
    transfers.extend([read(1, 10_000), read(2, 1250 << 3)]);
    transfers.extend([read(1, 10_000), read(2, 0).with_error(ErrorKind::Bus)]);
    transfers.extend([write(0, 0x8000).with_error(nack)]);
    transfers.extend(set_up(Chip::Ina219));
    transfers.extend([read(1, 10_000), read(2, 1250 << 3)]);
    let mut i2c = Mock::new(&transfers);
    let start = SystemClock.now();
    let mut meter = PowerMeter::open(i2c.clone(), &settings(Chip::Ina219, 0.1), start).unwrap();
    let mut read_at = Vec::new();
    for tenth in 1..=70_u32 {
        if meter.poll(start + SECOND / 10 * tenth * 5, 0).is_some() {
            read_at.push(tenth * 5);
        }
        if read_at.len() == 2 {
            break;
        }
    }
    // Reading at 0.5 s; failures at 1 s and 2 s; set up at 4 s; reading at 4.5 s.
    assert_eq!(read_at, [5, 45]);
    assert_eq!(meter.errors(), 2);
    i2c.done();
}

#[test]
fn a_current_out_of_range_gives_no_reading() {
    let cases = [
        ("INA219 OVF", Chip::Ina219, 10_000, (1250 << 3) | 3),
        ("INA219 shunt at its end", Chip::Ina219, 32_000, 1250 << 3),
        ("INA219 shunt at its other end", Chip::Ina219, 0x8300, 1250 << 3),
        ("INA226 shunt at its end", Chip::Ina226, 0x7fff, 4000),
        ("INA226 shunt at its other end", Chip::Ina226, 0x8000, 4000),
    ];
    for (name, chip, shunt, bus) in cases {
        let mut transfers = set_up(chip);
        transfers.extend([read(1, shunt), read(2, bus)]);
        let mut i2c = Mock::new(&transfers);
        let start = SystemClock.now();
        let mut meter = PowerMeter::open(i2c.clone(), &settings(chip, 0.1), start).unwrap();
        assert_eq!(meter.poll(start + SECOND, 0), None, "{name}");
        assert_eq!(meter.errors(), 1, "{name}");
        i2c.done();
    }
}

#[test]
fn energy_is_the_area_below_the_power() {
    let start = SystemClock.now();
    let at = |tenths: u32| start + SECOND / 10 * tenths;
    type Step = (u32, f64, u64);
    let cases: &[(&str, &[Step], f64, Option<f64>)] = &[
        ("one reading", &[(0, 5.0, 0)], 0.0, None),
        ("constant", &[(0, 5.0, 0), (10, 5.0, 20), (20, 5.0, 40)], 10.0, Some(0.25)),
        ("ramp", &[(0, 0.0, 0), (20, 4.0, 8)], 4.0, Some(0.5)),
        ("no inference", &[(0, 5.0, 7), (10, 5.0, 7)], 5.0, None),
        ("bridged", &[(0, 2.0, 0), (50, 2.0, 10)], 10.0, Some(1.0)),
        (
            "hole left out",
            &[(0, 2.0, 0), (10, 2.0, 10), (61, 9.0, 999), (71, 2.0, 1009)],
            2.0 + 5.5,
            Some(7.5 / 20.0),
        ),
        ("back flow is none", &[(0, -4.0, 0), (10, 4.0, 4)], 2.0, Some(0.5)),
        ("not a number", &[(0, 2.0, 0), (10, f64::NAN, 5), (20, 2.0, 10)], 4.0, Some(0.4)),
        ("counter restarted", &[(0, 2.0, 100), (10, 2.0, 3), (20, 2.0, 7)], 4.0, Some(1.0)),
        ("time back", &[(20, 2.0, 0), (10, 2.0, 0), (20, 2.0, 4)], 2.0, Some(0.5)),
    ];
    for (name, readings, joules, each) in cases {
        let mut energy = Energy::default();
        for (tenths, watts, inferences) in *readings {
            energy.add(at(*tenths), *watts, *inferences);
        }
        assert!((energy.joules() - joules).abs() < 1e-9, "{name}: {}", energy.joules());
        let found = energy.joules_per_inference();
        match (found, each) {
            (Some(found), Some(each)) => assert!((found - each).abs() < 1e-9, "{name}: {found}"),
            _ => assert_eq!(found, *each, "{name}"),
        }
    }
}

#[test]
fn a_new_period_goes_on_from_the_last_reading() {
    let start = SystemClock.now();
    let mut energy = Energy::default();
    energy.add(start, 2.0, 0);
    energy.add(start + SECOND, 2.0, 10);
    energy.restart();
    assert_eq!((energy.joules(), energy.joules_per_inference()), (0.0, None));
    energy.add(start + SECOND * 2, 2.0, 14);
    assert_eq!((energy.joules(), energy.joules_per_inference()), (2.0, Some(0.5)));
}
