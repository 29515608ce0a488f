//! The newest frame of each stream, between the capture threads and the inference thread. Drop-oldest.
//!
//! Two buffers a stream go round: one waits here, or is taken back to be filled anew, and one is being looked at.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::frame::Frame;

/// One waiting place a stream.
#[derive(Debug)]
pub(super) struct LatestFrames {
    places: Mutex<Places>,
    changed: Condvar,
    taken: Condvar,
}

#[derive(Debug)]
struct Places {
    streams: Vec<Place>,
    /// Stream that is asked first next time.
    next: usize,
    /// Threads that wait for a frame.
    takers: usize,
}

#[derive(Debug)]
struct Place {
    frame: Frame,
    offered: Instant,
    waiting: bool,
    open: bool,
}

/// What became of a frame that was offered or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Offer {
    /// No other one was lost.
    Stored,
    /// An older one, which nobody looked at, was lost.
    Replaced,
}

/// What came of waiting for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Taken {
    /// A frame of this stream.
    Frame {
        /// Index of the stream.
        stream: usize,
        /// When it was offered.
        offered: Instant,
    },
    /// None in time.
    Nothing,
    /// None will come: all streams have ended.
    Closed,
}

impl LatestFrames {
    pub(super) fn new(streams: usize, now: Instant) -> Self {
        let place = || Place { frame: Frame::empty(now), offered: now, waiting: false, open: true };
        let streams = std::iter::repeat_with(place).take(streams).collect();
        let places = Mutex::new(Places { streams, next: 0, takers: 0 });
        Self { places, changed: Condvar::new(), taken: Condvar::new() }
    }

