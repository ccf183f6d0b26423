"""An ONNX file that someone else made, brought into the form that the line works on.

Into a folder of edgekit's own, weights included; in one current opset; functions inlined;
nodes in order and named; sizes that mean "free" named; shapes inferred. It all happens in a
child process, and what comes out is run beside what came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import child
from edgekit.console import warn
from edgekit.errors import EdgekitError, InputError, StageError, UnavailableError
from edgekit.onnxfile import check as onnxcheck
from edgekit.onnxfile.sniffing import require
from edgekit.recipe import ExportSection

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LIMIT_S = 900.0
OLDEST = 18  # opsets below are converted: rules and quantizers know one form of each operator
KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


def normalize(
    path: Path | str,
    out: Path | str,
    settings: ExportSection | None = None,
    example: Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Bring a user's ONNX file into edgekit's form.

    Args:
        path: The user's file; nothing of it is trusted.
        out: The file to write.
        settings: ``[export]``: fixed shapes, opset and preprocessing.
        example: Shapes of a batch by input or in the inputs' order: what free sizes are tried at, if nothing else says.

    Returns:
        ``parity`` of the new file with the user's, ``nodes`` and ``opset``.

    Raises:
        InputError: What is wrong with the file; also where it crashes a library.
        UnavailableError: It needs an operator that is no part of ONNX.
    """
    path = Path(path)
    require(path, "onnx")
    section = (settings or ExportSection()).model_dump(mode="json")
    job = {"model": str(path), "out": str(out), "settings": section, "example": example}
    try:
        return _attempt(job, convert=True)
    except StageError:  # the version converter is native code too: crashed, or changed what the model computes
        try:
            return _attempt(job, convert=False)
        except StageError as error:
            raise InputError(
                f"this ONNX file can't be taken in: {error.problem}",
                where=str(path),
                remedy="export the model again with a current version of its framework",
                details=error.details,
            ) from error


def _attempt(job: dict[str, Any], *, convert: bool) -> dict[str, Any]:
    made: dict[str, Any] = child.call("edgekit.onnxfile.adopt:normalize_job", timeout_s=LIMIT_S, convert=convert, **job)
    return made


def normalize_job(
    model: str,
    out: str,
    settings: dict[str, Any],
    convert: bool = True,
    example: Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Child side of :func:`normalize`; ``convert``: whether an old opset is brought up to date."""
    from edgekit import onnxfile
    from edgekit.exporting import save
    from edgekit.onnxfile import edit as onnxedit

    source, target = Path(model), Path(out)
    section = ExportSection.model_validate(settings)
    proto = onnxfile.read_model(source)
    _refuse_foreign(proto, source)
    proto = _plain(proto)
    _free_sizes(proto)
    proto = _converted(proto, section.opset, source) if convert else proto
    graph = _to_ir(_inferred(proto, source))
    onnxedit.unique_names(graph)
    if section.shapes:
        onnxedit.fix_shapes(graph, section.shapes)
    if section.sizes:
        onnxedit.carry_shapes(graph, onnxedit.shapes_for(graph, section.sizes))
    elif example is not None:
        onnxedit.carry_shapes(graph, _example_shapes(graph, example))
    save(graph, target)
    parity = _parity(source, target)
    if section.preprocess:
        onnxedit.put_preprocessing_in_front(graph, section.preprocess)
        save(graph, target)
    return {"parity": parity, "nodes": len(graph.graph), "opset": graph.opset_imports[""]}


def _example_shapes(
    graph: ir.Model, example: Mapping[str, Sequence[int]] | Sequence[Sequence[int]]
) -> dict[str, list[int]]:
    """The example's shapes as those of one sample; one that does not fit its input is left to who checks the data."""
    inputs = list(graph.graph.inputs)
    given = example if isinstance(example, Mapping) else dict(zip((v.name for v in inputs), example, strict=False))
    found = {}
    for value in inputs:
        sizes, shape = list(value.shape or ()), list(given.get(value.name or "", ()))
        if shape and len(shape) == len(sizes):
            first = sizes[0] if isinstance(sizes[0], int) else 1
            found[value.name or ""] = [first, *shape[1:]]
    return found


def _refuse_foreign(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse operators that no runtime brings: their code would have to come from the model's folder."""
    own = {(function.domain, function.name) for function in proto.functions}
    for node in onnxcheck.nodes(proto):
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
            raise UnavailableError(
                f"the node {onnxcheck.shown(node.name)} needs the custom operator {node.domain}:{node.op_type}",
                where=str(path),
                remedy="export the model without it; edgekit loads no plug-in libraries",
            )


def _plain(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Functions inlined, constants not among the inputs, nodes in order."""
    import onnx.inliner

    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    order = onnxcheck.order(proto.graph)
    if order != sorted(order):
        nodes = [proto.graph.node[index] for index in order]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    return proto


def _free_sizes(proto: onnx.ModelProto) -> None:
    """Name sizes of −1, 0 or nothing: libraries abort on them, and all mean "free". Stale shapes go."""
    for value in proto.graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_value <= 0 and not size.dim_param:
                size.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"
    for graph in onnxcheck.graphs(proto):
        del graph.value_info[:]
        for value in graph.output:
            if any(d.dim_value < 0 or (d.HasField("dim_value") and not d.dim_value) for d in _dims(value)):
                value.type.tensor_type.ClearField("shape")


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _converted(proto: onnx.ModelProto, opset: int, source: Path) -> onnx.ModelProto:
    """The model in the wanted opset, if its own is older than :data:`OLDEST`."""
    import onnx.version_converter

    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version >= OLDEST:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except Exception as error:
        warn(f"{source.name}: it stays in opset {version}, because it can't be converted: {str(error)[:200]}")
        return proto


def _inferred(proto: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        warn(f"{source.name}: its shapes can't be inferred: {str(error)[:200]}")
        return proto


def _to_ir(proto: onnx.ModelProto) -> Any:
    import onnx_ir as ir

    return ir.from_proto(proto)


def _parity(source: Path, target: Path) -> dict[str, Any] | None:
    """Run both; None where the user's own file does not run on made-up inputs."""
    from edgekit import agree, onnxfile
    from edgekit.onnxfile.running import Runtime

    try:
        trials = agree.trial_feeds(*agree.example_for(onnxfile.read_model(target, weights=False)))
        theirs = Runtime(source)
        theirs(trials[0])
    except EdgekitError:
        raise
    except Exception as error:
        warn(f"{source.name}: it does not run on made-up inputs, so the copy was not compared: {str(error)[:200]}")
        return None
    verdict = agree.check(theirs, Runtime(target), trials)
    if not verdict.agrees:
        raise StageError(
            f"bringing it into opset form changed what it computes ({verdict.max_rel:.2g} of an output's scale)",
            remedy="export the model again in opset 18 or above",
        )
    return verdict.parity()
