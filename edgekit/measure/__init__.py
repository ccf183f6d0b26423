"""What is measured: latency, memory, and the statistics that compare them."""

from __future__ import annotations

from edgekit.measure.bench import benchmark, exit_code, table
from edgekit.measure.engine import Row, measure_rows
from edgekit.measure.results import Measured, each_once

__all__ = ["Measured", "Row", "benchmark", "each_once", "exit_code", "measure_rows", "table"]
