//! What a camera must know of a JPEG file: whether it is whole, and how large its picture is. Decodes nothing.

use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Start of image marker, ITU-T T.81 table B.1.
const START: [u8; 2] = [0xFF, 0xD8];
/// End of image marker.
const END: [u8; 2] = [0xFF, 0xD9];
/// Bytes after the end marker that are tolerated besides zeros: cameras and editors append a little.
const MAX_TAIL: usize = 4096;

/// Whether the bytes start as a JPEG file.
pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&START)
}

/// Length of a whole JPEG file, from its start marker through its end marker, without what was appended.
///
/// `None` when the start or the end is missing: a truncated file, or a frame that the USB bus cut short. Looks only at both ends,
/// so that it is cheap enough for each frame.
pub(super) fn whole_length(bytes: &[u8]) -> Option<usize> {
    if !is_jpeg(bytes) {
        return None;
    }
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    let used = bytes.len() - zeros;
    let tail = used.saturating_sub(MAX_TAIL).max(START.len());
    let end = bytes.get(tail..used)?.windows(2).rposition(|pair| pair == END)?;
    Some(tail + end + END.len())
}

/// Width and height of a JPEG file, pixels, from its headers.
///
/// # Errors
/// What is wrong with the headers.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), String> {
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| format!("is no readable JPEG ({error})"))?;
    let info = decoder.info().ok_or("has no JPEG frame header")?;
    Ok((usize::from(info.width), usize::from(info.height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_whole_files_from_cut_ones() {
        struct Case {
            name: &'static str,
            bytes: Vec<u8>,
            length: Option<usize>,
        }
        let whole = [0xFF, 0xD8, 1, 2, 3, 0xFF, 0xD9];
        let with = |tail: &[u8]| [&whole, tail].concat();
        let cases = [
            Case { name: "whole", bytes: whole.to_vec(), length: Some(7) },
            Case { name: "padded with zeros", bytes: with(&[0; 10_000]), length: Some(7) },
            Case { name: "a little appended", bytes: with(b"made by cam"), length: Some(7) },
            Case { name: "much appended", bytes: with(&[7; 5000]), length: None },
            Case { name: "cut", bytes: whole[..6].to_vec(), length: None },
            Case { name: "no start", bytes: whole[1..].to_vec(), length: None },
            Case { name: "markers overlap", bytes: vec![0xFF, 0xD8, 0xD9], length: None },
            Case { name: "empty", bytes: vec![], length: None },
            Case { name: "zeros", bytes: vec![0; 100], length: None },
            Case { name: "start, then zeros", bytes: vec![0xFF, 0xD8, 0, 0], length: None },
        ];
        let wrong: Vec<_> = cases
            .iter()
            .filter(|case| whole_length(&case.bytes) != case.length)
            .map(|case| (case.name, whole_length(&case.bytes)))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn reads_the_size_from_the_header() {
        let mut file = Vec::new();
        jpeg_encoder::Encoder::new(&mut file, 80)
            .encode(&[90; 40 * 24], 40, 24, jpeg_encoder::ColorType::Luma)
            .unwrap();
        assert_eq!(size(&file), Ok((40, 24)));
        assert!(size(&file[..20]).is_err());
        assert!(size(b"GIF89a").is_err());
    }
}
