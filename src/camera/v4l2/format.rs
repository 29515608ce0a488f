//! Which native format, size and rate to ask a camera for. Pure: lists in, choice out.
//!
//! Policy, the first difference decides:
//! 1. colour before gray;
//! 2. a rate that reaches the wanted one before one that does not (a rate that the driver does not tell counts as reached);
//! 3. a size that covers the wanted one before one that does not (shrinking is cheap, enlarging shows nothing new);
//! 4. of covering sizes the smallest, of others the largest, by area;
//! 5. the higher rate, up to the wanted one;
//! 6. the format that costs least to use: NV12 (12 bits a pixel), YUYV (16), MJPEG (to be decoded).

use std::cmp::Reverse;

use super::device::{FourCc, Interval, IntervalRange, Size, SizeRange};
use crate::camera::MAX_PIXELS;
use crate::frame::PixelFormat;

/// How the planes of a native format lie in memory, and what becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Native {
    pub(super) code: FourCc,
    pub(super) format: PixelFormat,
    /// Memory planes.
    pub(super) planes: usize,
}

/// Formats that are understood, the cheapest first.
const NATIVE: [Native; 6] = [
    Native { code: FourCc(*b"NV12"), format: PixelFormat::Nv12, planes: 1 },
    Native { code: FourCc(*b"NM12"), format: PixelFormat::Nv12, planes: 2 },
    Native { code: FourCc(*b"YUYV"), format: PixelFormat::Yuyv, planes: 1 },
    Native { code: FourCc(*b"MJPG"), format: PixelFormat::Mjpeg, planes: 1 },
    Native { code: FourCc(*b"JPEG"), format: PixelFormat::Mjpeg, planes: 1 },
    Native { code: FourCc(*b"GREY"), format: PixelFormat::Gray8, planes: 1 },
];

impl Native {
    /// The format with this code, when it is understood.
    pub(super) fn from_code(code: FourCc) -> Option<Self> {
        NATIVE.into_iter().find(|native| native.code == code)
    }

    fn rank(self) -> usize {
        NATIVE.iter().position(|native| *native == self).unwrap_or(NATIVE.len())
    }

    /// Bytes of a row of the first plane, without padding; 0 for compressed formats.
    pub(super) fn row_bytes(self, width: usize) -> usize {
        match self.format {
            PixelFormat::Yuyv => width.next_multiple_of(2) * 2,
            PixelFormat::Nv12 => width.next_multiple_of(2),
            PixelFormat::Gray8 => width,
            PixelFormat::Rgb24 => width * 3,
            PixelFormat::Mjpeg => 0,
        }
    }
}

/// Wanted size and rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wanted {
    pub(super) size: Size,
    /// Frames a second; `None` leaves the camera its rate, but prefers modes of at least [`ENOUGH_FPS`].
    pub(super) fps: Option<f64>,
}

/// Rate that a mode should reach when none is asked for.
const ENOUGH_FPS: f64 = 15.0;
/// Cameras announce 30000/1001 as 30, and the reverse.
const FPS_TOLERANCE: f64 = 0.99;

/// A mode that a camera offers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mode {
    pub(super) native: Native,
    pub(super) size: Size,
    /// Interval to set: the lowest rate that reaches the wanted one, else the highest; `None` when the driver lists none.
    pub(super) interval: Option<Interval>,
}

/// The best of all modes by the policy above; the first of equals.
pub(super) fn choose(modes: &[Mode], wanted: Wanted) -> Option<Mode> {
    let fits = |mode: &&Mode| area(mode.size) > 0 && area(mode.size) <= MAX_PIXELS as u64;
    modes.iter().filter(fits).min_by_key(|mode| cost(mode, wanted)).copied()
}

