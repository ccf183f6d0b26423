"""Foreign ONNX files: what is wrong with them is said, and nothing that they hold harms this process."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends, child, console, onnxfile
from edgekit.errors import EdgekitError, InputError, UnavailableError
from edgekit.onnxfile import check as onnxcheck
from edgekit.recipe import ExportSection, Preprocess


def conv_model(*, opset: int = 18, batch: int | str = "batch") -> onnx.ModelProto:
    """Convolution, ReLU, global pool, flatten, product: 3×8×8 in, 5 out."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "fc": rng.standard_normal((4, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "fc"], ["y"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(folder: Path, **facts: str) -> Path:
    """A model whose tensor ``w`` lies in another file, as ``facts`` say."""
    model = conv_model()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **facts}.items():
        tensor.external_data.add(key=key, value=value)
    return saved(model, folder / "m.onnx")


# ── what the file is ─────────────────────────────────────────────────────────────────────

NOT_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git-LFS pointer"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "zip": (b"PK\x03\x04" + bytes(64), "zip archive"),
    "pickle": (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", "checkpoint or pickle"),
    "random": (random.Random(1).randbytes(4000), "no known kind"),
    "text": (b"import torch\n" * 40, "no known kind"),
}


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_a_file_that_is_no_model_is_told_by_its_content(tmp_path: Path, kind: str) -> None:
    content, told = NOT_MODELS[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        onnxfile.read_model(path)
    assert error.value.remedy
    assert str(path) in str(error.value)


def test_a_git_lfs_pointer_says_how_to_get_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(NOT_MODELS["lfs"][0])
    with pytest.raises(InputError) as error:
        onnxfile.read_model(path)
    assert "git lfs pull" in error.value.remedy


def test_missing_directory_and_special_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, told in (
        (tmp_path / "none.onnx", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "fifo", "regular"),
    ):
        with pytest.raises(InputError, match=told):
            onnxfile.sniff(path)
    with pytest.raises(InputError):
        onnxfile.sniff("a\0b")


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    assert onnxfile.sniff(saved(conv_model(), tmp_path / "weights.pt")) == "onnx"
    assert len(onnxfile.read_model(tmp_path / "weights.pt").graph.node) == 5


def test_torch_files_are_told_apart(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    layer = torch.nn.Linear(2, 2)
    torch.save(layer.state_dict(), tmp_path / "a")
    save_file(layer.state_dict(), tmp_path / "b")
    torch.export.save(torch.export.export(layer, (torch.rand(1, 2),)), tmp_path / "c.pt2")
    torch.jit.trace(layer, torch.rand(1, 2)).save(tmp_path / "d")
    kinds = [onnxfile.sniff(tmp_path / name) for name in ("a", "b", "c.pt2", "d")]
    assert kinds == ["pt", "safetensors", "pt2", "torchscript"]


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_model_cut_off_anywhere_is_refused(tmp_path: Path, sixteenth: int) -> None:
    whole = conv_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(InputError):
        onnxfile.read_model(path)


# ── external data ────────────────────────────────────────────────────────────────────────


def test_external_data_beside_the_model_are_read(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert onnxfile.external_files(path) == [tmp_path / "w.bin"]
    got = numpy_helper.to_array(onnxfile.read_model(path).graph.initializer[0])
    assert np.array_equal(got, numpy_helper.to_array(conv_model().graph.initializer[0]))


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "/proc/self/environ", "sub/../../w.bin", "", "a\0b", "."]
)
def test_external_data_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(432))
    path = external(folder, location=location)
    (folder / "w.bin").unlink()
    with pytest.raises(InputError, match=r"outside|missing"):
        onnxfile.read_model(path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(432))
    for name, link in {"sym": os.symlink, "hard": os.link}.items():
        folder = tmp_path / name
        folder.mkdir()
        path = external(folder)
        (folder / "w.bin").unlink()
        link(secret, folder / "w.bin")
        with pytest.raises(InputError, match="link"):
            onnxfile.read_model(path)
    folder = tmp_path / "dir"
    folder.mkdir()
    path = external(folder, location="sub/w.bin")
    (tmp_path / "elsewhere").mkdir()
    (folder / "w.bin").rename(tmp_path / "elsewhere" / "w.bin")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"):
        onnxfile.read_model(path)


