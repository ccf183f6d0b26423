"""Does "different" mean different? False alarms and power of the whole procedure, on this machine, by repetition.

    python benchmarks/statistics.py [--rounds 240] [--load] [--out benchmarks/statistics.md]

See ``_repetition.py``, which does it. About 2 s a round: 240 rounds take 8 minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path


def _standard_library() -> None:
    """Be the standard library's module where a script beside this file imports it by that name."""
    import importlib.util
    import sysconfig

    spec = importlib.util.spec_from_file_location("statistics", Path(sysconfig.get_path("stdlib")) / "statistics.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["statistics"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "statistics":
    _standard_library()
elif __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p or ".").resolve() != here)]
    from benchmarks._repetition import main

    main()
