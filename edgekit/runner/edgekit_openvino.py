# ruff: noqa: UP006, UP035  (a board may have Python 3.8)
"""OpenVINO on the device, as edgekit measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

Feeds = Dict[str, Any]
Run = Callable[[Feeds], List[Any]]


def open_model(path: Path, run: Dict[str, Any]) -> Run:
    """Load the model as it was measured: the same device, precision and threads."""
    import openvino

    core = openvino.Core()
    device = run["options"]["device"]
    source = core.read_model(str(path))
    free = [port.get_any_name() for port in source.inputs if port.get_partial_shape().is_dynamic]
    if not run["options"].get("specialize", True):
        free = []
    infers: Dict[Any, Any] = {}

    def prepare(shapes: Any) -> Any:
        """Compile for these shapes: with free ones OpenVINO is slower, and computes some int8 models wrongly."""
        model = source
        if free:
            model = source.clone()
            known = {name: shapes[index] for index, name in enumerate(free)}
            model.reshape({p: known.get(p.get_any_name(), p.get_partial_shape()) for p in model.inputs})
        infers[shapes] = bound(core.compile_model(model, device, properties_of(run)), openvino.Tensor)
        return infers[shapes]

    def call(feeds: Feeds) -> List[Any]:
        shapes = tuple([feeds[name].shape for name in free])
        return (infers.get(shapes) or prepare(shapes))(feeds)

    return call


def bound(compiled: Any, tensor: Any) -> Run:
    """An inference that hands an array over once: one that comes again, as a camera's buffer does, is known already."""
    request = compiled.create_infer_request()
    types = {port.get_any_name(): port.get_element_type() for port in compiled.inputs}
    plain = {name: kind.to_dtype() for name, kind in types.items() if kind.get_type_name() not in ("bf16", "string")}
    held: Feeds = {}

    def infer(feeds: Feeds) -> List[Any]:
        for name, value in feeds.items():
            if held.get(name) is value:
                continue
            flags = value.flags
            if not (value.ndim and value.dtype == plain.get(name) and flags.c_contiguous and flags.writeable):
                held.clear()
                return list(request.infer(feeds, share_inputs=True).values())
            request.set_tensor(name, tensor(value, shared_memory=True))
            held[name] = value
        return list(request.infer().values())

    return infer


def properties_of(run: Dict[str, Any]) -> Dict[str, Any]:
    """The properties of a target."""
    options = run["options"]
    device = options["device"].split(":")[0].split(".")[0]
    precision = options["inference_precision"] or ("f32" if device in ("CPU", "AUTO") else "auto")
    properties: Dict[str, Any] = {}
    if device == "CPU":
        properties.update(INFERENCE_NUM_THREADS=run["threads"], NUM_STREAMS=1)
    if precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = precision
    if options["performance_hint"] != "none":
        properties["PERFORMANCE_HINT"] = options["performance_hint"].upper()
    properties.update(options["properties"])
    return properties
