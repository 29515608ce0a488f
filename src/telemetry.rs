//! Counters and latency histograms that hot paths write and the health report reads. No allocation, lock or log on
//! recording; nothing here asks for the time or knows a topic.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn add_one(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// The count since the agent's start.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Sub-buckets of an octave: a bucket is at most 1/16 of its value wide.
const STEPS: usize = 16;
/// log2 of [`STEPS`].
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Values from 2^27 µs (134 s) on share the last bucket.
const MAX_BITS: u32 = 27;
/// Buckets: `STEPS` exact ones, then `STEPS` an octave.
const BUCKETS: usize = STEPS + (MAX_BITS - STEP_BITS) as usize * STEPS;

/// Length of one slice of a window.
const SLICE: Duration = Duration::from_secs(10);
/// Whole slices that make up the window.
const WINDOW_SLICES: u64 = 6;
/// Slices kept: the window and the slice being written.
const SLICES: usize = WINDOW_SLICES as usize + 1;

/// Latencies of the last minute, from 1 µs to two minutes, at most 1/16 off.
///
/// One thread records; any thread reads. A reader that meets the writer at the turn of a slice may miss a few values.
#[derive(Debug)]
pub struct Histogram {
    start: Instant,
    slices: Box<[Slice; SLICES]>,
}

#[derive(Debug)]
struct Slice {
    /// Number of the slice since the start, plus one; 0 when never written.
    turn: AtomicU64,
    max_us: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

/// What a [`Histogram`] held at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// Values in the window.
    pub count: u64,
    /// Median, µs.
    pub p50_us: u64,
    /// 90th percentile, µs.
    pub p90_us: u64,
    /// 99th percentile, µs.
    pub p99_us: u64,
    /// Largest, µs.
    pub max_us: u64,
}

impl Histogram {
    /// An empty histogram whose window begins at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { start, slices: Box::new(std::array::from_fn(|_| Slice::default())) }
    }

    /// Adds one value. Never allocates.
    pub fn record(&self, now: Instant, value: Duration) {
        let turn = turn_at(self.start, now);
        let slice = &self.slices[(turn % SLICES as u64) as usize];
        if slice.turn.load(Relaxed) != turn {
            slice.clear();
            slice.turn.store(turn, Relaxed);
        }
        let value_us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        slice.buckets[bucket_of(value_us)].fetch_add(1, Relaxed);
        slice.max_us.fetch_max(value_us, Relaxed);
    }

    /// Forgets everything. To be called by the recording thread.
    pub fn clear(&self) {
        for slice in self.slices.iter() {
            slice.turn.store(0, Relaxed);
            slice.clear();
        }
    }

    /// Percentiles of the last minute.
    #[must_use]
    pub fn percentiles(&self, now: Instant) -> Percentiles {
        let mut sums = [0_u64; BUCKETS];
        let mut max_us = 0;
        let newest = turn_at(self.start, now);
        for slice in self.slices.iter() {
            if !in_window(slice.turn.load(Relaxed), newest) {
                continue;
            }
            max_us = max_us.max(slice.max_us.load(Relaxed));
            for (sum, bucket) in sums.iter_mut().zip(&slice.buckets) {
                *sum += u64::from(bucket.load(Relaxed));
            }
        }
        let count = sums.iter().sum();
        let at = |percent: u64| quantile(&sums, count, percent).min(max_us);
        Percentiles { count, p50_us: at(50), p90_us: at(90), p99_us: at(99), max_us }
    }
}