@pytest.mark.parametrize(
    "facts",
    [
        {"offset": "4"},
        {"offset": str(2**40)},
        {"offset": "-4"},
        {"length": "-432"},
        {"length": "100"},
        {"length": str(2**40)},
        {"offset": "zero"},
    ],
)
def test_ranges_that_do_not_fit_the_file_are_refused(tmp_path: Path, facts: dict[str, str]) -> None:
    with pytest.raises(InputError, match="tensor 'w'"):
        onnxfile.read_model(external(tmp_path, **facts))


def test_overlapping_tensors_are_refused_and_shared_ones_are_not(tmp_path: Path) -> None:
    for offset, sound in (("0", True), ("216", False)):
        model = onnx.load(external(tmp_path), load_external_data=False)
        (tmp_path / "w.bin").write_bytes(bytes(1000))
        twin = model.graph.initializer.add()
        twin.CopyFrom(model.graph.initializer[0])
        twin.name = "twin"
        twin.external_data.add(key="offset", value=offset)
        path = saved(model, tmp_path / "m.onnx")
        if sound:
            onnxfile.read_model(path)
        else:
            with pytest.raises(InputError, match="overlap"):
                onnxfile.read_model(path)


def test_sparse_external_tensors_are_refused(tmp_path: Path) -> None:
    model = conv_model()
    sparse = model.graph.sparse_initializer.add()
    sparse.dims.extend([432])
    sparse.values.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "indices"))
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(InputError, match="sparse"):
        onnxfile.read_model(saved(model, tmp_path / "m.onnx"))


# ── what the graph says of itself ────────────────────────────────────────────────────────


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "f"


def huge_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**62


def huge_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 10**12


def negative_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def short_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"123"


def no_values(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 4000


def undefined(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nobody"


def twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "c"


def no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nobody"


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


BROKEN: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (cyclic, "cycle"),
    (huge_size, "impossible"),
    (huge_tensor, "impossible"),
    (negative_tensor, "impossible"),
    (short_tensor, "3 bytes"),
    (no_values, "no values"),
    (unknown_type, "data type"),
    (undefined, "made by no node"),
    (twice, "made twice"),
    (no_output, "made by no node"),
    (no_nodes, "no nodes"),
    (no_opset, "no opset"),
]


@pytest.mark.parametrize(("damage", "told"), BROKEN, ids=[d.__name__ for d, _ in BROKEN])
def test_unsound_graphs_are_refused(tmp_path: Path, damage: Callable[[onnx.ModelProto], None], told: str) -> None:
    model = conv_model()
    damage(model)
    with pytest.raises(InputError, match=told):
        onnxfile.read_model(saved(model, tmp_path / "m.onnx"))


def test_protobuf_nested_ten_thousand_deep_is_refused(tmp_path: Path) -> None:
    inner = b""
    for _ in range(10_000):  # graph → node → attribute → graph, in wire format
        for field in (0x32, 0x2A, 0x0A):
            size, length = len(inner), b""
            while size > 127:
                length, size = length + bytes([size & 127 | 128]), size >> 7
            inner = bytes([field]) + length + bytes([size]) + inner
        if len(inner) > 400_000:
            break
    size, length = len(inner), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x0a\x3a" + length + bytes([size]) + inner)
    with pytest.raises(InputError, match="parsed"):
        onnxfile.read_model(path)


def test_a_hundred_thousand_nodes_pass(tmp_path: Path) -> None:
    count = 100_000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 2]) for n in ("v0", f"v{count}")]
    graph = helper.make_graph(list(reversed(nodes)), "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert len(onnxfile.read_model(saved(model, tmp_path / "m.onnx")).graph.node) == count
    order = onnxcheck.order(model.graph)
    assert order == list(reversed(range(count)))


NAMES = [
    "</script><script>alert(1)</script>",
    "\x1b[31mred",
    "::error::no",
    "../../x",
    "a|b",
    "=cmd",
    "𝔘",
    "n" * 10_000,
]


@pytest.mark.usefixtures("at_once")
def test_hostile_names_survive_and_are_escaped_in_messages(tmp_path: Path) -> None:
    model = conv_model()
    for node, name in zip(model.graph.node, NAMES, strict=False):
        node.name = name
    out = tmp_path / "out.onnx"
    onnxfile.normalize(saved(model, tmp_path / "m.onnx"), out)
    assert [n.name for n in onnxfile.read_model(out).graph.node] == NAMES[:5]
    assert all("\x1b" not in onnxcheck.shown(name) and len(onnxcheck.shown(name)) < 100 for name in NAMES)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("names", [["", "", "", "", ""], ["a", "a", "a", "b", "b"], ["a\0b", "\n", " ", "é", "0"]])
def test_nodes_without_names_of_their_own_get_some(tmp_path: Path, names: list[str]) -> None:
    model, out = conv_model(), tmp_path / "out.onnx"
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    onnxfile.normalize(saved(model, tmp_path / "m.onnx"), out)
    made = [n.name for n in onnxfile.read_model(out).graph.node]
    assert len(set(made)) == 5
    assert all(made)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["with space.onnx", "ünï—✓.onnx", "-x.onnx", "new\nline.onnx", "n" * 240 + ".onnx"])
