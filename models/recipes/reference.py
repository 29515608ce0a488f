"""Picture to findings with onnxruntime and numpy: the reference for the agent's heads.

Boxes are x, y, width, height in parts of the picture, scores rounded to 4 decimals, highest score first.
"""

import os

import numpy as np
import onnxruntime
from PIL import Image

from preparation import prepare, read_manifest

CENTERFACE_STRIDE = 4
NANODET_BINS = 11


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def softmax(values, axis):
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def iou(box, boxes):
    """Overlap of one box with each of several, all left, top, right, bottom."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = np.clip(high - low, 0, None).prod(1)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return both / np.maximum(area(box) + area(boxes) - both, 1e-9)


def suppress(candidates, threshold):
    """Non-maximum suppression per class; a candidate is (score, class, box, landmarks)."""
    kept = []
    for candidate in sorted(candidates, key=lambda one: -one[0]):
        same = [other[2] for other in kept if other[1] == candidate[1]]
        if not same or iou(candidate[2], np.array(same)).max() < threshold:
            kept.append(candidate)
    return kept


def decode_nanodet(outputs, head, classes):
    """Raw maps 1 x (classes + 4 * bins) x H x W, one per stride."""
    candidates = []
    for stride, output in zip(head["strides"], outputs):
        output = output[0].astype(np.float64)
        width = output.shape[2]
        scores = sigmoid(output[:classes].reshape(classes, -1))
        bins = output[classes:].reshape(4, NANODET_BINS, -1)
        distances = (softmax(bins, 1) * np.arange(NANODET_BINS)[None, :, None]).sum(1) * stride
        for label, cell in zip(*np.nonzero(scores > head["score_threshold"])):
            x, y = (cell % width + 0.5) * stride, (cell // width + 0.5) * stride
            left, top, right, bottom = distances[:, cell]
            box = np.array([x - left, y - top, x + right, y + bottom])
            candidates.append((scores[label, cell], label, box, []))
    return suppress(candidates, head["iou_threshold"])


def decode_centerface(outputs, head, _classes):
    """Heat map, scale, offset (y before x) and landmarks (y before x, in parts of the box) at stride 4."""
    heat, scale, offset, points = (output[0].astype(np.float64) for output in outputs)
    candidates = []
    for y, x in zip(*np.nonzero(heat[0] > head["score_threshold"])):
        height, width = np.exp(scale[:, y, x]) * CENTERFACE_STRIDE
        centre_y, centre_x = (np.array([y, x]) + offset[:, y, x] + 0.5) * CENTERFACE_STRIDE
        left, top = centre_x - width / 2, centre_y - height / 2
        pairs = points[:, y, x].reshape(5, 2)
        landmarks = [(left + px * width, top + py * height) for py, px in pairs]
        box = np.array([left, top, left + width, top + height])
        candidates.append((heat[0, y, x], 0, box, landmarks))
    return suppress(candidates, head["iou_threshold"])


DETECTORS = {"nanodet": decode_nanodet, "centerface": decode_centerface}


def open_session(path):
    """onnxruntime on one thread, with exact int8 arithmetic on every processor.

    Without the setting, onnxruntime multiplies u8 by s8 with saturating 16-bit sums on x86 processors that lack VNNI
    instructions: EfficientNet-Lite0 then loses 7 points of top-1, and agrees with no other implementation.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Reference:
    """A model folder, run by onnxruntime."""

    def __init__(self, folder, model=None):
        self.manifest = read_manifest(os.path.join(folder, "manifest.toml"))
        with open(os.path.join(folder, self.manifest["labels"])) as file:
            self.labels = file.read().splitlines()
        self.session = open_session(model or os.path.join(folder, self.manifest["model"]))

    def run(self, picture):
        """Output tensors in the order of the graph, and the geometry of a letterbox."""
        tensor, geometry = prepare(picture, self.manifest["input"])
        return self.session.run(None, {self.manifest["input"]["tensor"]: tensor}), geometry

    def find(self, picture, **overrides):
        """Detections or classes; `overrides` replace values of the manifest's head."""
        head = self.manifest["head"] | overrides
        outputs, geometry = self.run(picture)
        if head["kind"] == "softmax":
            return self.classes(outputs[0].reshape(-1).astype(np.float64), head)
        found = DETECTORS[head["kind"]](outputs, head, len(self.labels))
        return [self.detection(one, geometry, Image.open(picture).size) for one in found]

    def classes(self, logits, head):
        scores = logits if head.get("probabilities") else softmax(logits, 0)
        best = np.argsort(-scores, kind="stable")[: head.get("top_k", 5)]
        return [{"label": self.labels[one], "class": int(one), "score": round(float(scores[one]), 4)} for one in best]

    def detection(self, candidate, geometry, size):
        score, label, box, landmarks = candidate
        scale, *corner = geometry
        part = lambda point: (np.asarray(point) - corner) / scale / size
        low, high = part(box[:2]).clip(0, 1), part(box[2:]).clip(0, 1)
        x, y, w, h = (round(float(value), 4) for value in (*low, *(high - low)))
        row = {"label": self.labels[label], "class": int(label), "score": round(float(score), 4),
               "box": {"x": x, "y": y, "w": w, "h": h}}
        if landmarks:
            row["landmarks"] = [[round(float(value), 4) for value in part(point)] for point in landmarks]
        return row
