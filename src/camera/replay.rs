//! A camera of stored pictures: one file, a list or a folder of JPEG and PNG, once or in a loop, at a fixed rate.
//!
//! JPEG files are delivered as they are ([`PixelFormat::Mjpeg`]), PNG files decoded to [`PixelFormat::Rgb24`]: 16 bits become 8,
//! palettes and gray become colour, an alpha channel is dropped (as PIL's `convert("RGB")` and OpenCV do). A loop keeps
//! what it delivered in memory, up to [`CACHE_BYTES`]; such a picture costs no file access and no allocation, and a change of
//! its file is not noticed. Pictures beyond that are read again each time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::camera::schedule::Schedule;
use crate::camera::{
    Camera, CameraError, CameraInfo, Capture, Loop, MAX_FPS, MAX_PIXELS, Settings, Sink, jpeg,
};
use crate::clock::Clock;
use crate::frame::PixelFormat;

/// Largest picture file, bytes.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Pictures that a loop keeps in memory: bytes as delivered, over all of them.
pub const CACHE_BYTES: usize = 64 << 20;
/// Most pictures in a folder or list.
pub const MAX_PICTURES: usize = 100_000;

const PNG_SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// A camera of stored pictures.
pub struct ReplayCamera {
    info: CameraInfo,
    clock: Arc<dyn Clock>,
    looped: Loop,
    schedule: Option<Schedule>,
    pictures: Vec<PathBuf>,
    /// Index of the picture that comes next; the number of pictures when all were played.
    next: usize,
    delivered: u64,
    damaged: u64,
    cache: Cache,
    file: Vec<u8>,
}

/// Pictures as they are delivered, by index.
#[derive(Default)]
struct Cache {
    kept: HashMap<usize, Picture>,
    bytes: usize,
}

struct Picture {
    layout: Layout,
    data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    format: PixelFormat,
    width: usize,
    height: usize,
    stride: usize,
}

impl ReplayCamera {
    /// Opens a picture, a folder, or a `.txt` file that lists a picture a line, relative to itself (`#` begins a comment).
    ///
    /// A folder is played in byte order of the file names; only `.jpg`, `.jpeg` and `.png` count, hidden files do not.
    /// It is read once, here. `width` and `height` of the settings do not apply.
    ///
    /// # Errors
    /// [`CameraError::Unavailable`] when the source is not there, [`CameraError::Unusable`] when it holds no picture
    /// that can be read.
    pub fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, CameraError> {
        let source = Path::new(&settings.source);
        let metadata = fs::metadata(source).map_err(|error| unreadable(source, &error))?;
        let pictures = if metadata.is_dir() {
            pictures_in_folder(source)?
        } else if extension_is(source, &["txt"]) {
            pictures_in_list(source)?
        } else {
            vec![source.to_owned()]
        };
        Self::start(settings, pictures, clock)
    }