    /// Takes a stream's buffer out of its place to be filled anew, and says whether a frame was lost with it.
    ///
    /// A frame that somebody waits for is left to him first, for `patience` at most: a source without a pace of its own would
    /// else take back each frame before it is seen.
    pub(super) fn reclaim(&self, stream: usize, frame: &mut Frame, patience: Duration) -> Offer {
        let wanted = |places: &mut Places| places.streams[stream].waiting && places.takers > 0;
        let waited = self.taken.wait_timeout_while(self.lock(), patience, wanted);
        let (mut places, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let place = &mut places.streams[stream];
        std::mem::swap(&mut place.frame, frame);
        if std::mem::take(&mut place.waiting) { Offer::Replaced } else { Offer::Stored }
    }

    /// Puts a frame into its stream's place; the caller gets another buffer to fill.
    pub(super) fn offer(&self, stream: usize, frame: &mut Frame, now: Instant) -> Offer {
        let mut places = self.lock();
        let place = &mut places.streams[stream];
        std::mem::swap(&mut place.frame, frame);
        place.offered = now;
        let replaced = std::mem::replace(&mut place.waiting, true);
        drop(places);
        self.changed.notify_one();
        if replaced { Offer::Replaced } else { Offer::Stored }
    }

    /// Waits for a frame of any stream, each in turn, and swaps it with the buffer of the same index in `frames`.
    pub(super) fn take(&self, frames: &mut [Frame], timeout: Duration) -> Taken {
        let idle = |places: &mut Places| {
            places.streams.iter().all(|place| !place.waiting)
                && places.streams.iter().any(|place| place.open)
        };
        let mut places = self.lock();
        places.takers += 1;
        let waited = self.changed.wait_timeout_while(places, timeout, idle);
        let (mut places, _) = waited.unwrap_or_else(PoisonError::into_inner);
        places.takers -= 1;
        self.taken.notify_all();
        let count = places.streams.len();
        let order = (0..count).map(|step| (places.next + step) % count);
        let Some(stream) = order.into_iter().find(|&index| places.streams[index].waiting) else {
            let open = places.streams.iter().any(|place| place.open);
            return if open { Taken::Nothing } else { Taken::Closed };
        };
        places.next = (stream + 1) % count;
        let place = &mut places.streams[stream];
        place.waiting = false;
        std::mem::swap(&mut place.frame, &mut frames[stream]);
        Taken::Frame { stream, offered: place.offered }
    }

    /// Says that the stream brings no more frames. One that waits is still taken.
    pub(super) fn close(&self, stream: usize) {
        self.lock().streams[stream].open = false;
        self.changed.notify_one();
    }

    // A panic of a holder leaves the places whole: every change is a swap or a flag.
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    fn frame(number: u64, now: Instant) -> Frame {
        Frame { number, data: vec![number as u8; 8], ..Frame::empty(now) }
    }

    #[test]
    fn the_newest_frame_wins_and_buffers_go_round() {
        let now = Instant::now();
        let latest = LatestFrames::new(1, now);
        let mut filling = frame(1, now);
        let first_buffer = filling.data.as_ptr();
        assert_eq!(latest.offer(0, &mut filling, now), Offer::Stored);
        filling = frame(2, now);
        assert_eq!(latest.offer(0, &mut filling, now), Offer::Replaced);
        assert_eq!(filling.data.as_ptr(), first_buffer, "the replaced buffer comes back");

        let mut looked_at = [Frame::empty(now)];
        let taken = latest.take(&mut looked_at, Duration::ZERO);
        assert_eq!(taken, Taken::Frame { stream: 0, offered: now });
        assert_eq!(looked_at[0].number, 2);
        assert_eq!(latest.take(&mut looked_at, Duration::ZERO), Taken::Nothing);
    }

    #[test]
    fn a_frame_is_filled_in_the_place_of_one_that_nobody_looked_at() {
        let now = Instant::now();
        let latest = LatestFrames::new(1, now);
        let reclaim = |frame: &mut Frame| latest.reclaim(0, frame, Duration::ZERO);
        let mut filling = Frame::empty(now);
        assert_eq!(reclaim(&mut filling), Offer::Stored);
        filling = frame(1, now);
        let first_buffer = filling.data.as_ptr();
        assert_eq!(latest.offer(0, &mut filling, now), Offer::Stored);
        assert_eq!(reclaim(&mut filling), Offer::Replaced);
        assert_eq!(filling.data.as_ptr(), first_buffer);
        let mut looked_at = [Frame::empty(now)];
        assert_eq!(
            latest.take(&mut looked_at, Duration::ZERO),
            Taken::Nothing,
            "it is being filled"
        );
        filling.number = 2;
        assert_eq!(latest.offer(0, &mut filling, now), Offer::Stored);
        assert!(matches!(latest.take(&mut looked_at, Duration::ZERO), Taken::Frame { .. }));
        assert_eq!((looked_at[0].number, looked_at[0].data.as_ptr()), (2, first_buffer));
    }

    #[test]
    fn a_source_without_a_pace_takes_no_frame_from_who_waits_for_it() {
        const LONG: Duration = Duration::from_secs(60);
        let now = Instant::now();
        let latest = LatestFrames::new(1, now);
        for number in 0..100 {
            let mut filling = frame(number, now);
            std::thread::scope(|threads| {
                let taker = threads.spawn(|| latest.take(&mut [Frame::empty(now)], LONG));
                while latest.lock().takers == 0 {
                    std::thread::yield_now();
                }
                assert_eq!(latest.offer(0, &mut filling, now), Offer::Stored);
                assert_eq!(latest.reclaim(0, &mut filling, LONG), Offer::Stored);
                assert!(matches!(taker.join().unwrap(), Taken::Frame { .. }));
            });
        }
    }

    #[test]
    fn streams_take_turns_however_fast_one_is() {
        let now = Instant::now();
        let latest = LatestFrames::new(3, now);
        let mut looked_at: Vec<_> = (0..3).map(|_| Frame::empty(now)).collect();
        let mut order = Vec::new();
        for _ in 0..6 {
            for stream in [0, 0, 0, 2, 1] {
                let _replaced = latest.offer(stream, &mut frame(1, now), now);
            }
            let Taken::Frame { stream, .. } = latest.take(&mut looked_at, Duration::ZERO) else {
                panic!("a frame waits");
            };
            order.push(stream);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_waiting_frame_outlives_its_stream() {
        let now = Instant::now();
        let latest = LatestFrames::new(1, now);
        let mut looked_at = [Frame::empty(now)];
        assert_eq!(latest.offer(0, &mut frame(7, now), now), Offer::Stored);
        latest.close(0);
        assert!(matches!(latest.take(&mut looked_at, Duration::ZERO), Taken::Frame { .. }));
        assert_eq!(looked_at[0].number, 7);
        assert_eq!(latest.take(&mut looked_at, Duration::from_secs(60)), Taken::Closed);
    }
}
