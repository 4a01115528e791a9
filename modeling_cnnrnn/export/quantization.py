"""Weights in 8 bits, and computation in 8 bits."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .graphs import quiet


MIN_ELEMENTS = 1024  # smaller tensors stay floats: they are no part of the size


def quantize_weights(path: Path) -> None:
    """
    Store the weights of a graph in 8 bits, with a scale for each output channel, and compute in floats as before.

    The file is a quarter of its size. ONNX Runtime makes floats of the weights when it loads the graph with the option
    `session.disable_quant_qdq`.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    axes = {name: axis for node in graph.node for name, axis in _channel_axes(node)}
    nodes = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < MIN_ELEMENTS or values.ndim < 2:
            continue
        axis = axes.get(tensor.name, 0)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scales = np.maximum(np.abs(values).max(axis=others), 1e-12) / 127
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        rounded = np.rint(values / scales.reshape(shape)).astype(np.int8)
        names = [f"{tensor.name}_quantized", f"{tensor.name}_scale"]
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            numpy_helper.from_array(array, name)
            for array, name in zip((rounded, scales.astype(np.float32)), names, strict=True)
        )
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _channel_axes(node) -> Iterator[tuple[str, int]]:
    """Yield the weights of a node with the axis of their output channels; of an embedding, that of the words."""
    if node.op_type == "MatMul":
        yield node.input[1], 1
    elif node.op_type == "Gemm":
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        yield node.input[1], 0 if is_transposed else 1


def quantize_computation(encoder: Path, decoder: Path, images: Iterable[np.ndarray]) -> None:
    """
    Let both graphs compute in 8 bits: the CNN with ranges that images have set, the decoder with those of each step.

    Args:
        encoder, decoder: files of graphs, which are overwritten.
        images: pixels for the encoder, `(H, W, 3)` each.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"pixels": pixels[None]} for pixels in images])

        def get_next(self):
            return next(self.batches, None)  # type: ignore[call-overload]

    with tempfile.TemporaryDirectory() as folder, quiet():
        quantized = Path(folder, "graph.onnx")
        nodes = onnx.load(encoder).graph.node
        first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
        quantize_static(
            encoder,
            quantized,
            Reader(),
            QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # the normalization costs as much as the CNN if it is rounded before and after
            nodes_to_exclude=[node.name for node in nodes[:first]],
        )
        encoder.write_bytes(quantized.read_bytes())
        quantize_dynamic(decoder, quantized, weight_type=QuantType.QInt8, per_channel=True)
        decoder.write_bytes(quantized.read_bytes())
