"""A loaded TensorRT engine with its buffers on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.backends import Feeds, Port, _cuda, _trt
from edgekit.errors import InputError, StageError

if TYPE_CHECKING:
    import numpy as np


class Session:
    """A loaded engine (see :class:`edgekit.backends.Session`); a run holds the copies to the GPU and back."""

    def __init__(self, engine: Any) -> None:
        trt, self._cudart = _trt.runtime(), _cuda.runtime()
        self.engine = engine
        self.context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        fed = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = tuple(_port(engine, name) for name in names if name in fed)
        self.outputs = tuple(_port(engine, name) for name in names if name not in fed)
        self._stream = _cuda.check(self._cudart.cudaStreamCreate())
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._buffers: dict[str, int] = {}
        self._allocate()

    def _allocate(self) -> None:
        """One device buffer for each tensor, for the profile's largest shapes."""
        import numpy as np

        for port in self.inputs:
            largest = tuple(self.engine.get_tensor_profile_shape(port.name, 0)[2])
            self.context.set_input_shape(port.name, largest)
            self._place(port.name, int(np.prod(largest)) * np.dtype(port.dtype).itemsize)
        for port in self.outputs:
            self._place(port.name, int(self.context.get_max_output_size(port.name)))

    def _place(self, name: str, size: int) -> None:
        self._buffers[name] = _cuda.check(self._cudart.cudaMalloc(max(size, 1)))
        self.context.set_tensor_address(name, int(self._buffers[name]))

    def run(self, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        import numpy as np

        cudart, stream, kinds = self._cudart, self._stream, self._cudart.cudaMemcpyKind
        for port in self.inputs:
            value = np.ascontiguousarray(feeds[port.name])
            if self._shapes.get(port.name) != value.shape:
                self._reshape(port.name, value.shape)
            source, buffer = value.ctypes.data, self._buffers[port.name]
            _cuda.check(cudart.cudaMemcpyAsync(buffer, source, value.nbytes, kinds.cudaMemcpyHostToDevice, stream))
        if not self.context.execute_async_v3(int(stream)):
            raise StageError(f"TensorRT failed to run: {_trt.last_error()}", remedy="see its log with -v")
        results = []
        for port in self.outputs:
            result = np.empty(tuple(self.context.get_tensor_shape(port.name)), port.dtype)
            buffer, kind = self._buffers[port.name], kinds.cudaMemcpyDeviceToHost
            _cuda.check(cudart.cudaMemcpyAsync(result.ctypes.data, buffer, result.nbytes, kind, stream))
            results.append(result)
        _cuda.check(cudart.cudaStreamSynchronize(stream))
        return results

    def _reshape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self.context.set_input_shape(name, shape):
            low, _, high = self.engine.get_tensor_profile_shape(name, 0)
            raise InputError(
                f"input '{name}' has the shape {shape}; this engine takes {tuple(low)} to {tuple(high)}",
                remedy="raise max_batch (or shapes) in the target's [options] and compile again",
            )
        self._shapes[name] = shape

    def __del__(self) -> None:
        for buffer in getattr(self, "_buffers", {}).values():
            self._cudart.cudaFree(buffer)
        if hasattr(self, "_stream"):
            self._cudart.cudaStreamDestroy(self._stream)


def _port(engine: Any, name: str) -> Port:
    trt = _trt.runtime()
    kinds = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.INT8: "int8",
        trt.DataType.UINT8: "uint8",
        trt.DataType.INT32: "int32",
        trt.DataType.INT64: "int64",
        trt.DataType.BOOL: "bool",
    }
    kind = engine.get_tensor_dtype(name)
    if kind not in kinds:
        raise InputError(
            f"the model's tensor '{name}' is {kind}, which numpy does not have",
            remedy="cast the model's inputs and outputs to float32 in the graph",
        )
    shape = tuple(size if size >= 0 else None for size in engine.get_tensor_shape(name))
    return Port(name=name, dtype=kinds[kind], shape=shape)
