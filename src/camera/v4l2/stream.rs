//! A running stream: copies pictures out of filled buffers, and numbers them. A picture that is not whole is not copied.

use std::time::{Duration, Instant};

use super::device::{Device, Filled, Layout};
use super::format::Native;
use crate::camera::jpeg;
use crate::frame::{Frame, PixelFormat};

/// A device that streams.
pub(super) struct Stream {
    pub(super) device: Box<dyn Device>,
    pub(super) native: Native,
    pub(super) layout: Layout,
    /// Without a good frame for this long the stream counts as dead.
    pub(super) stall: Duration,
    /// When the last good frame came, or the stream started.
    pub(super) alive: Instant,
}

impl Stream {
    /// When the stream counts as dead, should no good frame come before.
    pub(super) fn stalls_at(&self) -> Instant {
        self.alive + self.stall
    }

    /// Copies the picture into the frame; `false` when it is shorter than its format says, or no whole JPEG file.
    ///
    /// A raw picture becomes `rows * stride` bytes, with the stride of the first plane.
    pub(super) fn copy(&self, filled: &Filled, frame: &mut Frame) -> bool {
        let data = &mut frame.data;
        data.clear();
        let (width, height) = (self.layout.size.width as usize, self.layout.size.height as usize);
        (frame.width, frame.height, frame.format) = (width, height, self.native.format);
        frame.stride = match self.native.format {
            PixelFormat::Mjpeg => 0,
            _ => self.layout.strides[0] as usize,
        };
        let chroma_rows = height.div_ceil(2);
        match (self.native.format, self.native.planes) {
            (PixelFormat::Mjpeg, _) => {
                let whole = self.append(filled, 0, 0, filled.planes[0].length, data);
                let length = jpeg::whole_length(data).filter(|_| whole);
                data.truncate(length.unwrap_or(0));
                length.is_some()
            }
            (PixelFormat::Nv12, 1) => self.append_plane(filled, 0, height + chroma_rows, data),
            (PixelFormat::Nv12, _) => {
                self.append_plane(filled, 0, height, data)
                    && self.append_plane(filled, 1, chroma_rows, data)
            }
            _ => self.append_plane(filled, 0, height, data),
        }
    }

    /// Appends the rows of a memory plane, each padded to the stride of the first plane.
    fn append_plane(&self, filled: &Filled, plane: usize, rows: usize, data: &mut Vec<u8>) -> bool {
        let stride = self.layout.strides[0] as usize;
        let own_stride = self.layout.strides[plane] as usize;
        let row = self.native.row_bytes(self.layout.size.width as usize);
        let start = data.len();
        let whole = if own_stride == stride {
            // The last row may come without its padding.
            self.append(filled, plane, 0, (rows - 1) * stride + row, data)
        } else {
            (0..rows).all(|index| {
                data.resize(start + index * stride, 0);
                self.append(filled, plane, index * own_stride, row, data)
            })
        };
        data.resize(start + rows * stride, 0);
        whole
    }

    /// Appends `length` bytes of the payload of a plane, from `start`; `false` when it is shorter.
    fn append(
        &self,
        filled: &Filled,
        plane: usize,
        start: usize,
        length: usize,
        data: &mut Vec<u8>,
    ) -> bool {
        let payload = filled.planes[plane];
        if start + length > payload.length {
            return false;
        }
        let before = data.len();
        let from = payload.offset + start;
        self.device.copy(filled.buffer, plane, from..from + length, data);
        data.len() == before + length
    }
}

/// Numbers of frames across reopened streams, from the driver's sequence numbers.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    next: u64,
    last: Option<u32>,
}

impl Numbering {
    /// The number of the frame with this sequence number.
    pub(super) fn number(&mut self, sequence: u32) -> u64 {
        let step = self.last.map_or(0, |last| sequence.wrapping_sub(last));
        // Backwards or standing: the driver restarted its count, or has none.
        let missed = if (1..1 << 31).contains(&step) { step - 1 } else { 0 };
        self.last = Some(sequence);
        let number = self.next + u64::from(missed);
        self.next = number + 1;
        number
    }

    /// The driver counts from anew.
    pub(super) fn stream_restarts(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_what_the_driver_dropped() {
        let mut numbering = Numbering::default();
        let sequence = [7, 8, 10, u32::MAX, 0, 0, 1, 1_000_000, 3];
        let numbers: Vec<_> = sequence.map(|sequence| numbering.number(sequence)).into();
        let wrapped = numbers[3];
        assert_eq!(numbers[..3], [0, 1, 3]);
        // A step back (10 to u32::MAX is -11) is a restart, not four thousand million losses.
        assert_eq!(wrapped, 4);
        // Wrapped; standing still; a true gap; a restart.
        assert_eq!(numbers[4..], [5, 6, 7, 1_000_006, 1_000_007]);
    }

    #[test]
    fn numbers_go_on_after_a_restart() {
        let mut numbering = Numbering::default();
        assert_eq!([numbering.number(0), numbering.number(1)], [0, 1]);
        numbering.stream_restarts();
        assert_eq!([numbering.number(500), numbering.number(502)], [2, 4]);
    }
}
