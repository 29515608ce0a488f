//! INA219 and INA226 in the supply line: volts, amperes, watts, and joules per inference.
//!
//! Register by register from the datasheets (Texas Instruments SBOS448G and SBOS547B). Current and power are
//! calculated here from the shunt and bus voltages, so the chips' calibration registers are not used: a chip that
//! loses them in a dip of its supply goes on measuring right, with less averaging.

use std::time::{Duration, Instant};

use embedded_hal::i2c::{Error as _, ErrorKind, I2c};

use super::retry::Retry;
use super::{Error, PowerMeterSettings};

/// A kind of power meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chip {
    /// 12 bits, up to 26 V, shunt up to 320 mV.
    Ina219,
    /// 16 bits, up to 36 V, shunt up to 81.92 mV.
    Ina226,
}

/// Configuration register; SBOS448G §8.6.2.1, SBOS547B §7.1.
const CONFIGURATION: u8 = 0x00;
/// Shunt voltage register, two's complement; SBOS448G §8.6.3.1, SBOS547B §7.1.
const SHUNT_VOLTAGE: u8 = 0x01;
/// Bus voltage register; SBOS448G §8.6.3.2, SBOS547B §7.1.
const BUS_VOLTAGE: u8 = 0x02;
/// RST bit of the configuration register: all registers to their reset values.
const RESET: u16 = 0x8000;
/// OVF bit of the INA219's bus voltage register: its arithmetic overflowed.
const OVERFLOW: u16 = 0x0001;
/// A first averaged conversion of both voltages: 2 x 68.1 ms (INA219), 64 x 2.2 ms (INA226).
const SETTLING: Duration = Duration::from_millis(150);

/// What differs between the chips.
struct Registers {
    /// Configuration after a reset; tells the chips apart.
    reset_value: u16,
    /// Our configuration: both voltages continuously, averaged.
    configuration: u16,
    /// Volts per step of the shunt voltage.
    shunt_step: f64,
    /// Largest shunt reading that is no overflow.
    shunt_limit: u16,
    /// Bits of the bus voltage register below the value.
    bus_shift: u32,
    /// Volts per step of the bus voltage.
    bus_step: f64,
    /// Flags in the bus voltage register that make the reading void.
    overflow: u16,
}

impl Chip {
    fn registers(self) -> Registers {
        match self {
            // 32 V range, shunt range 320 mV, both averaged over 128 samples.
            Self::Ina219 => Registers {
                reset_value: 0x399f,
                configuration: 0x3fff,
                shunt_step: 10e-6,
                shunt_limit: 31_999,
                bus_shift: 3,
                bus_step: 4e-3,
                overflow: OVERFLOW,
            },
            // 64 averages of 1.1 ms for each voltage.
            Self::Ina226 => Registers {
                reset_value: 0x4127,
                configuration: 0x4727,
                shunt_step: 2.5e-6,
                shunt_limit: 32_766,
                bus_shift: 0,
                bus_step: 1.25e-3,
                overflow: 0,
            },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ina219 => "ina219",
            Self::Ina226 => "ina226",
        }
    }
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Voltage of the supply, volts.
    pub volts: f64,
    /// Current through the shunt, amperes; negative when it flows from IN- to IN+.
    pub amperes: f64,
    /// Power, watts, with the current's sign.
    pub watts: f64,
}

/// Why there is no reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Bus(ErrorKind),
    OtherChip(u16),
    Overflow,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bus(ErrorKind::NoAcknowledge(_)) => formatter.write_str("no chip answers"),
            Self::Bus(kind) => write!(formatter, "I2C transfer failed: {kind}"),
            Self::OtherChip(value) => {
                write!(formatter, "another chip answers (configuration 0x{value:04x} after reset)")
            }
            Self::Overflow => formatter.write_str("current beyond the range of chip and shunt"),
        }
    }
}

/// A power meter on an I2C bus. After start nothing about it is fatal: errors are counted, and it is tried again
/// with back-off, set up anew.
pub struct PowerMeter<I> {
    i2c: I,
    device: String,
    address: u8,
    chip: Chip,
    shunt_ohm: f64,
    /// When the first conversion after set-up is through; `None` when it must be set up.
    settled: Option<Instant>,
    retry: Retry,
    energy: Energy,
}

impl<I: I2c> PowerMeter<I> {
    /// Resets the chip, makes sure that it is the right kind, and starts continuous measuring.
    ///
    /// # Errors
    /// [`Error::Setting`] for an impossible address or shunt; [`Error::Unavailable`] when the chip does not answer,
    /// or is another.
    pub fn open(i2c: I, settings: &PowerMeterSettings, now: Instant) -> Result<Self, Error> {
        let setting = |setting, value, expected| Err(Error::Setting { setting, value, expected });
        let PowerMeterSettings { address, chip, shunt_ohm, .. } = *settings;
        if !(0x40..=0x4f).contains(&address) {
            return setting("address", format!("0x{address:02x}"), "0x40 to 0x4f");
        }
        if !(shunt_ohm.is_finite() && shunt_ohm > 0.0) {
            return setting("shunt_ohm", shunt_ohm.to_string(), "above 0");
        }
        let device = format!("{} at 0x{address:02x} on {}", chip.name(), settings.bus.display());
        let mut meter = Self {
            i2c,
            device,
            address,
            chip,
            shunt_ohm: f64::from(shunt_ohm),
            settled: None,
            retry: Retry::default(),
            energy: Energy::default(),
        };
        meter.set_up(now).map_err(|fault| Error::Unavailable {
            device: meter.device.clone(),
            seen: fault.to_string(),
            cure: match fault {
                Fault::OtherChip(_) => "set chip and address to what is fitted".to_owned(),
                _ => {
                    "check wiring, supply and address (i2cdetect -y lists what answers)".to_owned()
                }
            },
        })?;
        Ok(meter)
    }

