"""Each variant in full, the environment, and how to repeat the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.report import toml, words
from edgekit.report.html import Child, Html, el, table
from edgekit.report.operators import kept_float, objects
from edgekit.report.rows import Row, number_in, part, targets_of, text
from edgekit.report.samples import flips
from edgekit.report.scenarios import unmeasured

_LABELS = {
    "cpu": "Processor",
    "cpu_model": "Processor",
    "isa": "Instruction sets",
    "isa_flags": "Instruction sets",
    "os": "System",
    "git": "Revision of edgekit",
    "git_revision": "Revision",
    "memory_bytes": "Memory",
    "arch": "Architecture",
    "frequency_mhz.now": "Frequency, MHz",
}
MOST_FACTS = 120
MOST_LAYERS = 20
MOST_FLIPS = 24
MOST_WHOLE = 40  # rows that are shown with all that the record holds of them: the page stays under 3 MB


def details(rows: list[Row], folder: Path | None = None) -> Html:
    """One folded part for each variant: what the table has no room for.

    Args:
        rows: Of the record. folder: Where it lies, for what each row said of every test sample.
    """
    whole = len(rows) <= MOST_WHOLE
    return el(
        "section",
        el("h2", "Each variant in full"),
        [_detail(row, _flipped(row, rows, folder) if whole and folder else None, whole=whole) for row in rows],
        id="details",
    )


def _detail(row: Row, flipped: Child, *, whole: bool) -> Html:
    artifact = part(row.raw, "artifact")
    path = text(artifact, "path")
    facts: list[tuple[str, Child]] = [
        ("Backend", row.backend),
        ("Why", row.reason),
        ("Measured on", _device(row)),
        ("Latency", _latency(row)),
        ("First inference", words.milliseconds(row.first_ms)),
        ("Parameters", words.count(row.parameters)),
        ("Multiply-adds", words.count(row.macs)),
        ("Multiply-adds in int8", words.share(row.int8_share)),
        ("Metric's interval", _metric_interval(row)),
        ("Artifact", el("code", path) if path else ""),
        ("SHA-256", el("code", text(artifact, "sha256")) if artifact else ""),
        ("p99, early-stopping bound", words.milliseconds(number_in(row.measurement, "p99_bound_ms"))),
        ("Sent over the air (zstd)", words.size(number_in(row.measurement, "shipped_bytes"))),
        ("Load time", words.milliseconds(number_in(row.measurement, "load_ms"))),
        ("CPU time of one inference", words.milliseconds(number_in(row.measurement, "cpu_ms"))),
        ("The runtime's own memory", words.size(number_in(row.measurement, "runtime_rss_bytes"))),
        ("Verdict on speed", "" if row.reference else text(row.measurement, "verdict")),
    ]
    known = [(name, value) for name, value in facts if value and value != words.MISSING]
    stages = table(
        f"Stages of {row.label}",
        ["Stage", "Time", "From the cache", "Size after it", "Checked against the stage before"],
        [
            [s.name, words.seconds(s.seconds), "yes" if s.cached else "no", words.size(s.size_bytes), s.parity]
            for s in row.stages
        ],
        numbers=range(1, 4),
    )
    return el(
        "details",
        el("summary", el("b", words.short(row.variant or row.id, 80)), f" on {words.short(row.target, 60)}"),
        el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in known], class_="facts"),
        [el("p", words.sentence(line)) for line in row.explain],
        stages if row.stages else None,
        _pruned(row),
        _floating(row),
        flipped,
        _rest(row.raw) if whole else None,
        id=f"v-{row.number}",
        data_target=row.target,
    )


def _device(row: Row) -> str:
    """The device that a row's times were brought back from; empty where this machine measured it."""
    told = part(row.raw, "measured_on")
    facts = part(told, "device")
    named = [text(facts, key) for key in ("board", "cpu", "os") if text(facts, key)]
    return f"{text(told, 'host')} ({', '.join(named)})" if told and named else text(told, "host")


def _latency(row: Row) -> str:
    if row.latency is None:
        return ""
    parts = [f"median {words.milliseconds_with(row.latency, row.latency_ci)}"]
    parts += [f"{name} {words.milliseconds(v)}" for name, v in (("p90", row.p90), ("p99", row.p99)) if v is not None]
    if row.runs is not None:
        alone = row.raw.get("measured_on") and not row.measurement  # one process on a device: its inferences are told
        parts.append(f"{words.count(row.runs)} {'inferences' if alone else 'fresh processes'}")
    return ", ".join(parts)


