"""Writes the demo pictures as JPEG, from scikit-image's public-domain and CC0 samples.

Use: pictures.py SKIMAGE_DATA MODELS
"""

import os
import sys

from PIL import Image

CHELSEA_CROP = (0, 20, 451, 300)
COFFEE_CROP = (90, 0, 540, 300)
HORSE_MARGIN = 100
BACKGROUND, COAT = (128, 128, 128), (60, 40, 30)


def silhouette(picture):
    """The horse, a black shape on white, as a brown one on grey with a margin: networks expect photographs."""
    size = tuple(side + 2 * HORSE_MARGIN for side in picture.size)
    canvas = Image.new("RGB", size, BACKGROUND)
    shape = picture.convert("L").point(lambda luma: 255 if luma < 128 else 0)
    canvas.paste(Image.new("RGB", picture.size, COAT), (HORSE_MARGIN, HORSE_MARGIN), shape)
    return canvas


PICTURES = {
    "astronaut.png": lambda picture: picture,
    "camera.png": lambda picture: picture,
    "chelsea.png": lambda picture: picture.crop(CHELSEA_CROP),
    "coffee.png": lambda picture: picture.crop(COFFEE_CROP),
    "horse.png": silhouette,
    "rocket.jpg": lambda picture: picture,
}


def main(data, models):
    folder = os.path.join(models, "pictures")
    os.makedirs(folder, exist_ok=True)
    for name, change in PICTURES.items():
        picture = change(Image.open(os.path.join(data, name)).convert("RGB"))
        picture.save(os.path.join(folder, os.path.splitext(name)[0] + ".jpg"), quality=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
