"""Writes the label files of the zoo, from torchvision's category lists.

Use: labels.py TORCHVISION_META.py MODELS
"""

import os
import runpy
import sys


def write(models, model, labels):
    with open(os.path.join(models, model, "labels.txt"), "w", newline="\n") as file:
        file.writelines(label + "\n" for label in labels)


def main(source, models):
    lists = runpy.run_path(source)
    # torchvision keeps the numbering of COCO's annotations, with holes; networks number the 80 classes in that order.
    coco = [name for name in lists["_COCO_CATEGORIES"] if name not in ("__background__", "N/A")]
    assert len(coco) == 80 and len(lists["_IMAGENET_CATEGORIES"]) == 1000
    write(models, "efficientnet-lite0", lists["_IMAGENET_CATEGORIES"])
    write(models, "nanodet-g-coco", coco)
    write(models, "centerface", ["face"])


if __name__ == "__main__":
    main(*sys.argv[1:])