def _metric_interval(row: Row) -> str:
    if row.metric_ci is None:
        return ""
    low, high = (words.metric_text(bound, row.metric_name) for bound in row.metric_ci)
    samples = f" on {words.count(row.samples)} samples" if row.samples is not None else ""
    return f"{low} to {high}{samples}"


def _pruned(row: Row) -> Child:
    """What pruning took from each layer, from its stage's report."""
    told = part(part(row.raw, "reports"), "prune")
    layers = objects(told.get("table"))
    kept = {text(e, "layer"): text(e, "reason") for e in objects(told.get("kept"))}
    lines: list[list[Child]] = [
        [
            text(e, "layer"),
            _from_to(e, "channels"),
            _from_to(e, "macs"),
            _from_to(e, "parameters"),
            kept.get(text(e, "layer"), ""),
        ]
        for e in layers
        if e.get("channels")
    ]
    if not lines:
        return None
    caption = "What pruning took from each layer"
    head = ["Layer", "Channels", "Multiply-adds", "Parameters", "Left whole because"]
    listed = told.get("notes")
    notes = [el("p", str(note), class_="hint") for note in listed] if isinstance(listed, list) else []
    return _fold(caption, el("div", notes, table(caption, head, lines[:MOST_FACTS])), aside=True)


def _from_to(entry: dict[str, Any], key: str) -> str:
    """``48 → 32`` of a pair of numbers; one of them where nothing changed."""
    pair = entry.get(key)
    if not isinstance(pair, list) or len(pair) != 2:
        return ""
    before, after = (words.count(number_in({"v": value}, "v")) for value in pair)
    return before if before == after else f"{before} → {after}"


def _floating(row: Row) -> Child:
    """The costliest layers that stayed float in a quantized row, and why."""
    layers = kept_float(row.raw)[:MOST_LAYERS] if row.int8_share else []
    if not layers:
        return None
    lines: list[list[Child]] = [
        [
            text(e, "name"),
            text(e, "operator"),
            text(e, "precision"),
            words.count(number_in(e, "macs")),
            text(e, "reason"),
        ]
        for e in layers
    ]
    caption = "Layers that do not run in int8, the costliest first"
    return table(caption, ["Layer", "Operator", "Runs in", "Multiply-adds", "Why"], lines)


def _flipped(row: Row, rows: list[Row], folder: Path) -> Child:
    """The test samples that the row puts into another class than the original, the original's surest first."""
    versus = text(part(row.raw, "vs_reference"), "id")
    reference = next((other for other in rows if other.id == versus and other is not row), None)
    found = flips(row, reference, folder) if reference else None
    if found is None:
        return None
    caption = f"Test samples that changed their class: {len(found.changed)} of {found.total}"
    if not found.changed:
        return el("p", caption)
    lines: list[list[Child]] = [
        [str(flip.sample), str(flip.before), str(flip.after), words.digits(flip.margin)]
        for flip in found.changed[:MOST_FLIPS]
    ]
    head = ["Sample (from 0, in the test set's order)", "The original's class", "This one's", "The original's margin"]
    return _fold(caption, table(caption, head, lines, numbers=range(1, 4)), aside=True)


# Keys that stand elsewhere on the page; what else a row brings is shown as it is.
_SHOWN = {
    "id", "variant", "target", "backend", "status", "reason", "stages", "artifact", "size_bytes", "parameters", "macs",
    "int8_macs_share", "metric", "latency_ms", "first_inference_ms", "peak_rss_bytes", "vs_reference", "pareto",
    "explain", "operators", "sensitivity", "layers",
}  # fmt: skip


