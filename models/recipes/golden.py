"""Writes what onnxruntime finds: the golden files of each model, and models/pictures/expected.json.

Use: golden.py MODELS [FOLDER…]   (default: the zoo, with copies of its demo pictures)
A golden picture is refused when an answer lies so near a threshold that rounding could change it.
"""

import json
import os
import shutil
import sys

from reference import Reference


def write(path, value):
    with open(path, "w", newline="\n") as file:
        rows = ",\n".join("  " + json.dumps(row) for row in value)
        file.write(f"[\n{rows}\n]\n" if value else "[]\n")


def assert_clear(reference, picture, tolerance):
    """No detection comes or goes within the tolerance; the first class leads by more than it."""
    head = reference.manifest["head"]
    if head["kind"] == "softmax":
        first, second, *_ = reference.find(picture)
        assert first["score"] - second["score"] > tolerance, f"{picture}: {first} and {second} are near"
        return
    lower = reference.find(picture, score_threshold=head["score_threshold"] - tolerance)
    near = [row for row in lower if abs(row["score"] - head["score_threshold"]) <= tolerance]
    assert not near, f"{picture}: near the threshold: {near}"


def write_golden(reference, folder, pictures):
    for golden in reference.manifest.get("golden", []):
        picture = os.path.join(folder, golden["image"])
        source = os.path.join(pictures, os.path.basename(picture))
        if os.path.exists(source):
            os.makedirs(os.path.dirname(picture), exist_ok=True)
            shutil.copyfile(source, picture)
        assert_clear(reference, picture, golden.get("score_tolerance", 0.05))
        write(os.path.join(folder, golden["expect"]), reference.find(picture))


def main(models, *folders):
    if folders:
        for folder in folders:
            path = os.path.join(models, folder)
            write_golden(Reference(path), path, "")
        return
    pictures = os.path.join(models, "pictures")
    names = sorted(name for name in os.listdir(pictures) if name.endswith(".jpg"))
    found = {}
    for folder in sorted(os.listdir(models)):
        path = os.path.join(models, folder)
        if os.path.exists(os.path.join(path, "manifest.toml")):
            reference = Reference(path)
            write_golden(reference, path, pictures)
            found[folder] = {name: reference.find(os.path.join(pictures, name)) for name in names}
    with open(os.path.join(pictures, "expected.json"), "w", newline="\n") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
