"""Static int8 quantisation with onnxruntime: u8 activations, s8 weights per channel, min-max calibration.

Use: quantise.py STEM MANIFEST PICTURE...
Reads STEM-fp32.onnx; writes STEM.onnx (QDQ) and STEM-qop.onnx (QOperator). The manifest says how a picture is prepared.
"""

import os
import random
import sys
import tempfile

from onnxruntime.quantization import (CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType,
                                      quantize_static)
from onnxruntime.quantization.shape_inference import quant_pre_process

from preparation import prepare, read_manifest

FORMS = {"": QuantFormat.QDQ, "-qop": QuantFormat.QOperator}


class Pictures(CalibrationDataReader):
    """Feeds each picture once."""

    def __init__(self, paths, given):
        self.inputs = ({given["tensor"]: prepare(path, given)[0]} for path in paths)

    def get_next(self):
        return next(self.inputs, None)


def quantise(source, target, form, reader):
    quantize_static(source, target, reader, quant_format=form, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    extra_options={"ActivationSymmetric": False, "WeightSymmetric": True})


def main(stem, manifest, *pictures):
    given = read_manifest(manifest)["input"]
    # The order is part of the recipe: calibration folds ranges in the order of the pictures.
    paths = sorted(pictures)
    random.Random(0).shuffle(paths)
    with tempfile.TemporaryDirectory() as folder:
        prepared = os.path.join(folder, "prepared.onnx")
        quant_pre_process(f"{stem}-fp32.onnx", prepared, skip_symbolic_shape=True)
        for suffix, form in FORMS.items():
            quantise(prepared, f"{stem}{suffix}.onnx", form, Pictures(paths, given))


if __name__ == "__main__":
    main(*sys.argv[1:])
