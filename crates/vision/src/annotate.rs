//! Draws findings into a picture, for people: boxes and labels, landmarks, or a classifier's list.

use embedded_graphics::mono_font::MonoTextStyleBuilder;
use embedded_graphics::mono_font::iso_8859_1::FONT_9X18_BOLD;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::StrokeAlignment;
use embedded_graphics::primitives::{Circle, PrimitiveStyle, PrimitiveStyleBuilder, Rectangle};
use embedded_graphics::text::{Baseline, Text};

pub use super::picture::{Picture, PictureError};
use ocelli_protocol::message::{Classification, Detection, Findings};

/// Colours that stay apart on most pictures; a class keeps its colour.
const PALETTE: [Rgb888; 10] = [
    Rgb888::new(230, 60, 50),
    Rgb888::new(40, 130, 240),
    Rgb888::new(40, 170, 70),
    Rgb888::new(245, 150, 20),
    Rgb888::new(160, 70, 210),
    Rgb888::new(20, 180, 190),
    Rgb888::new(235, 70, 160),
    Rgb888::new(140, 110, 60),
    Rgb888::new(120, 190, 30),
    Rgb888::new(90, 90, 220),
];
/// Characters of a font cell, pixels.
const CELL: Size = Size::new(9, 18);

/// Draws every finding. Lines and text grow with the picture, and text stays inside it.
pub fn annotate(picture: &mut Picture, findings: &Findings) {
    let mut canvas = Canvas::new(picture);
    match findings {
        Findings::Detections(detections) => {
            // The best is drawn last: on top.
            for detection in detections.iter().rev() {
                canvas.detection(detection);
            }
        }
        Findings::Classes(classes) => canvas.captions(classes),
    }
}

/// A picture to draw on, in units of `zoom` pixels.
struct Canvas<'a> {
    picture: &'a mut Picture,
    zoom: u32,
}

impl<'a> Canvas<'a> {
    fn new(picture: &'a mut Picture) -> Self {
        // Text of about a thirtieth of the picture's height.
        let zoom = (picture.width.min(picture.height) as u32 / 420).max(1);
        Self { picture, zoom }
    }

    fn detection(&mut self, detection: &Detection) {
        let color = color(detection.class);
        let Size { width, height } = self.size();
        let at = |part: f32, side: u32| (part.clamp(0.0, 1.0) * side as f32).round() as i32;
        let area = detection.bounding_box;
        let top_left = Point::new(at(area.x, width), at(area.y, height));
        let bottom_right = Point::new(at(area.x + area.w, width), at(area.y + area.h, height));
        let outline = PrimitiveStyleBuilder::new()
            .stroke_color(color)
            .stroke_width(2)
            .stroke_alignment(StrokeAlignment::Inside)
            .build();
        let corner = bottom_right - Point::new(1, 1);
        draw(Rectangle::with_corners(top_left, corner).into_styled(outline), self);
        for &[x, y] in &detection.landmarks {
            let centre = Point::new(at(x, width), at(y, height));
            let dot = |diameter| Circle::with_center(centre, diameter);
            draw(dot(7).into_styled(PrimitiveStyle::with_fill(Rgb888::WHITE)), self);
            draw(dot(5).into_styled(PrimitiveStyle::with_fill(color)), self);
        }
        let text = format!("{} {:.0}%", detection.label, detection.score * 100.0);
        self.label(&text, top_left - Point::new(0, CELL.height as i32 + 2), color);
    }

    fn captions(&mut self, classes: &[Classification]) {
        for (row, class) in classes.iter().enumerate() {
            let text = format!("{:>3.0}% {}", class.score * 100.0, class.label);
            let top = 4 + row as i32 * (CELL.height as i32 + 4);
            self.label(&text, Point::new(4, top), color(class.class));
        }
    }

    /// Text on a filled background, moved and cut so that it stays inside the picture.
    fn label(&mut self, text: &str, at: Point, color: Rgb888) {
        let Size { width, height } = self.size();
        let fitting = (width.saturating_sub(6) / CELL.width) as usize;
        let text: String = text.chars().take(fitting.max(1)).collect();
        let size = Size::new(text.chars().count() as u32 * CELL.width + 6, CELL.height + 2);
        let inside = |at: i32, size: u32, side: u32| at.min(side as i32 - size as i32).max(0);
        let at = Point::new(inside(at.x, size.width, width), inside(at.y, size.height, height));
        draw(Rectangle::new(at, size).into_styled(PrimitiveStyle::with_fill(color)), self);
        let style =
            MonoTextStyleBuilder::new().font(&FONT_9X18_BOLD).text_color(Rgb888::WHITE).build();
        draw(Text::with_baseline(&text, at + Point::new(3, 1), style, Baseline::Top), self);
    }
}