def test_odd_file_names_work(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out" / name
    onnxfile.normalize(saved(conv_model(), tmp_path / name), out)
    assert len(onnxfile.read_model(out).graph.node) == 5
    assert onnxfile.macs(out) > 0


def test_a_child_that_dies_while_parsing_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = child.call
    monkeypatch.setattr(child, "call", lambda function, /, **arguments: real("os:abort"))
    with pytest.raises(InputError, match="SIGABRT"):
        backends.prove_sound(saved(conv_model(), tmp_path / "m.onnx"))


# ── taken in ─────────────────────────────────────────────────────────────────────────────


def run(path: Path, x: np.ndarray) -> np.ndarray:
    from edgekit.onnxfile.running import Runtime

    (y,) = Runtime(path)({"x": x})
    return y


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("opset", [9, 13, 18, 21])
def test_old_opsets_are_converted_and_new_ones_stay(tmp_path: Path, opset: int) -> None:
    source, out = saved(conv_model(opset=opset), tmp_path / "m.onnx"), tmp_path / "out" / "m.onnx"
    made = onnxfile.normalize(source, out)
    assert made["opset"] == max(opset, 18)
    assert made["parity"]["max_rel"] < 1e-6
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    assert np.allclose(run(source, x), run(out, x), atol=1e-6)


def test_what_could_not_be_compared_is_said(tmp_path: Path) -> None:
    """Found in the child, said here: a table of one row, which made-up indices miss."""
    table = numpy_helper.from_array(np.ones((1, 4), np.float32), "table")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 8])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 8, 4])
    graph = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["rows"])], "g", [ids], [rows], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with console.overhearing() as said:
        made = onnxfile.normalize(saved(model, tmp_path / "m.onnx"), tmp_path / "out" / "m.onnx")
    assert made["parity"] is None
    assert said[0].startswith("m.onnx: it does not run on made-up inputs, so the copy was not compared: ")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("size", [-1, 0])
def test_sizes_that_abort_onnx_are_named_instead(tmp_path: Path, size: int) -> None:
    model = conv_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    out = tmp_path / "out.onnx"
    onnxfile.normalize(saved(model, tmp_path / "m.onnx"), out)
    assert onnxfile.inputs(out)[0].shape == (None, 3, 8, 8)
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.usefixtures("at_once")
def test_functions_are_inlined_and_nodes_are_ordered_and_named(tmp_path: Path) -> None:
    model = conv_model()
    twice_ = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    model.functions.append(twice_)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Twice", ["c"], ["r"], "", domain="local"))
    for node in model.graph.node:
        node.name = ""
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    out = tmp_path / "out.onnx"
    onnxfile.normalize(saved(model, tmp_path / "m.onnx"), out)
    made = onnx.load(out)
    assert [n.op_type for n in made.graph.node] == ["Conv", "Add", "GlobalAveragePool", "Flatten", "MatMul"]
    assert len({n.name for n in made.graph.node if n.name}) == 5
    assert not made.functions


@pytest.mark.usefixtures("at_once")
def test_external_data_come_into_our_own_file(tmp_path: Path) -> None:
    source, out = external(tmp_path), tmp_path / "out" / "m.onnx"
    onnxfile.normalize(source, out)
    (tmp_path / "w.bin").unlink()
    assert [f.name for f in out.parent.iterdir()] == ["m.onnx"]
    assert onnxfile.parameters(out) == 4 * 27 + 4 + 20


