"""Every operator of the torch run of an ONNX graph, against ONNX's own reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgekit.errors import StageError
from edgekit.quantizers._torch_graph import OPS, TorchGraph

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)


def real(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    return RNG.uniform(low, high, shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node: its inputs (those that are ``fixed`` by position are constants of the file) and attributes.

    ``runtime``: judged by ONNX Runtime, where the reference evaluator departs from ONNX's text or can't run the case.
    """

    op: str
    inputs: Sequence[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    fixed: Sequence[int] = ()
    outputs: int = 1
    opset: int = 18
    runtime: bool = False

    def __str__(self) -> str:
        words = "-".join(f"{k}={v}" for k, v in self.attributes.items() if isinstance(v, int | str | float))
        return f"{self.op}-{self.opset}-{words}-{len(self.inputs)}-{self.fixed}".replace(" ", "")


def model_of(case: Case) -> onnx.ModelProto:
    names = ["" if value is None else f"i{n}" for n, value in enumerate(case.inputs)]
    outs = [f"o{n}" for n in range(case.outputs)]
    node = helper.make_node(case.op, names, outs, name="the_node", **case.attributes)
    free = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for n, (name, value) in enumerate(zip(names, case.inputs, strict=True))
        if value is not None and n not in case.fixed
    ]
    constants = [numpy_helper.from_array(case.inputs[n], names[n]) for n in case.fixed]
    ends = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outs]
    graph = helper.make_graph([node], "one", free, ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)


def by_runtime(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    for output in model.graph.output:
        output.ClearField("type")  # ONNX Runtime infers it
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def run_both(case: Case) -> tuple[list[Array], list[Array]]:
    model = model_of(case)
    feeds = {f"i{n}": v for n, v in enumerate(case.inputs) if v is not None and n not in case.fixed}
    wanted = by_runtime(model, feeds) if case.runtime else ReferenceEvaluator(model).run(None, feeds)
    with torch.no_grad():
        got = TorchGraph(model)({name: torch.from_numpy(value.copy()) for name, value in feeds.items()})
    return [value.numpy() for value in got], wanted


X = real(2, 6, 5, 4)
MASK = RNG.random((2, 3)) > 0.5
W3 = real(4, 3, 3, 3)
IMAGE = real(2, 3, 9, 8)
UNARY = (
    *(
        "Abs",
        "Neg",
        "Exp",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Erf",
        "Tanh",
        "Sigmoid",
        "Relu",
        "Reciprocal",
        "Identity",
    ),
    *("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Softplus", "Softsign", "Mish", "HardSwish", "IsNaN"),
)
REDUCE = ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "Prod")