    /// Plays these pictures in this order.
    ///
    /// # Errors
    /// [`CameraError::Unusable`] when there is none that can be read.
    pub fn from_pictures(
        pictures: Vec<PathBuf>,
        looped: Loop,
        fps: Option<f32>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CameraError> {
        let source = pictures.first().map(|path| path.display().to_string()).unwrap_or_default();
        let fps = fps.filter(|fps| *fps > 0.0 && *fps <= MAX_FPS);
        Self::start(&Settings { looped, fps, ..Settings::new(source) }, pictures, clock)
    }

    fn start(
        settings: &Settings,
        pictures: Vec<PathBuf>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CameraError> {
        let mut camera = Self {
            info: CameraInfo {
                source: settings.source.clone(),
                description: format!("replay of {} pictures", pictures.len()),
                format: PixelFormat::Mjpeg,
                width: 0,
                height: 0,
                fps: settings.fps,
            },
            clock,
            looped: settings.looped,
            schedule: settings.fps.map(Schedule::new),
            pictures,
            next: 0,
            delivered: 0,
            damaged: 0,
            cache: Cache::default(),
            file: Vec::new(),
        };
        camera.probe()?;
        Ok(camera)
    }

    /// Describes the first picture that can be read.
    fn probe(&mut self) -> Result<(), CameraError> {
        let mut data = Vec::new();
        let mut first_error = None;
        for picture in &self.pictures {
            match load(picture, &mut self.file, &mut data) {
                Ok(layout) => {
                    self.describe(layout);
                    return Ok(());
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| CameraError::Unusable {
            device: self.info.source.clone(),
            detail: "holds no picture".into(),
            cure: "put .jpg, .jpeg or .png files there".into(),
        }))
    }

    fn describe(&mut self, layout: Layout) {
        (self.info.format, self.info.width, self.info.height) =
            (layout.format, layout.width, layout.height);
    }

    /// Puts a picture into `data`, from memory or from its file.
    fn picture(&mut self, index: usize, data: &mut Vec<u8>) -> Result<Layout, CameraError> {
        if let Some(kept) = self.cache.kept.get(&index) {
            data.clear();
            data.extend_from_slice(&kept.data);
            return Ok(kept.layout);
        }
        let layout = load(&self.pictures[index], &mut self.file, data)?;
        if self.looped == Loop::Forever && self.cache.bytes + data.len() <= CACHE_BYTES {
            self.cache.bytes += data.len();
            self.cache.kept.insert(index, Picture { layout, data: data.clone() });
        }
        Ok(layout)
    }
}

impl Camera for ReplayCamera {
    fn info(&self) -> &CameraInfo {
        &self.info
    }

    fn capture(&mut self, sink: &mut dyn Sink, timeout: Duration) -> Result<Capture, CameraError> {
        if self.next == self.pictures.len() {
            match self.looped {
                Loop::Once => return Ok(Capture::Ended),
                Loop::Forever => self.next = 0,
            }
        }
        if let Some(schedule) = &mut self.schedule {
            let remaining = schedule.remaining(self.clock.now());
            if !remaining.is_zero() {
                std::thread::sleep(remaining.min(timeout));
            }
            if remaining > timeout {
                return Ok(Capture::TimedOut);
            }
            schedule.advance(self.clock.now());
        }
        // A picture that fails has had its turn: the next call goes on with the next one.
        let index = self.next;
        self.next += 1;
        let number = self.delivered;
        let Some(frame) = sink.buffer() else {
            self.delivered += 1;
            return Ok(Capture::Unwanted);
        };
        (frame.captured, frame.captured_at) = (self.clock.now(), self.clock.wall());
        let layout = self.picture(index, &mut frame.data).inspect_err(|_| self.damaged += 1)?;
        self.describe(layout);
        (frame.format, frame.width, frame.height, frame.stride) =
            (layout.format, layout.width, layout.height, layout.stride);
        frame.number = number;
        self.delivered += 1;
        Ok(Capture::Frame)
    }

    fn frames_damaged(&self) -> u64 {
        self.damaged
    }
}

fn pictures_in_folder(folder: &Path) -> Result<Vec<PathBuf>, CameraError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if !hidden && extension_is(&path, &["jpg", "jpeg", "png"]) && path.is_file() {
            found.push(path);
            refuse_too_many(folder, found.len())?;
        }
    }
    if found.is_empty() {
        return Err(CameraError::Unusable {
            device: folder.display().to_string(),
            detail: "the folder holds no .jpg, .jpeg or .png file".into(),
            cure: "put pictures there, or name another folder".into(),
        });
    }
    found.sort();
    Ok(found)
}

fn pictures_in_list(list: &Path) -> Result<Vec<PathBuf>, CameraError> {
    let mut bytes = Vec::new();
    read(list, &mut bytes)?;
    let text = str::from_utf8(&bytes).map_err(|_| damaged(list, "is no UTF-8 text"))?;
    let folder = list.parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !line.starts_with('#') {
            found.push(folder.join(line));
            refuse_too_many(list, found.len())?;
        }
    }
    if found.is_empty() {
        return Err(CameraError::Unusable {
            device: list.display().to_string(),
            detail: "the list names no picture".into(),
            cure: "write one path a line, relative to the list".into(),
        });
    }
    Ok(found)
}