@pytest.mark.usefixtures("at_once")
def test_a_custom_operator_is_named_and_not_loaded(tmp_path: Path) -> None:
    model = conv_model()
    model.graph.node[1].domain = "acme"
    model.graph.node[1].op_type = "Magic"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(UnavailableError, match="acme:Magic"):
        onnxfile.normalize(saved(model, tmp_path / "m.onnx"), tmp_path / "out.onnx")


@pytest.mark.usefixtures("at_once")
def test_control_flow_is_kept(tmp_path: Path) -> None:
    def branch(name: str, factor: float) -> onnx.GraphProto:
        half = numpy_helper.from_array(np.array(factor, np.float32), f"{name}_f")
        node = helper.make_node("Mul", ["f", f"{name}_f"], [f"{name}_y"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)], [half])

    model = conv_model()
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["high"]),
        helper.make_node("If", ["high"], ["g"], then_branch=branch("t", 0.5), else_branch=branch("e", 2.0)),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "limit"))
    kept = list(model.graph.node)
    kept[-1].input[0] = "g"
    del model.graph.node[:]
    model.graph.node.extend([*kept[:-1], *nodes, kept[-1]])
    source, out = saved(model, tmp_path / "m.onnx"), tmp_path / "out.onnx"
    onnxfile.normalize(source, out)
    for x in (np.zeros((1, 3, 8, 8), np.float32), np.full((1, 3, 8, 8), 3, np.float32)):
        assert np.allclose(run(source, x), run(out, x))