CASES = [
    *(Case(op, [real(2, 5)], opset=22) for op in UNARY),
    *(Case(op, [real(2, 5, low=0.1, high=0.9)]) for op in ("Log", "Sqrt", "Asin", "Acos", "Atanh")),
    Case("Acosh", [real(2, 5, low=1.1, high=3)]),
    Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)]),
    Case("Round", [np.array([0.5, 1.5, -2.5, 2.4], np.float32)]),
    *(Case(op, [real(2, 3, 4), real(3, 1)]) for op in ("Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal")),
    *(Case(op, [whole(7, -7, 3), whole(2, 2, 3)]) for op in ("Div", "Mod", "LessOrEqual", "GreaterOrEqual", "Equal")),
    Case("Mod", [real(6), real(6, low=0.5)], {"fmod": 1}),
    Case("Pow", [real(2, 3, low=0.2), np.array(3, np.int64)]),
    Case("Pow", [whole(2, 3), np.array(2.0, np.float32)]),
    *(Case(op, [MASK, ~MASK[:1]]) for op in ("And", "Or", "Xor")),
    Case("Not", [MASK]),
    *(Case(op, [real(2, 3), real(3), real(2, 1)]) for op in ("Sum", "Max", "Min", "Mean")),
    Case("Where", [MASK, real(2, 3), real(1, 3)]),
    Case("Clip", [real(9), np.array(-1, np.float32), np.array(0.5, np.float32)], fixed=(1, 2)),
    Case("Clip", [real(9), None, np.array(0.5, np.float32)]),
    Case("Clip", [real(9)], {"min": -0.5, "max": 0.25}, opset=10),
    Case("Cast", [real(9)], {"to": TensorProto.INT64}),
    Case("Cast", [MASK], {"to": TensorProto.FLOAT}),
    Case("CastLike", [whole(1, 2), real(1)]),
    *(Case(op, [real(2, 3, 4)], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (1, -1)),
    Case("Softmax", [real(2, 3, 4)], {"axis": 1}, opset=11, runtime=True),
    Case("Gelu", [real(9)], opset=20),
    Case("Gelu", [real(9)], {"approximate": "tanh"}, opset=20),
    *(Case(op, [real(9)]) for op in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Selu", "HardSigmoid", "Shrink")),
    *(Case(op, [real(9)], {"alpha": 0.3}) for op in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "HardSigmoid")),
    Case("Shrink", [real(9)], {"bias": 0.2, "lambd": 0.9}),
    Case("PRelu", [X, real(6, 1, 1)], fixed=(1,)),
    *(Case(f"Reduce{r}", [X, whole(-1, 1)], {"keepdims": k}, fixed=(1,)) for r in REDUCE for k in (0, 1)),
    *(Case(f"Reduce{r}", [real(2, 4, 3, low=0.1), whole(1)]) for r in ("LogSum", "LogSumExp")),
    Case("ReduceMean", [X], {"axes": [2, 3], "keepdims": 1}, opset=13),
    Case("ReduceSum", [X]),
    Case("ReduceSum", [X, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}, fixed=(1,)),
    *(Case(op, [real(3, 5)], {"axis": 1, "keepdims": 0}) for op in ("ArgMax", "ArgMin")),
    Case("ArgMax", [np.array([[1, 2, 2, 0]], np.float32)], {"axis": 1, "select_last_index": 1}),
    *(Case("CumSum", [real(3, 4), np.array(1)], {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)),
    Case("TopK", [real(3, 7), whole(3)], {"axis": 1}, outputs=2, fixed=(1,)),
    Case("TopK", [real(7, 3), whole(2)], {"axis": 0, "largest": 0}, outputs=2),
    Case("Reshape", [X, whole(0, -1, 4)], fixed=(1,)),
    Case("Reshape", [X, whole(2, 120)]),
    Case("Flatten", [X], {"axis": 2}),
    Case("Flatten", [X], {"axis": -1}),
    Case("Flatten", [X], {"axis": 0}),
    Case("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", [X]),
    Case("Squeeze", [real(2, 1, 3, 1), whole(1)], fixed=(1,)),
    Case("Squeeze", [real(2, 1, 3, 1)]),
    Case("Squeeze", [real(2, 1, 3)], {"axes": [1]}, opset=11),
    Case("Unsqueeze", [real(2, 3), whole(0, -1)], fixed=(1,)),
    Case("Unsqueeze", [real(2, 3), whole(1)]),
    Case("Concat", [real(2, 3), real(2, 1), real(2, 2)], {"axis": 1}),
    Case("Concat", [real(2, 3), real(1, 3)], {"axis": -2}),
    Case("Split", [real(2, 7), whole(2, 5)], {"axis": 1}, outputs=2, fixed=(1,)),
    Case("Split", [real(2, 7)], {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", [real(6, 2)], {}, outputs=2, opset=13),
    Case("Slice", [X, whole(1, -3), whole(5, 1000), whole(1, 3), whole(2, 1)], fixed=(1, 2, 3, 4)),
    Case("Slice", [X, whole(-1, 3), whole(-(2**62), 0), whole(1, 2), whole(-1, -2)]),
    Case("Slice", [X, whole(1), whole(2)]),
    Case("Gather", [X, np.array([[0, -1], [2, 3]])], {"axis": 1}),
    Case("Gather", [whole(5, 6, 7), np.array(1)], fixed=(1,)),
    Case("GatherElements", [real(3, 4), np.array([[0, -1], [2, 1]])], {"axis": 1}, runtime=True),
    Case("GatherND", [real(2, 3, 4), np.array([[0, 1], [1, 2]])]),
    Case("GatherND", [real(2, 3, 4), np.array([[[1], [0]], [[2], [2]]])], {"batch_dims": 1}),
    *(
        Case("ScatterElements", [real(3, 4), np.array([[0, 2], [1, 3]]), real(2, 2)], {"axis": 1, "reduction": how})
        for how in ("none", "add", "mul", "max", "min")
    ),
    *(Case("ScatterND", [real(4, 3), np.array([[1], [3]]), real(2, 3)], {"reduction": how}) for how in ("none", "add")),
    Case("Expand", [real(3, 1), whole(2, 1, 6)], fixed=(1,)),
    Case("Expand", [real(3, 4), whole(3, 1)]),
    Case("Tile", [real(2, 3), whole(2, 3)]),
    Case("Pad", [X, whole(0, 1, 0, 2, 0, 2, 1, 0), np.array(0.5, np.float32)], fixed=(1, 2)),
    Case("Pad", [X, whole(0, 0, 1, -1, 0, 0, 0, 2)], runtime=True),
    Case("Pad", [X, whole(1, 2, 0, 1), None, whole(-1, 1)]),
    *(Case("Pad", [X, whole(0, 1, 2, 0, 0, 0, 1, 3)], {"mode": m}) for m in ("edge", "reflect")),
    Case("Pad", [X, whole(0, 1, 2, 0, 0, 0, 1, 3)], {"mode": "wrap"}, opset=19),
    Case("Shape", [X]),
    Case("Shape", [X], {"start": 1, "end": -1}),
    Case("Size", [X]),
    Case("ConstantOfShape", [whole(2, 3)], {"value": numpy_helper.from_array(np.array([7], np.int64))}),
    Case("ConstantOfShape", [whole(2, 3)]),
    Case("Range", [np.array(2), np.array(11), np.array(3)]),
    Case("OneHot", [whole(0, 2, -1), np.array(3), np.array([0.5, 2], np.float32)], fixed=(1,)),
    Case("OneHot", [whole(0, 2), whole(3), np.array([0, 1], np.float32)], {"axis": 0}, runtime=True),
    Case("NonZero", [MASK]),
    *(Case("DepthToSpace", [real(2, 8, 3, 2)], {"blocksize": 2, "mode": m}) for m in ("DCR", "CRD")),
    Case("SpaceToDepth", [real(2, 3, 4, 6)], {"blocksize": 2}),
    Case("Trilu", [real(4, 5)]),
    Case("Trilu", [real(2, 4, 5), np.array(-1)], {"upper": 0}),
    *(
        Case("Resize", [IMAGE, None, None, whole(2, 3, 7, 12)], {"mode": m, "coordinate_transformation_mode": t}, (3,))
        for m in ("nearest", "linear", "cubic")
        for t in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        Case("Resize", [IMAGE, None, np.array([1, 1, 2, 2.5], np.float32)], {"nearest_mode": n}, (2,))
        for n in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    Case("Resize", [IMAGE, None, np.array([0.6, 0.6], np.float32)], {"mode": "linear", "axes": [2, 3]}, (2,)),
    Case("Conv", [IMAGE, W3, real(4)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}, (1, 2)),
    Case("Conv", [IMAGE, W3], {"pads": [0, 1, 2, 3], "dilations": [2, 1]}, (1,)),
    Case("Conv", [IMAGE, W3], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (1,)),
    Case("Conv", [IMAGE, W3], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (1,)),
    Case("Conv", [IMAGE, real(6, 1, 3, 3)], {"group": 3}, (1,)),
    Case("Conv", [real(2, 3, 9), real(4, 3, 3)], {"pads": [1, 0]}, (1,)),
    Case(
        "ConvTranspose",
        [IMAGE, real(3, 4, 3, 3), real(4)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        (1,),
    ),
    Case("ConvTranspose", [IMAGE, real(3, 4, 3, 3)], {"strides": [2, 1], "pads": [0, 1, 1, 0]}, (1,)),
    Case("Gemm", [real(3, 4), real(5, 4), real(5)], {"transB": 1}, (1, 2)),
    Case("Gemm", [real(4, 3), real(4, 5), real(3, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("MatMul", [real(2, 3, 4), real(4, 5)], fixed=(1,)),
    Case("Einsum", [real(2, 3, 4), real(2, 5, 4)], {"equation": "bic,bjc->bij"}),
    *(
        Case("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "pads": p, "strides": [2, 1]})
        for p in ([1, 0, 1, 1], [1, 1, 1, 1])
    ),
    Case("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", [real(2, 3, 9)], {"kernel_shape": [3], "dilations": [2]}),
    *(
        Case("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": p, "strides": [2, 2], "count_include_pad": c})
        for p in ([1, 1, 1, 1], [0, 1, 1, 0])
        for c in (0, 1)
    ),
    Case("AveragePool", [IMAGE], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    *(Case(op, [IMAGE]) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    Case("BatchNormalization", [IMAGE, real(3), real(3), real(3), real(3, low=0.2)], {"epsilon": 1e-3}, (1, 2, 3, 4)),
    Case("LayerNormalization", [X, real(4), real(4)], {"epsilon": 1e-3}, (1, 2)),
    Case("LayerNormalization", [X, real(5, 4)], {"axis": -2}, (1,)),
    Case("RMSNormalization", [X, real(4)], {"epsilon": 1e-3}, (1,), opset=23),
    Case("InstanceNormalization", [X, real(6), real(6)], {"epsilon": 1e-3}, (1, 2)),
    Case("GroupNormalization", [X, real(6), real(6)], {"num_groups": 3}, (1, 2), opset=21),
    Case("LpNormalization", [real(3, 4)], {"axis": 1, "p": 2}),
    Case("LpNormalization", [real(3, 4)], {"axis": 0, "p": 1}, runtime=True),
    Case("LRN", [X], {"size": 3, "alpha": 0.1}, runtime=True),
    *(
        Case("GridSample", [IMAGE, real(2, 4, 5, 2, low=-1.2, high=1.2)], {"mode": m, "padding_mode": p}, opset=20)
        for m in ("linear", "nearest")
        for p in ("zeros", "border", "reflection")
    ),
    Case("LSTM", [real(5, 2, 3), real(1, 16, 3), real(1, 16, 4), real(1, 32)], {"hidden_size": 4}, (1, 2, 3), 3),
    Case(
        "LSTM",
        [real(5, 2, 3), real(1, 16, 3), real(1, 16, 4), None, None, real(1, 2, 4), real(1, 2, 4)],
        {"hidden_size": 4},
        (1, 2),
        3,
    ),
    Case(
        "GRU",
        [real(5, 2, 3), real(1, 12, 3), real(1, 12, 4), real(1, 24)],
        {"hidden_size": 4, "linear_before_reset": 1},
        (1, 2, 3),
        2,
    ),
    Case("RNN", [real(5, 2, 3), real(1, 4, 3), real(1, 4, 4), real(1, 8)], {"hidden_size": 4}, (1, 2, 3), 2),
    Case("QuantizeLinear", [real(2, 40), np.array(0.02, np.float32), np.array(7, np.uint8)], fixed=(1, 2)),
    Case("QuantizeLinear", [real(3, 4), real(4, low=0.01, high=0.02), np.zeros(4, np.int8)], {"axis": 1}, (1, 2)),
    Case(
        "DequantizeLinear",
        [RNG.integers(-128, 128, (3, 4), np.int8), real(3, low=0.01), np.zeros(3, np.int8)],
        {"axis": 0},
        (1, 2),
        opset=21,
    ),
    Case(
        "DequantizeLinear",
        [RNG.integers(0, 255, (3, 4), np.uint8), np.array(0.1, np.float32), np.array(9, np.uint8)],
        {},
        (0, 1, 2),
        opset=21,
    ),
]
LATER = {"Dropout"}  # tried below


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case: Case) -> None:
    got, wanted = run_both(case)
    assert len(got) >= len(wanted)
    for ours, theirs in zip(got, wanted, strict=False):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=2e-5, atol=2e-5)


def test_every_operator_is_tried() -> None:
    assert set(OPS) - {case.op for case in CASES} <= LATER


def test_dropout_does_nothing_and_ties_round_to_even() -> None:
    x = torch.tensor([0.25, 0.75, -0.25, 63.9])
    node = helper.make_node("Dropout", ["x"], ["d"])
    q = helper.make_node("QuantizeLinear", ["d", "s", "z"], ["q"])
    dq = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])
    constants = [
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(1, np.uint8), "z"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node, q, dq], "pair", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    wanted = ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]
    x.requires_grad_()
    y = TorchGraph(model)({"x": x})[0]
    np.testing.assert_array_equal(y.detach().numpy(), wanted)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("case", "word"),
    [
        (Case("Det", [real(3, 3)]), "Det"),
        (Case("MaxPool", [IMAGE], {"kernel_shape": [2, 2]}, outputs=2), "indices"),
        (Case("GRU", [real(5, 2, 3), real(1, 12, 3), real(1, 12, 4)], {"hidden_size": 4}, (1, 2), 2), "reset"),
    ],
)
def test_what_is_lacking_is_named(case: Case, word: str) -> None:
    with pytest.raises(StageError, match="the_node") as caught:
        TorchGraph(model_of(case))
    assert word in caught.value.problem


def test_a_bias_that_an_exporter_merged_with_a_running_mean_is_not_trained() -> None:
    zeros = np.zeros(3, np.float32)
    constants = [
        numpy_helper.from_array(value, name) for name, value in (("w", real(3)), ("zero", zeros), ("v", 1 + zeros))
    ]
    same = helper.make_node("Identity", ["zero"], ["mean"])
    node = helper.make_node("BatchNormalization", ["x", "w", "zero", "mean", "v"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3, 9, 8]) for name in "xy"]
    graph = helper.make_graph([same, node], "norm", ends[:1], ends[1:], constants)
    module = TorchGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    module({"x": torch.from_numpy(IMAGE)})[0].sum().backward()
    assert list(module.constants()) == ["w"]