def _rest(raw: dict[str, Any]) -> Child:
    others = {key: value for key, value in raw.items() if key not in _SHOWN}
    others["reports"] = {name: told for name, told in part(raw, "reports").items() if name != "prune"}
    lines: list[list[Child]] = [[name, value] for name, value in flat(others)]
    return (
        _fold(
            "More of the record",
            table("More of the record", ["Key", "Value"], lines[:MOST_FACTS]),
            aside=True,
        )
        if lines
        else None
    )


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested JSON as (dotted name, text); short lists stay on one line."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            yield from flat(item, f"{name}.{index}")
    elif isinstance(value, list):
        yield name, " ".join(str(item) for item in value)
    elif value is not None:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def environment(results: dict[str, Any], rows: list[Row]) -> Html:
    """The machine, the versions, and what was not measured and why."""
    facts = [(name, _fact(name, value)) for name, value in flat(results.get("environment") or {})][:MOST_FACTS]
    lines: list[list[Child]] = [[_LABELS.get(name, _heading(name)), value] for name, value in facts]
    missing = list(_not_measured(results, rows))
    return el(
        "section",
        el("h2", "Where it was measured"),
        table("The machine and the versions", ["What", "Value"], lines) if lines else None,
        [el("h3", "Not measured, and why"), el("ul", [el("li", line) for line in missing])] if missing else None,
        _warnings(results),
        id="environment",
    )


def _fact(name: str, value: str) -> str:
    """A fact of the environment as people read it."""
    if name.endswith("_bytes") and value.isdigit():
        return words.size(float(value))
    return {"True": "yes", "False": "no"}.get(value, value)


def _heading(name: str) -> str:
    """``cores.cgroup_limit`` as ``Cores, cgroup limit``."""
    words_ = name.replace("_", " ").replace(".", ", ")
    return words_[:1].upper() + words_[1:]


def _warnings(results: dict[str, Any]) -> Child:
    lines = results.get("warnings")
    if not isinstance(lines, list) or not lines:
        return None
    return [el("h3", "Warnings of this run"), el("ul", [el("li", str(line)) for line in lines], class_="warnings")]


def _not_measured(results: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    for target in targets_of(rows):
        mine = [row for row in rows if row.target == target]
        for status in ("built", "unavailable", "failed"):
            for reason in dict.fromkeys(row.reason for row in mine if row.status == status):
                why = words.sentence(words.because(reason) or f"its rows are {status}")
                yield f"{target}: latency and memory. {why}"
    measured = [row for row in rows if row.status == "ok"]
    for what, lacking in (
        ("latency", [row.label for row in measured if row.latency is None]),
        ("the metric", [row.label for row in measured if row.metric is None]),
        ("peak memory", [row.label for row in measured if row.memory is None]),
    ):
        if lacking:
            yield f"{what} of {words.listing(lacking, 5)}: this record holds none"
    yield from unmeasured(rows)


def repeat(results: dict[str, Any], best: Row | None) -> Html:
    """Commands, hashes and the recipe: enough for another person to do it again."""
    bundle = (
        f"edgekit bundle . --target {_shell(best.target)} --variant {_shell(best.variant)} --out device" if best else ""
    )
    commands = [
        ("Run it again here; refuses if an input has changed", "edgekit run recipe.toml --locked --out ."),
        ("Measure it again elsewhere", "edgekit run recipe.toml --remeasure --out again"),
        ("Compare both", "edgekit report results.json again/results.json"),
        ("Check every artifact's hash", "edgekit verify ."),
        ("Pack the best variant for its device", bundle),
    ]
    lock: list[list[Child]] = [[name, el("code", value)] for name, value in flat(results.get("lock") or {})]
    recipe = results.get("recipe")
    return el(
        "section",
        el("h2", "Do it again"),
        [_command(what, line) for what, line in commands if line],
        el("p", f"Seed {text(results, 'seed') or '?'}."),
        _fold("The recipe, as resolved", el("pre", el("code", toml.dumps(recipe)), tabindex="0"))
        if isinstance(recipe, dict) and recipe
        else None,
        _fold("The lock: hashes and versions of what went in", table("Lock", ["What", "Value"], lock))
        if lock
        else None,
        id="repeat",
    )


def _fold(summary: str, content: Html, *, aside: bool = False) -> Html:
    """A folded part; one aside is left out of print."""
    return el("details", el("summary", summary), content, class_="aside" if aside else None)


def _command(what: str, line: str) -> Html:
    return el(
        "div",
        el("span", what),
        el("code", line),
        el("button", "copy", type="button", data_copy=line, hidden=True, aria_label=f"Copy: {what}"),
        class_="command",
    )


def _shell(word: str) -> str:
    """A word as a shell takes it."""
    import shlex

    return shlex.quote(word)
