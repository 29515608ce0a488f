//! `manifest.toml`: what a model package says of itself. Format 1.
//!
//! These types accept exactly the documented keys; whether the values fit together and fit the model is checked
//! by the agent when it builds its model specification.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The manifest format that this crate reads and writes.
pub const FORMAT: u32 = 1;
/// File name of the manifest in a package.
pub const FILE_NAME: &str = "manifest.toml";
/// Largest manifest accepted, bytes.
pub const MAX_MANIFEST_BYTES: u64 = 64 * 1024;
/// Largest package accepted, bytes.
pub const MAX_PACKAGE_BYTES: u64 = 64 * 1024 * 1024;

/// A package's manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Manifest format, [`FORMAT`].
    pub format: u32,
    /// Package name, see [`crate::Id`].
    pub name: String,
    /// Package version, semver.
    pub version: String,
    /// What the model does.
    pub task: Task,
    /// The ONNX file, relative to the package.
    pub model: String,
    /// One label a line, relative to the package.
    pub labels: String,
    /// SPDX expression of the weights' licence.
    pub license: String,
    /// How a picture becomes the input tensor.
    pub input: Input,
    /// How output tensors become findings.
    pub head: Head,
    /// Pictures with known answers.
    #[serde(default)]
    pub golden: Vec<Golden>,
    /// Limits to stay below; also per board.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Vendor files for NPUs.
    #[serde(default)]
    pub delegate: Vec<DelegateBlob>,
}

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Labels for the whole picture.
    Classification,
    /// Boxes with labels.
    Detection,
}

/// `[input]`: how a picture becomes the input tensor, `1 x channels x height x width`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name of the graph input.
    pub tensor: String,
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// Channel order.
    pub color: Color,
    /// How a picture of another shape is fitted.
    pub resize: Resize,
    /// Resampling filter, antialiased when shrinking.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Where a letterboxed picture lies. Letterbox only.
    #[serde(default)]
    pub anchor: Option<Anchor>,
    /// Side of the centre crop in parts of the short side. Crop only.
    #[serde(default)]
    pub crop_fraction: Option<f32>,
    /// Value of the letterbox's border, 0 to 255, before normalisation. Letterbox only.
    #[serde(default)]
    pub fill: Option<u8>,
    /// Subtracted from each channel (0 to 255), in the tensor's channel order.
    pub mean: Vec<f32>,
    /// Divides each channel after that.
    pub std: Vec<f32>,
}

/// Channel order of the input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One luma channel.
    Gray,
}

/// How a picture of another shape is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// Whole picture, shape kept, border filled.
    Letterbox,
    /// Centre square of `crop_fraction` of the short side.
    Crop,
    /// Whole picture, shape not kept.
    Stretch,
}

/// Resampling filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Catmull-Rom (a = -0.5), as Pillow's BICUBIC.
    Bicubic,
}

/// Where a letterboxed picture lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// Border right or below.
    #[default]
    TopLeft,
    /// Border on both sides.
    Center,
}

/// `[head]`: how output tensors become findings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Head {
    /// One row of logits (or probabilities) over the labels.
    Softmax {
        /// The output already holds probabilities.
        #[serde(default)]
        probabilities: bool,
        /// Classes reported.
        #[serde(default = "default_top_k")]
        top_k: usize,
    },
    /// NanoDet: per stride one map `1 x (classes + 4 bins) x H x W` of raw class logits and box distributions.
    Nanodet {
        /// Pixels per cell of each output, in the order of the outputs.
        strides: Vec<usize>,
        /// Detections below are dropped, 0 to 1.
        score_threshold: f32,
        /// Overlap above which the weaker box of a class is dropped.
        iou_threshold: f32,
    },
    /// YOLOv8 and YOLO11: decoded `1 x (4 + classes) x anchors`, or raw maps with box distributions.
    Yolov8 {
        /// Pixels per cell of each raw map; empty for decoded outputs.
        #[serde(default)]
        strides: Vec<usize>,
        /// Detections below are dropped, 0 to 1.
        score_threshold: f32,
        /// Overlap above which the weaker box of a class is dropped.
        iou_threshold: f32,
    },
    /// CenterFace: heat map, scale, offset and landmarks at stride 4.
    Centerface {
        /// Detections below are dropped, 0 to 1.
        score_threshold: f32,
        /// Overlap above which the weaker box is dropped.
        iou_threshold: f32,
    },
}

fn default_top_k() -> usize {
    5
}

/// `[[golden]]`: a picture and its known answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Picture, relative to the package.
    pub image: String,
    /// JSON array of detections or classes, relative to the package.
    pub expect: String,
    /// Largest difference of a score.
    #[serde(default = "default_score_tolerance")]
    pub score_tolerance: f32,
}

fn default_score_tolerance() -> f32 {
    0.05
}

/// `[budget]`: limits to stay below.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Budget {
    /// 90th percentile of inference time, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p90_ms: Option<f32>,
    /// Memory of the model, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Limits on boards with this label, in place of the general ones.
    #[serde(flatten)]
    pub boards: BTreeMap<String, BoardBudget>,
}