fn cost(mode: &Mode, wanted: Wanted) -> impl Ord + use<> {
    let wanted_fps = wanted.fps.unwrap_or(ENOUGH_FPS);
    let fps = mode.interval.and_then(Interval::fps).unwrap_or(wanted_fps);
    let covers = mode.size.width >= wanted.size.width && mode.size.height >= wanted.size.height;
    let (covering, other) = if covers { (area(mode.size), 0) } else { (0, area(mode.size)) };
    (
        mode.native.format == PixelFormat::Gray8,
        fps < wanted_fps * FPS_TOLERANCE,
        !covers,
        covering,
        Reverse(other),
        Reverse((fps.min(wanted_fps) * 100.0).round() as u64),
        mode.native.rank(),
    )
}

fn area(size: Size) -> u64 {
    u64::from(size.width) * u64::from(size.height)
}

/// The size of a range that serves the wanted one best: the smallest that covers it, else the largest, in each direction.
pub(super) fn nearest(range: SizeRange, wanted: Size) -> Size {
    let along = |min: u32, max: u32, step: u32, wanted: u32| {
        if wanted <= min {
            return min;
        }
        let step = u64::from(step.max(1));
        let steps = u64::from(wanted - min).div_ceil(step);
        let most = u64::from(max.saturating_sub(min)) / step;
        // At most `max`, because `steps * step <= max - min`.
        min + (steps.min(most) * step) as u32
    };
    let SizeRange { min, max, step } = range;
    Size {
        width: along(min.width, max.width, step.width, wanted.width),
        height: along(min.height, max.height, step.height, wanted.height),
    }
}

/// The interval to set: of the lowest rate that reaches `fps`, else of the highest rate.
pub(super) fn interval_for(ranges: &[IntervalRange], fps: f64) -> Option<Interval> {
    let reaching =
        |interval: Interval| interval.fps().is_some_and(|own| own >= fps * FPS_TOLERANCE);
    let by_rate = |one: &Interval, other: &Interval| {
        one.fps().unwrap_or(0.0).total_cmp(&other.fps().unwrap_or(0.0))
    };
    let offered = ranges.iter().map(|range| {
        if reaching(range.min) && !reaching(range.max) {
            Interval::from_fps(fps)
        } else if reaching(range.max) {
            range.max
        } else {
            range.min
        }
    });
    let offered: Vec<_> = offered.filter(|interval| interval.fps().is_some()).collect();
    let lowest = offered.iter().copied().filter(|interval| reaching(*interval)).min_by(by_rate);
    lowest.or_else(|| offered.iter().copied().max_by(by_rate))
}

