"""Picture to input tensor, as the `[input]` section of a manifest says: the reference for the agent's preprocessing."""

import tomllib

import numpy as np
from PIL import Image

FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def read_manifest(path):
    with open(path, "rb") as file:
        return tomllib.load(file)


def letterbox(picture, given, kernel):
    """The whole picture, its shape kept, on a square of `fill`."""
    width, height = picture.size
    scale = min(given["width"] / width, given["height"] / height)
    size = (round(width * scale), round(height * scale))
    canvas = Image.new("RGB", (given["width"], given["height"]), (given.get("fill", 0),) * 3)
    centred = given.get("anchor", "top-left") == "center"
    corner = ((given["width"] - size[0]) // 2, (given["height"] - size[1]) // 2) if centred else (0, 0)
    canvas.paste(picture.resize(size, kernel), corner)
    return canvas, (scale, *corner)


def crop(picture, given, kernel):
    """The centre square of `crop_fraction` of the short side."""
    width, height = picture.size
    side = int(given.get("crop_fraction", 1.0) * min(width, height))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((given["width"], given["height"]), kernel)


def prepare(path, given):
    """1 x channels x height x width of float32, and for a letterbox its scale and corner."""
    picture = Image.open(path).convert("RGB")
    kernel = FILTERS[given.get("interpolation", "bilinear")]
    geometry = None
    if given["resize"] == "letterbox":
        picture, geometry = letterbox(picture, given, kernel)
    elif given["resize"] == "crop":
        picture = crop(picture, given, kernel)
    else:
        picture = picture.resize((given["width"], given["height"]), kernel)
    if given["color"] == "gray":
        pixels = np.asarray(picture.convert("L"), np.float64)[:, :, None]
    else:
        pixels = np.asarray(picture, np.float64)
    if given["color"] == "bgr":
        pixels = pixels[:, :, ::-1]
    pixels = (pixels - given["mean"]) / given["std"]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32), geometry