    /// Reads the chip; `inferences` is the number done so far. To be called about once a second.
    ///
    /// `None` when there is no reading: right after set-up, when the current is out of range, or while an error is
    /// being waited out.
    pub fn poll(&mut self, now: Instant, inferences: u64) -> Option<Reading> {
        if !self.retry.ready(now) {
            return None;
        }
        match self.attempt(now) {
            Ok(reading) => {
                let reading = reading?;
                self.retry.succeeded(&self.device);
                self.energy.add(now, reading.watts, inferences);
                Some(reading)
            }
            Err(fault) => {
                self.settled = None;
                self.retry.failed(now, &self.device, &fault);
                None
            }
        }
    }

    /// Energy measured so far.
    #[must_use]
    pub fn energy(&self) -> &Energy {
        &self.energy
    }

    /// Readings that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.retry.errors()
    }

    fn attempt(&mut self, now: Instant) -> Result<Option<Reading>, Fault> {
        match self.settled {
            Some(settled) if now >= settled => self.measure().map(Some),
            Some(_) => Ok(None),
            None => self.set_up(now).map(|()| None),
        }
    }

    fn set_up(&mut self, now: Instant) -> Result<(), Fault> {
        let registers = self.chip.registers();
        self.write(CONFIGURATION, RESET)?;
        let configuration = self.read(CONFIGURATION)?;
        if configuration != registers.reset_value {
            return Err(Fault::OtherChip(configuration));
        }
        self.write(CONFIGURATION, registers.configuration)?;
        self.settled = now.checked_add(SETTLING);
        Ok(())
    }

    fn measure(&mut self) -> Result<Reading, Fault> {
        let registers = self.chip.registers();
        let shunt = self.read(SHUNT_VOLTAGE)?.cast_signed();
        let bus = self.read(BUS_VOLTAGE)?;
        if shunt.unsigned_abs() > registers.shunt_limit || bus & registers.overflow != 0 {
            return Err(Fault::Overflow);
        }
        let volts = f64::from(bus >> registers.bus_shift) * registers.bus_step;
        let amperes = f64::from(shunt) * registers.shunt_step / self.shunt_ohm;
        Ok(Reading { volts, amperes, watts: volts * amperes })
    }

    fn read(&mut self, register: u8) -> Result<u16, Fault> {
        let mut value = [0; 2];
        self.i2c
            .write_read(self.address, &[register], &mut value)
            .map_err(|error| Fault::Bus(error.kind()))?;
        Ok(u16::from_be_bytes(value))
    }

    fn write(&mut self, register: u8, value: u16) -> Result<(), Fault> {
        let [high, low] = value.to_be_bytes();
        self.i2c
            .write(self.address, &[register, high, low])
            .map_err(|error| Fault::Bus(error.kind()))
    }
}

/// Energy over time, and the inferences done with it.
///
/// Between two readings at most 5 s apart power is taken to go in a straight line. A longer hole is left out
/// altogether, its inferences too, so that their ratio stays right. Power that flows back counts as none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Energy {
    last: Option<(Instant, f64, u64)>,
    joules: f64,
    inferences: u64,
}

impl Energy {
    /// Longest time between two readings that is still bridged.
    pub const LONGEST_GAP: Duration = Duration::from_secs(5);

    /// Takes a reading: power in watts, and the number of inferences done so far.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ocelli::board::Energy;
    /// use ocelli::clock::{Clock, SystemClock};
    /// let now = SystemClock.now();
    /// let mut energy = Energy::default();
    /// energy.add(now, 4.0, 100);
    /// energy.add(now + Duration::from_secs(1), 6.0, 110);
    /// assert_eq!(energy.joules(), 5.0);
    /// assert_eq!(energy.joules_per_inference(), Some(0.5));
    /// ```
    pub fn add(&mut self, now: Instant, watts: f64, inferences: u64) {
        if !watts.is_finite() {
            return;
        }
        let watts = watts.max(0.0);
        if let Some((before, last_watts, last_inferences)) = self.last {
            let time = now.saturating_duration_since(before);
            if time <= Self::LONGEST_GAP {
                self.joules += (last_watts + watts) / 2.0 * time.as_secs_f64();
                let done = inferences.saturating_sub(last_inferences);
                self.inferences = self.inferences.saturating_add(done);
            }
        }
        self.last = Some((now, watts, inferences));
    }

    /// Energy measured, joules.
    #[must_use]
    pub fn joules(&self) -> f64 {
        self.joules
    }

    /// Energy of the whole board per inference, joules; `None` before the first inference.
    #[must_use]
    pub fn joules_per_inference(&self) -> Option<f64> {
        (self.inferences > 0).then(|| self.joules / self.inferences as f64)
    }

    /// Starts a new period; the last reading stays its beginning.
    pub fn restart(&mut self) {
        self.joules = 0.0;
        self.inferences = 0;
    }
}

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
