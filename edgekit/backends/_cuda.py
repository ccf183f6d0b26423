"""The few CUDA calls that a backend with device buffers needs, through NVIDIA's cuda-python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit import machine
from edgekit.errors import StageError, UnavailableError, missing_package


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (8.7: ``(8, 7)``), the driver's version, and its memory in bytes."""

    name: str
    capability: tuple[int, int]
    driver: str
    memory_bytes: int


def runtime() -> Any:
    """``cuda.bindings.runtime``.

    Raises:
        UnavailableError: cuda-python is not installed, or does not load.
    """
    try:
        from cuda.bindings import runtime as cudart
    except ModuleNotFoundError as error:
        raise missing_package("cuda.bindings", "tensorrt", "to hold TensorRT's buffers on the GPU") from error
    except ImportError as error:
        raise UnavailableError(
            f"not available here, because cuda-python is installed but does not load: {error}",
            remedy="install the cuda-python of this machine's CUDA version",
        ) from error
    return cudart


def use(index: int) -> Gpu:
    """Make the GPU of that number this thread's, and say what it is.

    Raises:
        UnavailableError: No driver, a driver that is too old, or no such GPU.
    """
    cudart = runtime()
    try:
        error, count = cudart.cudaGetDeviceCount()
    except RuntimeError as failure:  # libcuda or libcudart itself is not there
        raise _no_gpu(str(failure)) from failure
    if int(error) != 0 or not count:
        raise _no_gpu(getattr(error, "name", str(error)))
    if index >= count:
        raise UnavailableError(
            f"not available here, because there is no GPU number {index} ({count} found)", remedy="choose a lower one"
        )
    check(cudart.cudaSetDevice(index))
    facts = check(cudart.cudaGetDeviceProperties(index))
    name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
    return Gpu(name, (facts.major, facts.minor), driver_version(cudart), int(facts.totalGlobalMem))


def driver_version(cudart: Any) -> str:
    """The driver's own version (``550.54.14``; on a Jetson L4T's), else the CUDA version that it serves."""
    text = machine.read("proc/driver/nvidia/version")
    if text:
        words = [word for word in text.split("\n")[0].split() if word[:1].isdigit() and "." in word]
        if words:
            return words[0]
    if release := machine.read("etc/nv_tegra_release"):
        return "L4T " + release.split("\n")[0].strip("# ")[:60]
    return f"CUDA {check(cudart.cudaDriverGetVersion())}"


def check(answer: Any) -> Any:
    """The values of a cuda-python call, without their error code.

    Raises:
        StageError: The call failed (out of memory, a lost device …).
    """
    error, *values = answer
    if int(error) != 0:
        name = getattr(error, "name", str(error))
        remedy = (
            "use a smaller batch or model, or free the GPU's memory"
            if "MemoryAllocation" in name
            else "restart the program; if it comes back, check the driver (nvidia-smi, dmesg)"
        )
        raise StageError(f"the GPU says {name}", remedy=remedy)
    return values[0] if len(values) == 1 else tuple(values)


def _no_gpu(word: str) -> UnavailableError:
    if "InsufficientDriver" in word:
        return UnavailableError(
            "not available here, because there is no NVIDIA driver, or one too old for the installed CUDA",
            remedy="install or update the NVIDIA driver, on a machine with an NVIDIA GPU",
        )
    return UnavailableError(
        f"not available here, because no NVIDIA GPU is found ({word})",
        remedy="run on a machine with an NVIDIA GPU, or drop this target",
    )