fn refuse_too_many(source: &Path, count: usize) -> Result<(), CameraError> {
    if count <= MAX_PICTURES {
        return Ok(());
    }
    Err(CameraError::Unusable {
        device: source.display().to_string(),
        detail: format!("holds more than {MAX_PICTURES} pictures"),
        cure: "split it".into(),
    })
}

fn extension_is(path: &Path, extensions: &[&str]) -> bool {
    let own = path.extension().and_then(|own| own.to_str()).unwrap_or_default();
    extensions.iter().any(|extension| own.eq_ignore_ascii_case(extension))
}

/// Loads a picture into `data`; `file` is scratch memory.
fn load(path: &Path, file: &mut Vec<u8>, data: &mut Vec<u8>) -> Result<Layout, CameraError> {
    read(path, file)?;
    if jpeg::is_jpeg(file) {
        let length =
            jpeg::whole_length(file).ok_or_else(|| damaged(path, "is a JPEG cut short"))?;
        let (width, height) = jpeg::size(file).map_err(|detail| damaged(path, &detail))?;
        refuse_too_large(path, width, height)?;
        data.clear();
        data.extend_from_slice(&file[..length]);
        return Ok(Layout { format: PixelFormat::Mjpeg, width, height, stride: 0 });
    }
    if file.starts_with(&PNG_SIGNATURE) {
        return decode_png(path, file, data);
    }
    Err(damaged(path, "is neither JPEG nor PNG"))
}

/// Reads a whole file, bounded by [`MAX_FILE_BYTES`].
fn read(path: &Path, into: &mut Vec<u8>) -> Result<(), CameraError> {
    into.clear();
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    // Opening a pipe would block.
    if !metadata.is_file() {
        return Err(damaged(path, "is no regular file"));
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(into);
    read.map_err(|error| unreadable(path, &error))?;
    if into.len() as u64 > MAX_FILE_BYTES {
        into.clear();
        return Err(damaged(path, &format!("is larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(())
}

fn refuse_too_large(path: &Path, width: usize, height: usize) -> Result<(), CameraError> {
    match width.checked_mul(height) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => {
            let limit = MAX_PIXELS >> 20;
            Err(damaged(
                path,
                &format!("has {width}x{height} pixels, over 0 and up to {limit} Mi fit"),
            ))
        }
    }
}

fn decode_png(path: &Path, file: &[u8], data: &mut Vec<u8>) -> Result<Layout, CameraError> {
    let broken =
        |error: png::DecodingError| damaged(path, &format!("is no readable PNG ({error})"));
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let header = decoder.read_header_info().map_err(broken)?;
    let (width, height) = (header.width as usize, header.height as usize);
    refuse_too_large(path, width, height)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader.output_buffer_size().ok_or_else(|| damaged(path, "is too large a PNG"))?;
    data.clear();
    data.resize(size, 0);
    let decoded = reader.next_frame(data).map_err(broken)?;
    let channels = decoded.color_type.samples();
    match channels {
        3 => {}
        4 => {
            for pixel in 0..width * height {
                data.copy_within(pixel * 4..pixel * 4 + 3, pixel * 3);
            }
            data.truncate(width * height * 3);
        }
        // Gray, with or without alpha: from the end, so that nothing is overwritten before it is read.
        _ => {
            data.resize(width * height * 3, 0);
            for pixel in (0..width * height).rev() {
                let gray = data[pixel * channels];
                data[pixel * 3..pixel * 3 + 3].fill(gray);
            }
        }
    }
    Ok(Layout { format: PixelFormat::Rgb24, width, height, stride: width * 3 })
}

fn damaged(path: &Path, detail: &str) -> CameraError {
    CameraError::Unavailable {
        device: path.display().to_string(),
        detail: format!("the file {detail}"),
        cure: "replace or remove it".into(),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CameraError {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let (detail, cure) = match error.kind() {
        NotFound => ("no such file or folder".to_owned(), "check the path"),
        PermissionDenied => ("may not be read".to_owned(), "give the agent's user read permission"),
        _ => (format!("cannot be read ({error})"), "check the disk"),
    };
    CameraError::Unavailable { device: path.display().to_string(), detail, cure: cure.into() }
}

#[cfg(test)]
mod tests;
