"""Where two graphs part: the first node from which on they disagree, with the user's module behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import child
from edgekit.agree import FLOOR, HALF_FLOOR, as_array, gap_of
from edgekit.errors import EdgekitError, StageError
from edgekit.onnxfile.check import reads

if TYPE_CHECKING:
    import onnx
    import torch

    from edgekit.agree import Feeds

# What a compiled model computes in → share of an output's scale that it may be off; the same of a value on the way.
# Floats: 13 roundings of bfloat16 (2**-8), the coarsest that a runtime computes them in. Trained models (ResNet-20,
# depthwise CNN, DS-CNN, BERT-like encoder), as fp32 and as fp16, were at most 2.2 of these off in OpenVINO at bfloat16,
# and in kernels that compute in fp32 at most 0.8 roundings of fp16 (2**-11). Integers: a step more or less in each
# layer adds up; what is wrong is off by all of it.
COMPILED = {"fp32": (0.05, FLOOR), "half": (0.05, HALF_FLOOR), "integer": (0.5, 0.5)}
Origins = Mapping[str, tuple[str, str]]  # value → the user's module and file:line


@dataclass(frozen=True)
class Disagreement:
    """The first node from which on two graphs disagree.

    Attributes:
        node: Its name in the later graph. operator: Its kind.
        value: The value it makes.
        module: The user's module it came from; empty where it is not known.
        source: The user's ``file:line``; empty where it is not known.
        max_abs, max_rel: How far the value is off (see :class:`Verdict`).
    """

    node: str
    operator: str
    value: str
    module: str
    source: str
    max_abs: float
    max_rel: float

    def __str__(self) -> str:
        module = f", from the module '{self.module}'" if self.module else ""
        source = f" ({self.source})" if self.source else ""
        return f"node {self.node!r} ({self.operator}){module}{source}"


def check_compiled(difference: Mapping[str, float], model: Path, artifact: Path, data: Path, *, precision: str) -> None:
    """Refuse an artifact whose outputs are not those of the ONNX file it was compiled from.

    Args:
        difference: ``max_rel`` over real data (:func:`edgekit.evaluate.difference`).
        model: The ONNX file.
        artifact: What the runtime made of it; where that is an ONNX file too, the first wrong node is looked for.
        data: The spool that both ran on.
        precision: What it computes in, of :data:`COMPILED`.

    Raises:
        StageError: It computes something else.
    """
    limit, on_the_way = COMPILED[precision]
    if difference["max_rel"] <= limit:
        return
    found: dict[str, Any] | None = None
    if artifact.suffix == ".onnx":
        with contextlib.suppress(EdgekitError):  # a runtime's own operators may run nowhere else
            found = child.call(
                "edgekit.agree.bisection:bisect_job",
                a=str(model),
                b=str(artifact),
                feeds=str(data / "000000.npz"),
                tolerance=on_the_way,
            )
    where = f"; the first node that is wrong is {found['text']}" if found else ""
    raise StageError(
        f"the compiled model computes something else than its ONNX file: an output is {difference['max_rel']:.2g} "
        f"of its scale off ({limit:.2g} is tolerated){where}",
        where=str(artifact),
        remedy="try another version of the runtime, or fewer of its optimizations in the target's options",
    )


def bisect_job(a: str, b: str, feeds: str, tolerance: float = FLOOR) -> dict[str, Any] | None:
    """Where the ONNX file ``b`` (one that a runtime compiled, too) parts from ``a``, for a child process to tell.

    Args:
        a: The file before: ``.pt2`` or ``.onnx``. b: The ``.onnx`` file after it.
        feeds: An ``.npz`` by input name, or a batch of a spool.
        tolerance: As in :class:`~edgekit.agree.Verdict`.

    Returns:
        A :class:`Disagreement` as JSON with its ``text``; None where no shared value disagrees.
    """
    import numpy as np

    from edgekit.onnxfile.sniffing import sniff

    with np.load(feeds, allow_pickle=False) as file:
        values = {name.removeprefix("in:"): file[name] for name in file.files if name != "label"}
    bisect = bisect_onnx if sniff(a) == "onnx" else bisect_torch_onnx
    found = bisect(a, b, values, tolerance)
    return {**asdict(found), "text": str(found)} if found else None


def bisect_onnx(a: Path | str, b: Path | str, feeds: Feeds, tolerance: float = FLOOR) -> Disagreement | None:
    """The first node of ``b`` from which on it disagrees with ``a``, by the values that both name alike.

    None where all agree, or where the graphs share no value.
    """
    from edgekit import onnxfile
    from edgekit.onnxfile import running as ortrun

    first, second = onnxfile.read_model(a), onnxfile.read_model(b)
    made = {name for node in first.graph.node for name in node.output if name}
    shared = [name for node in second.graph.node for name in node.output if name in made]
    left, right = (ortrun.run_values(model, shared, feeds) for model in (first, second))
    gaps = {name: _value_gap(left[name], right[name]) for name in shared}
    return _first_wrong(second, gaps, tolerance, (_origins(second), _origins(first)))


def bisect_torch_onnx(
    model: Path | str, graph: Path | str, feeds: Feeds, tolerance: float = FLOOR
) -> Disagreement | None:
    """The first node of an ONNX graph from which on it disagrees with the ``.pt2`` it was exported from.

    The exporter names a value after the operation of the (decomposed) torch graph that makes it;
    those are run side by side.
    """
    import torch

    from edgekit import exported, exporting, onnxfile
    from edgekit.onnxfile import running as ortrun

    proto = onnxfile.read_model(graph)
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    program = exporting.decomposed(exported.program(exported.load(model)), opset)
    renamed = dict(zip(program.graph_signature.user_outputs, (v.name for v in proto.graph.output), strict=True))
    made = [name for node in proto.graph.node for name in node.output if name]
    theirs = ortrun.run_values(proto, made, feeds)
    gaps: dict[str, tuple[float, float]] = {}

    places: dict[str, tuple[str, str]] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            value = super().run_node(node)
            name = renamed.get(node.name, node.name)
            places[name] = exporting.origin_of_operation(node)
            if isinstance(value, torch.Tensor) and name in theirs and name not in gaps:
                gaps[name] = _value_gap(as_array(value), theirs[name])
            return value

    with torch.no_grad():
        Watch(program.graph_module).run(*_placeholders(program, feeds))
    return _first_wrong(proto, gaps, tolerance, (_origins(proto), places))


def _placeholders(program: torch.export.ExportedProgram, feeds: Feeds) -> list[Any]:
    """What a program's graph takes: parameters, buffers, constants and the user's inputs, in order."""
    import torch

    held = {**program.constants, **program.state_dict}
    found: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            found.append(held[spec.target])
        else:
            name = getattr(spec.arg, "name", "")
            found.append(torch.from_numpy(feeds[name]) if name in feeds else getattr(spec.arg, "value", None))
    return found


def _value_gap(x: Any, y: Any) -> tuple[float, float]:
    import numpy as np

    if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
        return 0.0, 0.0  # a sequence or an optional: its parts show elsewhere
    return gap_of(x, y)


def _first_wrong(
    graph: onnx.ModelProto,
    gaps: Mapping[str, tuple[float, float]],
    tolerance: float,
    origins: Sequence[Origins],
) -> Disagreement | None:
    """Walk back from the wrong outputs along wrong values, to the first that has none before it.

    A value that differs but is put right again before the output (a mask of −inf, of −3e38) is not blamed.
    """
    makers = {name: index for index, node in enumerate(graph.graph.node) for name in node.output if name}
    waiting = [v.name for v in graph.graph.output if gaps.get(v.name, (0.0, 0.0))[1] > tolerance]
    seen: set[str] = set(waiting)
    first: str | None = None
    while waiting:
        name = waiting.pop()
        before = _known_before(name, graph, makers, gaps)
        wrong = [other for other in before if gaps[other][1] > tolerance]
        if not wrong and (first is None or makers[name] < makers[first]):
            first = name
        waiting += [other for other in wrong if other not in seen]
        seen.update(wrong)
    return None if first is None else _told(first, graph, makers, gaps[first], origins)


def _known_before(name: str, graph: onnx.ModelProto, makers: Mapping[str, int], known: Mapping[str, Any]) -> set[str]:
    """The nearest values before this one that can be compared."""
    found: set[str] = set()
    waiting, seen = [name], {name}
    while waiting:
        maker = makers.get(waiting.pop())
        for other in reads(graph.graph.node[maker]) - seen if maker is not None else ():
            seen.add(other)
            if other in known:
                found.add(other)
            else:
                waiting.append(other)
    return found


def _told(
    name: str,
    graph: onnx.ModelProto,
    makers: Mapping[str, int],
    gap: tuple[float, float],
    origins: Sequence[Origins],
) -> Disagreement:
    node = graph.graph.node[makers[name]]
    told = [origin[name] for origin in origins if name in origin]
    module, source = (next(filter(None, parts), "") for parts in zip(*told, strict=True)) if told else ("", "")
    return Disagreement(node.name or name, node.op_type, name, module, source, *gap)


def _origins(model: onnx.ModelProto) -> Origins:
    return {name: origin(node) for node in model.graph.node for name in node.output if name}


def origin(node: onnx.NodeProto) -> tuple[str, str]:
    """The user's module and ``file:line`` that a node came from; each may be empty."""
    from edgekit.onnxfile.edit import origin_of

    return origin_of({entry.key: entry.value for entry in node.metadata_props})
