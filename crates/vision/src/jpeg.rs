//! JPEG files to pixels. Input comes from cameras and files and is not trusted: sizes are capped before memory is
//! taken, damaged files are errors.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Longest side of a picture, pixels.
pub(super) const MAX_SIDE: usize = 16_384;
/// Most pixels of a picture: 192 MiB as RGB.
pub(super) const MAX_PIXELS: usize = 64 * 1024 * 1024;

/// A decoded picture's size and layout; rows follow each other without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Components,
}

/// What a pixel is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Components {
    /// 3 bytes: red, green, blue.
    Rgb,
    /// 1 byte.
    Gray,
}

/// Why there are no pixels.
#[derive(Debug, thiserror::Error)]
pub(super) enum JpegError {
    #[error("the JPEG file ends early: it has no end-of-image marker; capture or copy it again")]
    Truncated,
    #[error(
        "the JPEG picture is {width}x{height} pixels, at most {MAX_SIDE} a side and {MAX_PIXELS} in all are read"
    )]
    TooLarge { width: usize, height: usize },
    #[error("the JPEG file has CMYK colours; convert it to RGB or grayscale")]
    Cmyk,
    #[error("damaged JPEG file: {0}")]
    Damaged(String),
}

/// Decodes baseline and progressive JPEG files of one or three components into `pixels`, which is reused.
pub(super) fn decode(file: &[u8], pixels: &mut Vec<u8>) -> Result<Decoded, JpegError> {
    let damaged = |error: zune_jpeg::errors::DecodeErrors| JpegError::Damaged(error.to_string());
    let options = DecoderOptions::new_fast().set_max_width(MAX_SIDE).set_max_height(MAX_SIDE);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(damaged)?;
    // The decoder fills what is missing with grey; a half-seen scene is worse than a lost frame.
    if !ends_with_marker(file) {
        return Err(JpegError::Truncated);
    }
    let (width, height) = decoder.dimensions().unwrap_or_default();
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(JpegError::TooLarge { width, height });
    }
    let (space, components, bytes) = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => (ColorSpace::Luma, Components::Gray, 1),
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => return Err(JpegError::Cmyk),
        _ => (ColorSpace::RGB, Components::Rgb, 3),
    };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    pixels.resize(width * height * bytes, 0);
    decoder.decode_into(pixels).map_err(damaged)?;
    Ok(Decoded { width, height, components })
}

/// Whether the end-of-image marker is there. Cameras pad with zeros, some files carry data behind it.
fn ends_with_marker(file: &[u8]) -> bool {
    file.windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}
