"""Torch to ONNX to simplified, each step checked against the one before.

The exported graph (:mod:`edgekit.exported`) is translated by ``torch.onnx`` (the dynamo
exporter), its inputs and outputs keep the user's names, and what comes out is run beside the
torch module on several inputs. A graph that disagrees never leaves here: the error names the
first node that is wrong and the user's module behind it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import agree, child
from edgekit.agree import bisection
from edgekit.console import warn
from edgekit.errors import EdgekitError, InputError, StageError
from edgekit.recipe import ExportSection

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

    Array = np.ndarray[Any, Any]

SIMPLIFY_S = 900.0
GROWTH = 1.02  # a "simplified" file larger than this many times the original is not taken


def export_job(model: str, settings: dict[str, Any], out: str) -> dict[str, Any]:
    """Export a ``.pt2`` to ONNX and check that it computes the same. Runs in a child process.

    Args:
        model: A file of :func:`edgekit.exported.save`.
        settings: An :class:`~edgekit.recipe.ExportSection` as JSON.
        out: The ``.onnx`` file to write; over 2 GiB its weights lie in ``OUT.data``.

    Returns:
        ``parity`` (``max_abs``, ``max_rel``, ``tolerance``, ``samples``), ``nodes``, ``opset``,
        ``inputs``, ``outputs`` (names), ``files`` (names).

    Raises:
        InputError: An operation has no ONNX form, or a fixed shape does not fit; names the user's module and line.
        StageError: The ONNX graph computes something else; names the first node.
    """
    from edgekit import exported

    section = ExportSection.model_validate(settings)
    module = exported.load(model)
    signature = exported.signature(module)
    graph = translate(exported.program(module), section.opset)
    example = {name: _plain(name, value) for name, value in signature.example.items()}
    finish(graph, signature.inputs, signature.outputs, signature.dynamic, {n: v.shape for n, v in example.items()})
    dynamic = dict(signature.dynamic)
    if section.shapes:
        from edgekit.onnxfile import edit as onnxedit

        onnxedit.fix_shapes(graph, section.shapes)
        example, dynamic = _reshaped(example, section.shapes), {}
    save(graph, Path(out))
    trials = agree.trial_feeds(example, dynamic)
    verdict = agree.check(agree.torch_runner(module), _runtime(out), trials)
    if not verdict.agrees:
        found = _found(bisection.bisect_torch_onnx, model, out, trials[verdict.trial])
        raise _disagreement("export", "torch module", verdict, found)
    return {**_described(graph, Path(out)), "parity": verdict.parity()}


def simplify_job(model: str, out: str) -> dict[str, Any]:
    """Simplify an ONNX file with onnxsim and check that it computes the same. Runs in a child process.

    Where onnxsim fails or the result is larger, the file goes on as it is, and a warning says why.

    Returns:
        As :func:`export_job`, and ``nodes_before``.

    Raises:
        StageError: The simplified graph computes something else; names the first node.
    """
    from edgekit import onnxfile

    source, target = Path(model), Path(out)
    before = onnxfile.read_model(source)
    why_not = _simplified(source, target)
    verdict = None
    if why_not is None:
        trials = agree.trial_feeds(*agree.example_for(before))
        verdict = agree.check(_runtime(source), _runtime(target), trials)
        if not verdict.agrees:
            found = _found(bisection.bisect_onnx, model, out, trials[verdict.trial])
            raise _disagreement("simplify", "export", verdict, found)
    else:
        warn(f"simplify: {why_not}")
        onnxfile.write_model(before, target)
    after = _load(target)
    facts = {**_described(after, target), "nodes_before": len(before.graph.node)}
    facts["parity"] = verdict.parity() if verdict else {"max_abs": 0.0, "max_rel": 0.0, "samples": 0}
    return facts


def translate(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    """An exported program as an ONNX graph in memory.

    Raises:
        InputError: An operation has no ONNX form; names the user's module and line.
    """
    import torch

    try:
        with _quiet():
            made = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, optimize=True)
    except torch.onnx.errors.OnnxExporterError as error:
        raise _untranslatable(program, error) from error
    assert made is not None
    if (reached := made.model.opset_imports.get("", 0)) != opset:
        raise StageError(
            f"torch.onnx wrote opset {reached} where {opset} was asked for",
            remedy=f"set [export] opset = {reached}",
        )
    return made.model


def finish(
    graph: ir.Model,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Give a translated graph the user's names, keep the nodes' origins, note the shapes of one sample."""
    from edgekit.onnxfile import edit as onnxedit

    onnxedit.name_ports(graph, inputs, outputs)
    onnxedit.name_free_sizes(graph, dynamic)
    onnxedit.unique_names(graph)
    onnxedit.keep_origins(graph)
    one_sample = {name: [1, *shape[1:]] if 0 in dynamic.get(name, {}) else shape for name, shape in shapes.items()}
    onnxedit.carry_shapes(graph, one_sample)


def save(graph: ir.Model, path: Path) -> None:
    """Write a graph; over protobuf's 2 GiB its weights go into ``NAME.data`` beside it."""
    import onnx_ir as ir

    from edgekit.onnxfile import INLINE_BYTES

    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    ir.save(graph, path, external_data=f"{path.name}.data" if size > INLINE_BYTES else None)


# ── what the jobs are made of ────────────────────────────────────────────────────────────


def decomposed(program: torch.export.ExportedProgram, opset: int) -> torch.export.ExportedProgram:
    """The program in the operations that the ONNX exporter translates; its names are those of the ONNX values."""
    import torch

    with _quiet():
        made = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, optimize=False)
    assert made is not None
    assert made.exported_program is not None
    return made.exported_program