/// By hand, because a flattened map would forget the name of a misspelt key.
impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Budget;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a table of latency_p90_ms, memory_mib and tables per board")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Budget, A::Error> {
                let mut budget = Budget::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "latency_p90_ms" => budget.latency_p90_ms = Some(map.next_value()?),
                        "memory_mib" => budget.memory_mib = Some(map.next_value()?),
                        _ => {
                            let limits = map.next_value().map_err(|error| {
                                A::Error::custom(format!(
                                    "budget.{key} is no table of a board: {error}"
                                ))
                            })?;
                            budget.boards.insert(key, limits);
                        }
                    }
                }
                Ok(budget)
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// `[budget.<board label>]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardBudget {
    /// 90th percentile of inference time, milliseconds.
    #[serde(default)]
    pub latency_p90_ms: Option<f32>,
    /// Memory of the model, MiB.
    #[serde(default)]
    pub memory_mib: Option<u32>,
}

/// `[[delegate]]`: a vendor's compiled form of the same model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateBlob {
    /// Delegate that loads it, for example `rknn`.
    pub kind: String,
    /// File, relative to the package.
    pub file: String,
    /// Digest of the file, hex.
    pub sha256: String,
    /// System on chip it was compiled for.
    pub target: String,
    /// Version of the vendor's compiler.
    #[serde(default)]
    pub toolchain: Option<String>,
    /// Version of the vendor's runtime that it needs: a range such as `>=2.3.0, <3`, or one exact text.
    #[serde(default)]
    pub runtime: Option<String>,
    /// Inputs and outputs that are not as in the model.
    #[serde(default)]
    pub io: Vec<DelegateIo>,
    /// What its answers may differ from the reference's; without it, what the device's configuration allows.
    #[serde(default)]
    pub tolerance: Option<DelegateTolerance>,
}

/// `io` of `[[delegate]]`: a tensor as the device wants it. The agent converts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateIo {
    /// Name in the model.
    pub tensor: String,
    /// Name in the compiled form, where that is another.
    #[serde(default)]
    pub name: Option<String>,
    /// Type on the device.
    pub element: DelegateElement,
    /// Scale of integers.
    #[serde(default = "one")]
    pub scale: f32,
    /// Integer that stands for 0.
    #[serde(default)]
    pub zero_point: i32,
    /// Order on the device.
    #[serde(default)]
    pub layout: DelegateLayout,
}

fn one() -> f32 {
    1.0
}

/// Element types that pass to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the types' own names")]
pub enum DelegateElement {
    F32,
    U8,
    I8,
}

/// Order of a tensor's values on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DelegateLayout {
    /// As in the model: channels, rows, columns.
    #[default]
    Rows,
    /// Rows, columns, channels.
    ChannelsLast,
}

/// `tolerance` of `[[delegate]]`. First class and boxes are held to the golden pictures besides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateTolerance {
    /// Integer outputs: largest difference in steps.
    pub steps: u32,
    /// Float outputs: largest difference as a share of the span of the reference's values.
    pub share: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANODET: &str = r#"
format = 1
name = "nanodet-g-coco"
version = "1.0.0"
task = "detection"
model = "model.onnx"
labels = "labels.txt"
license = "Apache-2.0"
[input]
tensor = "input"
width = 416
height = 416
color = "bgr"
resize = "letterbox"
interpolation = "bilinear"
anchor = "top-left"
fill = 0
mean = [103.53, 116.28, 123.675]
std = [57.375, 57.12, 58.395]
[head]
kind = "nanodet"
strides = [8, 16, 32]
score_threshold = 0.4
iou_threshold = 0.6
[[golden]]
image = "golden/coffee.jpg"
expect = "golden/coffee.json"
score_tolerance = 0.05
[budget]
latency_p90_ms = 40.0
memory_mib = 64
[budget.rk3588]
latency_p90_ms = 20.0
"#;

    #[test]
    fn reads_the_documented_example() {
        let manifest: Manifest = toml::from_str(NANODET).unwrap();
        assert_eq!(manifest.name, "nanodet-g-coco");
        assert_eq!(manifest.golden[0].score_tolerance, 0.05);
        assert!(
            matches!(manifest.head, Head::Nanodet { ref strides, .. } if strides == &[8, 16, 32])
        );
        let budget = manifest.budget.unwrap();
        assert_eq!(budget.boards["rk3588"].latency_p90_ms, Some(20.0));
    }

    #[test]
    fn refuses_what_it_does_not_know_and_names_it() {
        let cases = [
            (NANODET.replace("iou_threshold", "iou_treshold"), "iou_treshold"),
            (NANODET.replace("\"nanodet\"", "\"nanodot\""), "nanodot"),
            (NANODET.replace("fill = 0", "fil = 0"), "fil"),
            (NANODET.replace("\"bgr\"", "\"gbr\""), "gbr"),
            (NANODET.replace("memory_mib = 64", "memory = 64"), "memory"),
        ];
        for (text, named) in cases {
            let error = toml::from_str::<Manifest>(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