@pytest.mark.usefixtures("at_once")
def test_shapes_are_fixed_on_request(tmp_path: Path) -> None:
    source, out = saved(conv_model(), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    onnxfile.normalize(source, out, ExportSection(shapes={"x": (1, 3, 8, 8)}))
    assert onnxfile.inputs(out)[0].shape == (1, 3, 8, 8)
    for shapes, told in (({"z": (1,)}, "does not have"), ({"x": (1, 3, 9, 8)}, "× 8 × 8"), ({"x": (1, 3)}, "wants")):
        with pytest.raises(InputError, match=told):
            onnxfile.normalize(source, out, ExportSection(shapes=shapes))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_preprocessing_is_folded_in(tmp_path: Path, layout: str) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    settings = ExportSection(preprocess=Preprocess(scale=1 / 255, mean=mean, std=std, layout=layout))
    source, out = saved(conv_model(), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    onnxfile.normalize(source, out, settings)
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    spread = (1, 3, 1, 1)
    x = (raw / 255.0 - np.reshape(mean, spread)) / np.reshape(std, spread)
    fed = raw.transpose(0, 2, 3, 1) if layout == "nhwc" else raw
    assert np.allclose(run(out, fed), run(source, x.astype(np.float32)), rtol=1e-4, atol=1e-5)
    port = onnxfile.inputs(out)[0]
    assert (port.dtype, port.shape) == ("uint8", (None, 8, 8, 3) if layout == "nhwc" else (None, 3, 8, 8))


@pytest.mark.usefixtures("at_once")
def test_preprocessing_for_other_channels_is_refused(tmp_path: Path) -> None:
    source = saved(conv_model(), tmp_path / "m.onnx")
    settings = ExportSection(preprocess=Preprocess(mean=(0.1, 0.2), std=(1.0, 1.0)))
    with pytest.raises(InputError, match="3 channels"):
        onnxfile.normalize(source, tmp_path / "out.onnx", settings)


# ── costs ────────────────────────────────────────────────────────────────────────────────


def test_costs_are_counted_for_one_sample(tmp_path: Path) -> None:
    path = saved(conv_model(), tmp_path / "m.onnx")
    assert onnxfile.node_macs(onnx.load(path)) == {"conv": 4 * 64 * 27, "fc": 20}
    assert onnxfile.macs(path) == 4 * 64 * 27 + 20
    assert onnxfile.parameters(path) == 4 * 27 + 4 + 20
    assert onnxfile.macs(saved(conv_model(batch=7), path)) == 7 * (4 * 64 * 27 + 20)


def test_a_free_size_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    model = conv_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    path = saved(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="the size 'height' of the input 'x' is free"):
        onnxfile.macs(path)
    assert onnxfile.macs(path, {"x": [1, 3, 16, 8]}) == 2 * 4 * 64 * 27 + 20


@pytest.mark.usefixtures("at_once")
def test_free_sizes_stay_free_and_are_counted_as_told(tmp_path: Path) -> None:
    model, out = conv_model(), tmp_path / "out.onnx"
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_value = "height", -1
    source = saved(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="'height' of the input 'x' is free") as error:
        onnxfile.normalize(source, out)
    assert "sizes = { height = … }" in error.value.remedy
    with pytest.raises(InputError, match=r"'heigth'.* does not have") as error:
        onnxfile.normalize(source, out, ExportSection(sizes={"heigth": 16}))
    assert "'batch', 'height', 'x_3'" in error.value.remedy
    onnxfile.normalize(source, out, ExportSection(sizes={"height": 16, "x_3": 8}))
    assert onnxfile.inputs(out)[0].shape == (None, 3, None, None)
    assert onnxfile.macs(out) == 2 * 4 * 64 * 27 + 20


def test_costs_of_the_compiled_graph_are_those_of_its_source(tmp_path: Path) -> None:
    """Fused operators have no shape inference; their shapes are then seen in a run."""
    import onnxruntime as ort

    source, fused = saved(conv_model(), tmp_path / "m.onnx"), tmp_path / "fused.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(fused)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    assert "FusedConv" in {n.op_type for n in onnx.load(fused).graph.node}
    assert onnxfile.macs(fused) == onnxfile.macs(source)


@pytest.mark.parametrize(
    ("node", "shapes", "wanted"),
    [
        (helper.make_node("ConvTranspose", ["a", "b"], ["y"], "n"), [(1, 4, 5, 5), (4, 2, 3, 3)], 4 * 25 * 2 * 9),
        (helper.make_node("Gemm", ["a", "b"], ["y"], "n", transA=1), [(6, 2), (6, 3)], 2 * 3 * 6),
        (helper.make_node("MatMul", ["a", "b"], ["y"], "n"), [(2, 4, 6), (2, 6, 3)], 2 * 4 * 6 * 3),
        (helper.make_node("Einsum", ["a", "b"], ["y"], "n", equation="bij,bjk->bik"), [(2, 4, 6), (2, 6, 3)], 144),
        (helper.make_node("Conv", ["a", "b"], ["y"], "n", group=2), [(1, 4, 6, 6), (8, 2, 3, 3)], 8 * 16 * 18),
    ],
)
def test_costs_of_each_operator(node: onnx.NodeProto, shapes: list[tuple[int, ...]], wanted: int) -> None:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("ab", shapes, strict=True)]
    graph = helper.make_graph([node], "g", ports, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert onnxfile.node_macs(model) == {"n": wanted}


# ── mutants ──────────────────────────────────────────────────────────────────────────────


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or overwrite some bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + rng.randint(1, 16)]
            case 2:
                changed[place:place] = changed[place : place + rng.randint(1, 16)]
            case _:
                changed[place : place + 4] = rng.randbytes(4)
    return bytes(changed)


def verdict(taken_in: Callable[[], object]) -> int:
    """The exit code that the command line would give; anything but edgekit's own errors comes through."""
    try:
        taken_in()
    except EdgekitError as error:
        assert error.remedy  # noqa: PT017
        return error.exit_code
    return 0


def test_two_hundred_mutants_never_kill_the_parent(tmp_path: Path) -> None:
    """Each is refused with an edgekit error or taken in whole; nothing else comes out."""
    whole = conv_model().SerializeToString()
    rng = random.Random(7)
    files = []
    for number in range(200):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(mutated(whole, rng))
        files.append(str(path))
    verdicts = [verdict(lambda path=path: onnxfile.read_model(path)) for path in files]
    assert set(verdicts) == {0, 2}
    assert verdicts.count(2) > 100


def test_mutants_that_pass_the_checks_are_taken_in_or_refused_by_a_child(tmp_path: Path) -> None:
    rng = random.Random(3)
    whole = conv_model().SerializeToString()
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    passed = []
    while len(passed) < 8:
        path.write_bytes(mutated(whole, rng))
        if verdict(lambda: onnxfile.read_model(path)) == 0:
            passed.append(verdict(lambda: onnxfile.normalize(path, out)))
    assert set(passed) <= {0, 2, 4}
    assert 0 in passed
