"""OpenVINO's call without looking at the same inputs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from edgekit.backends import Feeds

COPIED = ("bf16", "string")  # types whose arrays OpenVINO copies anyway


def bound(compiled: Any, tensor: Callable[..., Any]) -> Callable[[Feeds], list[np.ndarray[Any, Any]]]:
    """An inference that hands an array over once: one that comes again, as a camera's buffer does, is known already.

    OpenVINO's own Python call takes 12 µs to look at its inputs, a quarter of an int8 ResNet-20's time. The array is
    shared with the runtime, so what was written into it meanwhile counts.

    Args:
        compiled: The compiled model. tensor: ``openvino.Tensor``.
    """
    request = compiled.create_infer_request()
    types = {port.get_any_name(): port.get_element_type() for port in compiled.inputs}
    plain = {name: kind.to_dtype() for name, kind in types.items() if kind.get_type_name() not in COPIED}
    held: dict[str, Any] = {}

    def infer(feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        for name, value in feeds.items():
            if held.get(name) is value:
                continue
            flags = value.flags
            if not (value.ndim and value.dtype == plain.get(name) and flags.c_contiguous and flags.writeable):
                held.clear()
                return list(request.infer(feeds, share_inputs=True).values())
            request.set_tensor(name, tensor(value, shared_memory=True))
            held[name] = value
        return list(request.infer().values())  # copies; in the outputs' order: by index it takes 7 µs longer

    return infer