/// Classes whose numbers differ by ten, or are near each other, differ in colour.
fn color(class: usize) -> Rgb888 {
    PALETTE[class.wrapping_add(class / PALETTE.len()) % PALETTE.len()]
}

fn draw<D: Drawable<Color = Rgb888>>(drawable: D, canvas: &mut Canvas<'_>) {
    match drawable.draw(canvas) {
        Ok(_) => {}
    }
}

impl OriginDimensions for Canvas<'_> {
    fn size(&self) -> Size {
        let units = |pixels: usize| (pixels as u32).div_ceil(self.zoom);
        Size::new(units(self.picture.width), units(self.picture.height))
    }
}

impl DrawTarget for Canvas<'_> {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Self::Error>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        let (width, height, zoom) = (self.picture.width, self.picture.height, self.zoom as usize);
        for Pixel(Point { x, y }, color) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { continue };
            let columns = (x * zoom).min(width)..((x + 1) * zoom).min(width);
            for row in (y * zoom).min(height)..((y + 1) * zoom).min(height) {
                let line = row * width * 3;
                if let Some(pixels) =
                    self.picture.rgb.get_mut(line + columns.start * 3..line + columns.end * 3)
                {
                    for pixel in pixels.chunks_exact_mut(3) {
                        pixel.copy_from_slice(&[color.r(), color.g(), color.b()]);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocelli_protocol::message::BoundingBox;

    fn gray(width: usize, height: usize) -> Picture {
        Picture { width, height, rgb: vec![128; width * height * 3] }
    }

    fn detection(x: f32, y: f32, w: f32, h: f32) -> Detection {
        let bounding_box = BoundingBox { x, y, w, h };
        let landmarks = vec![[x + w / 2.0, y + h / 2.0]];
        Detection { label: "person".to_owned(), class: 3, score: 0.83, bounding_box, landmarks }
    }

    fn pixel(picture: &Picture, x: usize, y: usize) -> [u8; 3] {
        let at = (y * picture.width + x) * 3;
        [picture.rgb[at], picture.rgb[at + 1], picture.rgb[at + 2]]
    }

    #[test]
    fn the_outline_lies_on_the_box_and_grows_with_the_picture() {
        for (side, line) in [(400, 2), (1712, 8)] {
            let mut picture = gray(side, side);
            annotate(&mut picture, &Findings::Detections(vec![detection(0.25, 0.5, 0.5, 0.25)]));
            let color = [245, 150, 20];
            let (left, middle) = (side / 4, side * 5 / 8);
            assert_eq!(pixel(&picture, left, middle), color);
            assert_eq!(pixel(&picture, left + line - 1, middle), color);
            assert_eq!(pixel(&picture, left + line, middle), [128; 3]);
            assert_eq!(pixel(&picture, left - 1, middle), [128; 3]);
            assert_eq!(pixel(&picture, side / 2, middle), color, "landmark");
        }
    }

    #[test]
    fn labels_stay_inside_pictures_of_any_size() {
        for (width, height) in [(1, 1), (3, 90), (40, 12), (640, 480)] {
            for (x, y) in [(0.0, 0.0), (0.9, 0.9), (-0.5, 1.5)] {
                let mut picture = gray(width, height);
                annotate(&mut picture, &Findings::Detections(vec![detection(x, y, 0.1, 0.1)]));
                let classes = vec![Classification { label: "x".repeat(300), class: 1, score: 1.0 }];
                annotate(&mut picture, &Findings::Classes(classes));
                assert_eq!(picture.rgb.len(), width * height * 3);
                assert!(picture.rgb.iter().any(|&value| value != 128), "{width}x{height} {x} {y}");
            }
        }
    }

    #[test]
    fn decodes_what_it_encodes_and_refuses_the_rest() {
        let picture = gray(33, 17);
        assert_eq!(Picture::decode(&picture.encode_png().unwrap()).unwrap(), picture);
        assert_eq!(Picture::decode(&picture.encode_jpeg(90).unwrap()).unwrap(), picture);
        let unknown = Picture::decode(b"BM6");
        assert!(matches!(unknown, Err(PictureError::UnknownFormat { .. })), "{unknown:?}");
        for file in [picture.encode_png().unwrap(), picture.encode_jpeg(90).unwrap()] {
            let half = Picture::decode(&file[..file.len() / 2]);
            assert!(matches!(half, Err(PictureError::Unreadable(_))), "{half:?}");
        }
        let wide = Picture { width: 70_000, height: 1, rgb: vec![0; 210_000] };
        assert!(matches!(wide.encode_jpeg(90), Err(PictureError::Unencodable { .. })));
    }
}