def _plain(name: str, value: torch.Tensor) -> Array:
    """An example input as an array; of the types that runtimes take as inputs."""
    import torch

    if value.dtype in (torch.bfloat16, torch.complex64, torch.complex128) or value.element_size() > 8:
        kind = str(value.dtype).removeprefix("torch.")
        raise InputError(
            f"the input '{name}' is {kind}, which runtimes on edge devices do not take",
            remedy="take float32 and convert it inside the model",
        )
    return value.numpy()


def _found(bisect: Callable[..., bisection.Disagreement | None], *arguments: Any) -> bisection.Disagreement | None:
    """Where two graphs part, or None where that can't be told: the disagreement itself is what must be said."""
    try:
        return bisect(*arguments)
    except Exception:
        return None


def _reshaped(example: Mapping[str, Array], shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """The example in its fixed shape, its values repeated or cut."""
    import numpy as np

    return {name: np.resize(value, tuple(shapes[name])) if name in shapes else value for name, value in example.items()}


def _runtime(path: Path | str) -> agree.Runner:
    from edgekit.onnxfile.running import Runtime

    try:
        return Runtime(path)
    except Exception as error:
        raise StageError(
            f"ONNX Runtime can't load the graph: {str(error)[:400]}",
            where=str(path),
            remedy="try another [export] opset; if it stays, report the model's operator that is named",
        ) from error


def _load(path: Path) -> ir.Model:
    import onnx_ir as ir

    return ir.load(path)


def _described(graph: ir.Model, path: Path) -> dict[str, Any]:
    return {
        "nodes": sum(1 for _ in graph.graph.all_nodes()),
        "opset": graph.opset_imports.get("", 0),
        "inputs": [value.name for value in graph.graph.inputs],
        "outputs": [value.name for value in graph.graph.outputs],
        "files": [file.name for file in (path, path.with_name(f"{path.name}.data")) if file.is_file()],
    }


def _disagreement(stage: str, before: str, verdict: agree.Verdict, found: bisection.Disagreement | None) -> StageError:
    where = f"; the first node that is wrong is {found}" if found else ""
    return StageError(
        f"{stage} changed what the model computes: an output is {verdict.max_rel:.2g} of its scale off the {before}'s "
        f"({verdict.tolerance:.2g} is tolerated){where}",
        where=found.module if found else "",
        remedy="rewrite that part of the model with plainer operations, or try another [export] opset"
        if stage == "export"
        else "set [export] simplify = false",
    )


def _untranslatable(program: torch.export.ExportedProgram, error: Exception) -> InputError:
    """Say which operation of which module has no ONNX form."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    text = "\n".join(str(link) for link in chain)
    name = re.search(r"translating node %(\w+)", text)
    operator = re.search(r"OpOverload\(op='([^']+)'", text)
    node = _node_named(program, name[1] if name else "")
    module, place = origin_of_operation(node) if node else ("", "")
    what = f"the operation {operator[1]} has no ONNX form" if operator else str(chain[-1]).splitlines()[0][:300]
    return InputError(
        f"torch can't write the model as ONNX: {what}" + (f", in the module '{module}'" if module else ""),
        where=place,
        remedy="replace it by operations that ONNX has, or take that part out of the model",
        details=text[-4000:],
    )


def origin_of_operation(node: torch.fx.Node) -> tuple[str, str]:
    """The user's module and ``file:line`` behind an operation of a torch graph; each may be empty."""
    from edgekit.onnxfile.edit import source_line

    scopes = list((node.meta.get("nn_module_stack") or {}).values())
    return (scopes[-1][0] if scopes else ""), source_line(node.meta.get("stack_trace") or "")


def _node_named(program: torch.export.ExportedProgram, name: str) -> torch.fx.Node | None:
    """The node, looked for in the program and in its decomposed form."""
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.name == name:
                return node
    return None


def _simplified(source: Path, target: Path) -> str | None:
    """Run onnxsim in a child; None, or why the result is not taken.

    Folding constants unties weights that two layers share (a table, and its transpose as a product's
    weight); where the file grew by it, it is tried again without.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    before = after = _bytes_of(source)
    for fold in (True, False):
        try:
            child.call(
                "edgekit.exporting:onnxsim_job", timeout_s=SIMPLIFY_S, model=str(source), out=str(target), fold=fold
            )
        except EdgekitError as error:
            return f"onnxsim failed, so the graph goes on as it was exported ({error.problem})"
        after = _bytes_of(target)
        if after <= before * GROWTH + 4096:
            return None
    return f"onnxsim made the file larger ({before} → {after} bytes), so it was not taken"


def _bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())


def onnxsim_job(model: str, out: str, fold: bool = True) -> None:
    """Child side of :func:`simplify_job`: onnxsim, then our own notes put back; ``fold``: constants, too."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # onnxsim imports it for what is not used here
    import onnxsim

    from edgekit import onnxfile
    from edgekit.onnxfile import edit as onnxedit

    before = onnxfile.read_model(model)
    after, _ = onnxsim.simplify(before, check_n=0, certify=False, skip_constant_folding=not fold)
    onnxedit.restore_notes(before, after)
    onnxfile.write_model(after, out)


def _quiet() -> Any:
    """Silence the exporter: its notes are for those who develop it."""
    import contextlib
    import logging
    import warnings

    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    stack.callback(logger.setLevel, level)
    return stack
