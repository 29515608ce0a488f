"""Accuracy of a model folder on labelled pictures, for comparing forms of one model: fp32, QDQ, QOperator.

Use: evaluate.py MODEL_FOLDER PICTURES [OTHER.onnx…]
     evaluate.py MODEL_FOLDER PICTURES --against OTHER.onnx
A classifier's PICTURES holds `labels.csv` with the columns file and class_index; a detector's holds `images/` and
`labels/` in YOLO form (class, centre x, centre y, width, height in parts of the picture).
With --against, what the other form of the detector finds above 0.5 is taken for the truth: agreement, not accuracy.
Detectors: mean average precision over the classes present, 101 points, greedy matching by score.
"""

import csv
import glob
import os
import sys

import numpy as np

from reference import Reference, iou

RECALL_POINTS = np.linspace(0, 1, 101)
IOU_THRESHOLDS = np.arange(0.5, 1, 0.05)
SCORE_THRESHOLD = 0.05
SURE_THRESHOLD = 0.5
MOST_DETECTIONS = 100


def evaluate_classifier(reference, folder):
    with open(os.path.join(folder, "labels.csv")) as file:
        rows = list(csv.DictReader(file))
    ranks = []
    for row in rows:
        outputs, _ = reference.run(os.path.join(folder, row["file"]))
        best = np.argsort(-outputs[0].reshape(-1), kind="stable")[:5]
        ranks.append(list(best).index(int(row["class_index"])) if int(row["class_index"]) in best else 5)
    ranks = np.array(ranks)
    return f"{len(rows)} pictures: top-1 {(ranks == 0).mean():.3f}, top-5 {(ranks < 5).mean():.3f}"


def corners(x, y, w, h):
    return [x, y, x + w, y + h]


def read_truth(path):
    """Rows of left, top, right, bottom, class."""
    if not os.path.exists(path):
        return np.zeros((0, 5))
    with open(path) as file:
        rows = [[float(value) for value in line.split()] for line in file if line.strip()]
    return np.array([[*corners(x - w / 2, y - h / 2, w, h), label] for label, x, y, w, h in rows]).reshape(-1, 5)


def average_precision(found, truth, label, threshold):
    """Of one class over all pictures."""
    hits, total = [], 0
    for picture, boxes in zip(found, truth):
        boxes = boxes[boxes[:, 4] == label][:, :4]
        total += len(boxes)
        free = np.ones(len(boxes), bool)
        for row in (row for row in picture if row["class"] == label):
            overlap = np.where(free, iou(np.array(corners(**row["box"])), boxes), -1) if len(boxes) else np.zeros(0)
            best = overlap.argmax() if len(boxes) else 0
            hit = bool(len(boxes)) and overlap[best] >= threshold
            if hit:
                free[best] = False
            hits.append((row["score"], hit))
    if not hits:
        return 0.0
    hits.sort(key=lambda one: -one[0])
    right = np.cumsum([hit for _, hit in hits])
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(right / total, RECALL_POINTS)
    return float(np.mean([precision[index] if index < len(precision) else 0 for index in at]))


def believe(other, pictures):
    """What another form of the model is sure of, as rows of truth."""
    found = [other.find(path, score_threshold=SURE_THRESHOLD) for path in pictures]
    return [np.array([[*corners(**row["box"]), row["class"]] for row in rows]).reshape(-1, 5) for rows in found]


def pictures_of(folder):
    return sorted(glob.glob(os.path.join(folder, "images", "*.jpg")))


def mean_average_precisions(found, truth):
    """Over the classes present, at each of the IoU thresholds."""
    found = [rows[:MOST_DETECTIONS] for rows in found]
    labels = np.unique(np.concatenate([boxes[:, 4] for boxes in truth]))
    return [np.mean([average_precision(found, truth, label, threshold) for label in labels])
            for threshold in IOU_THRESHOLDS]


def evaluate_detector(reference, folder, other=None):
    pictures = pictures_of(folder)
    names = [os.path.splitext(os.path.basename(path))[0] for path in pictures]
    truth = (believe(other, pictures) if other else
             [read_truth(os.path.join(folder, "labels", name + ".txt")) for name in names])
    found = [reference.find(path, score_threshold=SCORE_THRESHOLD) for path in pictures]
    means = mean_average_precisions(found, truth)
    count = sum(map(len, truth))
    return f"{len(pictures)} pictures, {count} boxes: mAP50 {means[0]:.3f}, mAP50-95 {np.mean(means):.3f}"


def main(folder, pictures, *others):
    if others[:1] == ("--against",):
        print(evaluate_detector(Reference(folder), pictures, Reference(folder, others[1])))
        return
    for model in (None, *others):
        reference = Reference(folder, model)
        kind = reference.manifest["task"]
        evaluate = evaluate_classifier if kind == "classification" else evaluate_detector
        print(model or os.path.join(folder, reference.manifest["model"]), evaluate(reference, pictures), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
