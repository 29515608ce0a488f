//! Pictures for people: decoded from files or frames, encoded for snapshots. Not on the path to the model.

use std::io::Cursor;

use super::jpeg::{self, Components, MAX_PIXELS};
use super::preprocess::{PreprocessError, frame_to_rgb};
use crate::frame::Frame;

/// An RGB picture in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// `width * height * 3` bytes: red, green, blue, rows top to bottom.
    pub rgb: Vec<u8>,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// Neither a JPEG nor a PNG file.
    #[error(
        "neither a JPEG nor a PNG file: it starts with {start:02x?}; convert it to one of these"
    )]
    UnknownFormat {
        /// First bytes of the file.
        start: Vec<u8>,
    },
    /// Damaged, truncated, too large, or of a kind that is not read.
    #[error("{0}")]
    Unreadable(String),
    /// The picture is too large for the file format.
    #[error("a picture of {width}x{height} pixels does not fit a {format} file")]
    Unencodable {
        /// Width, pixels.
        width: usize,
        /// Height, pixels.
        height: usize,
        /// File format.
        format: &'static str,
    },
}

impl Picture {
    /// Decodes a JPEG or PNG file, told apart by content; at most 64 Mi pixels. Alpha is dropped.
    ///
    /// # Errors
    /// [`PictureError`] says what is wrong with the file.
    ///
    /// ```
    /// use ocelli_vision::annotate::Picture;
    /// let red = Picture { width: 2, height: 1, rgb: vec![255, 0, 0, 255, 0, 0] };
    /// assert_eq!(Picture::decode(&red.encode_png()?)?, red);
    /// assert!(Picture::decode(b"GIF89a").is_err());
    /// # Ok::<(), ocelli_vision::annotate::PictureError>(())
    /// ```
    pub fn decode(bytes: &[u8]) -> Result<Self, PictureError> {
        if bytes.starts_with(&[0xff, 0xd8]) {
            decode_jpeg(bytes)
        } else if bytes.starts_with(b"\x89PNG") {
            decode_png(bytes)
        } else {
            Err(PictureError::UnknownFormat { start: bytes[..bytes.len().min(8)].to_vec() })
        }
    }

    /// The picture of a frame of any format.
    ///
    /// # Errors
    /// [`PreprocessError::BadFrame`] when the frame's bytes do not make a picture.
    pub fn from_frame(frame: &Frame) -> Result<Self, PreprocessError> {
        let (width, height, rgb) = frame_to_rgb(frame)?;
        Ok(Self { width, height, rgb })
    }

    /// The picture as a JPEG file of quality 1 to 100.
    ///
    /// # Errors
    /// [`PictureError::Unencodable`] when a side is 0 or above 65535, or `rgb` has another length than the size says.
    pub fn encode_jpeg(&self, quality: u8) -> Result<Vec<u8>, PictureError> {
        let unencodable = || self.unencodable("JPEG");
        let width = u16::try_from(self.width).map_err(|_| unencodable())?;
        let height = u16::try_from(self.height).map_err(|_| unencodable())?;
        let mut file = Vec::new();
        jpeg_encoder::Encoder::new(&mut file, quality.clamp(1, 100))
            .encode(&self.rgb, width, height, jpeg_encoder::ColorType::Rgb)
            .map_err(|_| unencodable())?;
        Ok(file)
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// As [`Picture::encode_jpeg`], for sides above 2³².
    pub fn encode_png(&self) -> Result<Vec<u8>, PictureError> {
        let unencodable = || self.unencodable("PNG");
        let width = u32::try_from(self.width).map_err(|_| unencodable())?;
        let height = u32::try_from(self.height).map_err(|_| unencodable())?;
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(|_| unencodable())?;
        writer.write_image_data(&self.rgb).map_err(|_| unencodable())?;
        writer.finish().map_err(|_| unencodable())?;
        Ok(file)
    }

    fn unencodable(&self, format: &'static str) -> PictureError {
        PictureError::Unencodable { width: self.width, height: self.height, format }
    }
}

fn decode_jpeg(bytes: &[u8]) -> Result<Picture, PictureError> {
    let mut pixels = Vec::new();
    let decoded = jpeg::decode(bytes, &mut pixels)
        .map_err(|error| PictureError::Unreadable(error.to_string()))?;
    let rgb = match decoded.components {
        Components::Rgb => pixels,
        Components::Gray => replicate(pixels.iter().copied()),
    };
    Ok(Picture { width: decoded.width, height: decoded.height, rgb })
}

fn decode_png(bytes: &[u8]) -> Result<Picture, PictureError> {
    let damaged =
        |error: png::DecodingError| PictureError::Unreadable(format!("damaged PNG file: {error}"));
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let length = reader.output_buffer_size().filter(|_| width.saturating_mul(height) <= MAX_PIXELS);
    let Some(length) = length else {
        return Err(PictureError::Unreadable(format!(
            "the PNG picture is {width}x{height} pixels, at most {MAX_PIXELS} in all are read"
        )));
    };
    let mut pixels = vec![0; length];
    let info = reader.next_frame(&mut pixels).map_err(damaged)?;
    pixels.truncate(info.buffer_size());
    let rgb = match info.color_type {
        png::ColorType::Rgb => pixels,
        png::ColorType::Rgba => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        png::ColorType::Grayscale => replicate(pixels.iter().copied()),
        png::ColorType::GrayscaleAlpha => replicate(pixels.chunks_exact(2).map(|p| p[0])),
        png::ColorType::Indexed => {
            return Err(PictureError::Unreadable("the PNG file's palette is missing".to_owned()));
        }
    };
    Ok(Picture { width, height, rgb })
}

fn replicate(gray: impl Iterator<Item = u8>) -> Vec<u8> {
    gray.flat_map(|value| [value; 3]).collect()
}
