//! NumPy's files: reads `.npy`, writes `.npz`. Version 1 of the format, little-endian, C order.
//!
//! Own code, because the format is a short header and raw values: crates for it bring a parser of Python literals, big
//! integers and a deflate that nothing here needs. An `.npz` is a zip of stored `.npy` files.

use std::io::{self, Write};

use crate::tensor::{TensorBuffer, TensorView, Values};

/// First bytes of a version 1 file.
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// Reads a float32 array.
///
/// # Errors
/// Says in what the file is not a little-endian float32 `.npy` in C order.
pub(super) fn read_f32(bytes: &[u8]) -> Result<(Vec<usize>, TensorBuffer), String> {
    let body = bytes.strip_prefix(MAGIC).ok_or("it is not a version 1.0 .npy file")?;
    let (length, body) = body.split_first_chunk::<2>().ok_or("its header is cut short")?;
    let length = usize::from(u16::from_le_bytes(*length));
    let (header, data) = body.split_at_checked(length).ok_or("its header is cut short")?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    if value(header, "descr") != Some("'<f4'") {
        return Err(
            "its elements are not little-endian float32; save it with .astype('<f4')".into()
        );
    }
    if value(header, "fortran_order") != Some("False") {
        return Err("it is in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
    let (shape, _) = shape.ok_or("its header has no shape")?;
    let shape = shape.split(',').map(str::trim).filter(|length| !length.is_empty());
    let shape: Result<Vec<usize>, _> = shape.map(str::parse).collect();
    let shape = shape.map_err(|_| "its shape is not made of numbers")?;
    let (words, rest) = data.as_chunks::<4>();
    let elements = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
    if elements != Some(words.len()) || !rest.is_empty() {
        return Err(format!("it holds {} bytes, which is not float32 {shape:?}", data.len()));
    }
    let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    Ok((shape, TensorBuffer::F32(values)))
}

/// The text after a key, up to the comma.
fn value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}': "))?;
    Some(rest.split_once(',')?.0.trim())
}

/// An array as the content of a `.npy` file.
fn npy(view: &TensorView<'_>) -> Vec<u8> {
    let (descr, data): (_, Vec<u8>) = match view.values {
        Values::F32(values) => ("<f4", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Values::U8(values) => ("|u1", values.to_vec()),
        Values::I8(values) => ("|i1", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Values::I32(values) => ("<i4", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Values::I64(values) => ("<i8", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    let shape: String = view.shape.iter().map(|length| format!("{length},")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // The values start at a multiple of 64; the header ends in a line feed.
    let length = (MAGIC.len() + 2 + header.len() + 1).next_multiple_of(64) - MAGIC.len() - 2;
    let mut file = MAGIC.to_vec();
    file.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    file.extend(format!("{header:<width$}\n", width = length - 1).into_bytes());
    file.extend(data);
    file
}

/// Writes arrays by name.
///
/// # Errors
/// The writer's; and names or arrays too large for a plain zip (4 GiB).
pub(super) fn write_npz(arrays: &[(&str, TensorView<'_>)], out: &mut dyn Write) -> io::Result<()> {
    let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, "too large for an .npz");
    let (mut directory, mut offset) = (Vec::new(), 0_u32);
    for (name, view) in arrays {
        let content = npy(view);
        let name = format!("{name}.npy");
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let mut entry = Vec::new();
        // Version 2.0, UTF-8 names, stored, 1980-01-01.
        for field in [20_u16, 1 << 11, 0, 0, 0x21] {
            entry.extend(field.to_le_bytes());
        }
        entry.extend(crc32fast::hash(&content).to_le_bytes());
        entry.extend(size.to_le_bytes());
        entry.extend(size.to_le_bytes());
        entry.extend(u16::try_from(name.len()).map_err(too_large)?.to_le_bytes());
        entry.extend(0_u16.to_le_bytes());

        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&entry);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());

        out.write_all(b"PK\x03\x04")?;
        out.write_all(&entry)?;
        out.write_all(name.as_bytes())?;
        out.write_all(&content)?;
        let written = 4 + entry.len() + name.len() + content.len();
        let written = u32::try_from(written).map_err(too_large)?;
        offset = offset
            .checked_add(written)
            .ok_or(())
            .map_err(|()| io::Error::new(io::ErrorKind::InvalidInput, "too large for an .npz"))?;
    }
    let count = u16::try_from(arrays.len()).map_err(too_large)?.to_le_bytes();
    out.write_all(&directory)?;
    out.write_all(b"PK\x05\x06\0\0\0\0")?;
    out.write_all(&count)?;
    out.write_all(&count)?;
    out.write_all(&u32::try_from(directory.len()).map_err(too_large)?.to_le_bytes())?;
    out.write_all(&offset.to_le_bytes())?;
    out.write_all(&[0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for shape in [vec![], vec![6], vec![2, 3], vec![1, 3, 2, 1]] {
            let len = shape.iter().product();
            let values: Vec<f32> = (0_u8..).map(f32::from).take(len).collect();
            let file = npy(&TensorView { shape: &shape, values: Values::F32(&values) });
            assert_eq!(file.len() % 64, len * 4 % 64);
            assert_eq!(read_f32(&file), Ok((shape, TensorBuffer::F32(values))));
        }
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let whole = npy(&TensorView { shape: &[2], values: Values::F32(&[1.0, 2.0]) });
        let integers = npy(&TensorView { shape: &[2], values: Values::I32(&[1, 2]) });
        let cases = [(&b"PK"[..], "version"), (&whole[..9], "header"), (&whole[..130], "bytes")];
        for (bytes, expected) in cases.into_iter().chain([(&integers[..], "float32")]) {
            let error = read_f32(bytes).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
