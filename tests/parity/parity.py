"""The other side of tests/parity.rs: Pillow, numpy and onnxruntime with exact int8 sums.

Use: parity.py tensors MODEL_FOLDER MODEL.onnx PICTURE…     each picture's input and outputs on standard output, raw float32
     parity.py classes MODEL_FOLDER FINDINGS PICTURES       lines of `ocelli infer --json` against the reference and labels
     parity.py detections MODEL_FOLDER FINDINGS PICTURES
`classes` and `detections` print their figures and end with 1 below the limits.
"""

import csv
import json
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../models/recipes"))
from evaluate import SCORE_THRESHOLD, mean_average_precisions, pictures_of, read_truth  # noqa: E402
from preparation import prepare  # noqa: E402
from reference import Reference  # noqa: E402

LEAST_AGREEMENT = 0.98
MOST_ACCURACY_APART = 0.010
MOST_MAP50_APART = 0.01


def tensors(folder, model, *pictures):
    reference = Reference(folder, model)
    given = reference.manifest["input"]
    for picture in pictures:
        tensor, _ = prepare(picture, given)
        for values in (tensor, *reference.session.run(None, {given["tensor"]: tensor})):
            sys.stdout.buffer.write(np.ascontiguousarray(values, "<f4").tobytes())
        sys.stdout.buffer.flush()
    return True


def read_findings(path, kind):
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    return {os.path.basename(row["source"]): row[kind] for row in rows}


def classes(folder, findings, pictures):
    found = read_findings(findings, "classes")
    reference = Reference(folder)
    with open(os.path.join(pictures, "labels.csv")) as file:
        truth = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    mine = {name: rows[0]["class"] for name, rows in found.items()}
    theirs = {name: reference.find(os.path.join(pictures, name))[0]["class"] for name in mine}
    same = sum(mine[name] == theirs[name] for name in mine)
    right = [sum(answers[name] == truth[name] for name in mine) / len(mine) for answers in (mine, theirs)]
    print(f"from JPEG: same top-1 on {same} of {len(mine)}; top-1 accuracy {right[0]:.4f}, reference {right[1]:.4f}")
    return (len(mine) == len(truth) and same >= LEAST_AGREEMENT * len(mine)
            and abs(right[0] - right[1]) <= MOST_ACCURACY_APART + 1e-9)


def detections(folder, findings, pictures):
    found = read_findings(findings, "detections")
    reference = Reference(folder)
    paths = pictures_of(pictures)
    names = [os.path.basename(path) for path in paths]
    truth = [read_truth(os.path.join(pictures, "labels", os.path.splitext(name)[0] + ".txt")) for name in names]
    theirs = [reference.find(path, score_threshold=SCORE_THRESHOLD) for path in paths]
    ours, reference_means = (mean_average_precisions(rows, truth) for rows in ([found[name] for name in names], theirs))
    for what, means in (("ocelli", ours), ("reference", reference_means)):
        print(f"from JPEG: {len(names)} pictures, {what}: mAP50 {means[0]:.4f}, mAP50-95 {np.mean(means):.4f}")
    return abs(ours[0] - reference_means[0]) <= MOST_MAP50_APART


if __name__ == "__main__":
    command = {"tensors": tensors, "classes": classes, "detections": detections}[sys.argv[1]]
    sys.exit(0 if command(*sys.argv[2:]) else 1)
