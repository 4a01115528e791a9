"""Graphs in 8 bits compute nearly the same, from a quarter of the bytes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export.conftest import save_captioner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from modeling_cnnrnn.export.captioner import Captioner
from modeling_cnnrnn.export.folder import export_captioner
from modeling_cnnrnn.export.quantization import quantize_weights


def write_graph(path: Path) -> None:
    """A convolution, a Gemm with a transposed matrix, a MatMul and an embedding, their channels of very different sizes."""
    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(16, 3, 5, 5)) * np.geomspace(0.01, 10, 16)[:, None, None, None],
        "transposed": generator.normal(size=(64, 16)) * np.geomspace(0.01, 10, 64)[:, None],
        "plain": generator.normal(size=(64, 48)) * np.geomspace(0.01, 10, 48),
        "words": generator.normal(size=(50, 48)) * np.geomspace(0.01, 10, 50)[:, None],
        "bias": generator.normal(size=64),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "transposed", "bias"], ["hidden"], transB=1),
        helper.make_node("MatMul", ["hidden", "plain"], ["output"]),
        helper.make_node("Gather", ["words", "token"], ["embedded"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 9, 9]),
            helper.make_tensor_value_info("token", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("output", "embedded")],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_weights_in_eight_bits_compute_nearly_the_same(tmp_path):
    path = tmp_path / "graph.onnx"
    write_graph(path)
    inputs = {"image": np.random.default_rng(1).normal(size=(1, 3, 9, 9)).astype(np.float32), "token": np.array([7])}
    expected = onnxruntime.InferenceSession(path).run(None, inputs)
    size = path.stat().st_size
    quantize_weights(path)
    assert path.stat().st_size < 0.4 * size
    for computed, value in zip(onnxruntime.InferenceSession(path).run(None, inputs), expected, strict=True):
        # each channel has its scale: the small ones are as exact as the large ones
        assert np.abs(computed / value - 1).mean() < 0.05
        assert not np.array_equal(computed, value)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int8-weights"])
def test_a_captioner_in_eight_bits_looks_nearly_the_same(tmp_path, dtype):
    folder = save_captioner(tmp_path / "captioner", attention_type="additive")
    pictures = [Image.effect_noise((40 + i, 60), 10 * i + 10).convert("RGB") for i in range(10)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    exact = Captioner(export_captioner(str(folder), tmp_path / "exact"))
    images = [str(tmp_path / f"{i}.png") for i in range(10)] if dtype == "int8" else []
    rounded = Captioner(export_captioner(str(folder), tmp_path / dtype, dtype, images))
    for picture in pictures:
        regions, expected = (
            torch.from_numpy(captioner.encoder.run(None, {"pixels": captioner.load_pixels(picture)[None]})[0])
            for captioner in (rounded, exact)
        )
        assert torch.nn.functional.cosine_similarity(regions.flatten(), expected.flatten(), dim=0) > 0.98
        assert rounded(picture)