impl Wanted {
    /// The rate that modes are compared by.
    pub(super) fn fps_to_reach(self) -> f64 {
        self.fps.unwrap_or(ENOUGH_FPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VGA: Size = Size { width: 640, height: 480 };
    const HD: Size = Size { width: 1280, height: 720 };
    const FULL_HD: Size = Size { width: 1920, height: 1080 };

    fn mode(code: &[u8; 4], size: Size, fps: u32) -> Mode {
        let native = Native::from_code(FourCc(*code)).unwrap();
        let interval = (fps > 0).then_some(Interval { numerator: 1, denominator: fps });
        Mode { native, size, interval }
    }

    #[test]
    fn chooses_by_the_policy() {
        struct Case {
            name: &'static str,
            modes: Vec<Mode>,
            size: Size,
            fps: Option<f64>,
            expected: Mode,
        }
        let webcam = vec![
            mode(b"YUYV", VGA, 30),
            mode(b"YUYV", HD, 10),
            mode(b"YUYV", FULL_HD, 5),
            mode(b"MJPG", VGA, 30),
            mode(b"MJPG", HD, 30),
            mode(b"MJPG", FULL_HD, 30),
        ];
        let case = |name, modes: &[Mode], size, fps, expected| Case {
            name,
            modes: modes.to_vec(),
            size,
            fps,
            expected,
        };
        let isp = [mode(b"YUYV", HD, 30), mode(b"NV12", HD, 30), mode(b"NM12", HD, 30)];
        let mono = [mode(b"GREY", HD, 60)];
        let odd = Size { width: 800, height: 600 };
        let tall = Size { width: 720, height: 1280 };
        let cases = [
            case("raw when its rate does", &webcam, VGA, Some(30.0), webcam[0]),
            case("raw at a low rate", &webcam, HD, Some(10.0), webcam[1]),
            case("MJPEG for rate", &webcam, HD, Some(30.0), webcam[4]),
            case("15 fps unless asked", &webcam, HD, None, webcam[4]),
            case("smallest that covers", &webcam, odd, Some(5.0), webcam[1]),
            case("none covers: largest", &webcam, tall, Some(30.0), webcam[5]),
            case("no rate reaches: size first", &webcam, HD, Some(60.0), webcam[4]),
            case("NTSC's 29.97 is 30", &[mode(b"YUYV", VGA, 30)], VGA, Some(30.1), webcam[0]),
            case("NV12 is cheapest", &isp, HD, Some(30.0), isp[1]),
            case("gray when alone", &mono, VGA, Some(30.0), mono[0]),
            case("colour before gray", &[mono[0], webcam[2]], HD, Some(30.0), webcam[2]),
            case(
                "untold rate counts",
                &[mode(b"MJPG", HD, 30), mode(b"YUYV", HD, 0)],
                HD,
                Some(30.0),
                mode(b"YUYV", HD, 0),
            ),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .filter_map(|case| {
                let chosen = choose(&case.modes, Wanted { size: case.size, fps: case.fps });
                (chosen != Some(case.expected)).then_some((case.name, chosen))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn leaves_out_sizes_that_no_buffer_is_made_for() {
        let huge = Size { width: 65_535, height: 65_535 };
        let empty = Size { width: 0, height: 480 };
        let wanted = Wanted { size: VGA, fps: None };
        assert_eq!(choose(&[mode(b"YUYV", huge, 30), mode(b"YUYV", empty, 30)], wanted), None);
    }

    #[test]
    fn finds_the_size_in_a_grid() {
        let range = |min, max, step| {
            let size = |(width, height)| Size { width, height };
            SizeRange { min: size(min), max: size(max), step: size(step) }
        };
        let cases = [
            (range((640, 480), (640, 480), (0, 0)), HD, (640, 480)),
            (range((16, 16), (4096, 4096), (1, 1)), HD, (1280, 720)),
            (range((32, 32), (4096, 2160), (16, 16)), FULL_HD, (1920, 1088)),
            (range((32, 32), (1000, 500), (64, 64)), HD, (992, 480)),
            (range((1920, 1080), (3840, 2160), (2, 2)), VGA, (1920, 1080)),
            (range((10, 10), (5, 5), (1, 1)), HD, (10, 10)),
            (range((0, 0), (u32::MAX, u32::MAX), (1, 1)), HD, (1280, 720)),
        ];
        for (range, wanted, (width, height)) in cases {
            assert_eq!(nearest(range, wanted), Size { width, height }, "{range:?}");
        }
    }

    #[test]
    fn finds_the_rate_in_lists_and_ranges() {
        let of = |numerator, denominator| Interval { numerator, denominator };
        let one = |interval| IntervalRange { min: interval, max: interval };
        let list = [one(of(1, 30)), one(of(1, 15)), one(of(1, 5)), one(of(0, 0))];
        let range = [IntervalRange { min: of(1, 60), max: of(1, 2) }];
        let cases: &[(&[IntervalRange], f64, Option<Interval>)] = &[
            (&list, 10.0, Some(of(1, 15))),
            (&list, 30.0, Some(of(1, 30))),
            (&list, 60.0, Some(of(1, 30))),
            (&list, 1.0, Some(of(1, 5))),
            (&range, 12.5, Some(of(1000, 12_500))),
            (&range, 25.0, Some(of(1, 25))),
            (&range, 1.0, Some(of(1, 2))),
            (&range, 90.0, Some(of(1, 60))),
            (&[], 30.0, None),
            (&[one(of(1, 0))], 30.0, None),
        ];
        for (ranges, fps, expected) in cases {
            assert_eq!(interval_for(ranges, *fps), *expected, "{fps} of {ranges:?}");
        }
    }
}