impl Default for Slice {
    fn default() -> Self {
        Self {
            turn: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl Slice {
    fn clear(&self) {
        self.max_us.store(0, Relaxed);
        self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }
}

/// Events a second over the last minute.
///
/// One thread marks; any thread reads.
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    /// Turn and count of each slice.
    slices: [(AtomicU64, AtomicU64); SLICES],
}

impl Meter {
    /// A meter whose window begins at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { start, slices: Default::default() }
    }

    /// Counts one event. Never allocates.
    pub fn mark(&self, now: Instant) {
        let turn = turn_at(self.start, now);
        let (slice_turn, count) = &self.slices[(turn % SLICES as u64) as usize];
        if slice_turn.load(Relaxed) != turn {
            count.store(0, Relaxed);
            slice_turn.store(turn, Relaxed);
        }
        count.fetch_add(1, Relaxed);
    }

    /// Events a second over the window, or since the start while that is shorter.
    #[must_use]
    pub fn per_second(&self, now: Instant) -> f32 {
        let newest = turn_at(self.start, now);
        let recent = self.slices.iter().filter(|(turn, _)| in_window(turn.load(Relaxed), newest));
        let events: u64 = recent.map(|(_, count)| count.load(Relaxed)).sum();
        let elapsed = now.saturating_duration_since(self.start);
        let into_slice = elapsed.as_secs_f32() % SLICE.as_secs_f32();
        let window = (SLICE * WINDOW_SLICES as u32).as_secs_f32() + into_slice;
        let seconds = elapsed.as_secs_f32().min(window);
        if seconds > 0.0 { events as f32 / seconds } else { 0.0 }
    }
}

/// Number of the slice that `now` falls into, from 1.
fn turn_at(start: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(start).as_secs() / SLICE.as_secs() + 1
}

/// Whether a slice belongs to the window: the slice being written and the whole ones before it.
fn in_window(turn: u64, newest: u64) -> bool {
    turn != 0 && turn <= newest && newest - turn <= WINDOW_SLICES
}

/// Index of the bucket of a value: exact below `STEPS`, then `STEPS` buckets an octave.
fn bucket_of(value_us: u64) -> usize {
    if value_us < STEPS as u64 {
        return value_us as usize;
    }
    let octave = u64::BITS - 1 - value_us.leading_zeros() - STEP_BITS;
    let step = (value_us >> octave) as usize - STEPS;
    (STEPS + octave as usize * STEPS + step).min(BUCKETS - 1)
}

/// Largest value that falls into a bucket.
fn upper_bound(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (octave, step) = ((bucket - STEPS) / STEPS, (bucket - STEPS) % STEPS);
    (((STEPS + step + 1) as u64) << octave) - 1
}

/// Smallest bucket bound with at least `percent` of all values at or below it.
fn quantile(sums: &[u64; BUCKETS], count: u64, percent: u64) -> u64 {
    let rank = (count * percent).div_ceil(100).max(1);
    let mut seen = 0;
    for (bucket, sum) in sums.iter().enumerate() {
        seen += sum;
        if seen >= rank {
            return upper_bound(bucket);
        }
    }
    0
}

/// The moment of a thread's last progress, written by it and read by the watchdog.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    last_us: AtomicU64,
}

impl Heartbeat {
    /// A heartbeat that counts `start` as its first beat.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { start, last_us: AtomicU64::new(0) }
    }

    /// Notes progress.
    pub fn beat(&self, now: Instant) {
        let since_start = now.saturating_duration_since(self.start);
        self.last_us.fetch_max(u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Time since the last progress.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        let since_start = now.saturating_duration_since(self.start);
        since_start.saturating_sub(Duration::from_micros(self.last_us.load(Relaxed)))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let mut wrong = Vec::new();
        for value in (0..4096).chain((12..27).flat_map(|bits| [1 << bits, (1 << bits) + 12345])) {
            let bucket = bucket_of(value);
            let below = if bucket == 0 { None } else { Some(upper_bound(bucket - 1)) };
            let width = upper_bound(bucket) - below.unwrap_or(0);
            if value > upper_bound(bucket) || below.is_some_and(|below| value <= below) {
                wrong.push((value, "outside"));
            }
            if width > (value / 16).max(1) {
                wrong.push((value, "too wide"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let start = Instant::now();
        let histogram = Histogram::new(start);
        for value in 1..=1000 {
            histogram.record(start, Duration::from_micros(value * 10));
        }
        let seen = histogram.percentiles(start);
        assert_eq!((seen.count, seen.max_us), (1000, 10_000));
        for (got, want) in [(seen.p50_us, 5000), (seen.p90_us, 9000), (seen.p99_us, 9900)] {
            assert!(got >= want && got <= want + want / 16, "{got} for {want}");
        }
        assert_eq!(Histogram::new(start).percentiles(start), Percentiles::default());
    }

    #[test]
    fn a_minute_later_values_are_forgotten() {
        let start = Instant::now();
        let histogram = Histogram::new(start);
        histogram.record(start, Duration::from_millis(500));
        histogram.record(start + Duration::from_secs(65), Duration::from_millis(1));
        let counts = [0, 65, 69, 70, 124, 131]
            .map(|seconds| histogram.percentiles(start + Duration::from_secs(seconds)).count);
        assert_eq!(counts, [1, 2, 2, 1, 1, 0]);
        // The slot of the first slice is used again after seven slices, without its old content.
        histogram.record(start + Duration::from_secs(75), Duration::from_millis(2));
        assert!(histogram.percentiles(start + Duration::from_secs(75)).max_us <= 2000);
    }

    #[test]
    fn a_meter_tells_events_a_second() {
        let start = Instant::now();
        let meter = Meter::new(start);
        for event in 0..2000 {
            meter.mark(start + Duration::from_millis(event * 100));
        }
        let now = start + Duration::from_millis(200_000);
        assert!((meter.per_second(now) - 10.0).abs() < 0.2, "{}", meter.per_second(now));
        assert_eq!(meter.per_second(now + Duration::from_secs(100)), 0.0);
    }

    #[test]
    fn a_heartbeat_ages_until_the_next_beat() {
        let start = Instant::now();
        let heartbeat = Heartbeat::new(start);
        let later = start + Duration::from_secs(7);
        assert_eq!(heartbeat.age(later), Duration::from_secs(7));
        heartbeat.beat(later);
        assert_eq!(heartbeat.age(later + Duration::from_secs(1)), Duration::from_secs(1));
        heartbeat.beat(start);
        assert_eq!(heartbeat.age(later), Duration::ZERO);
    }
}
