"""The house's own rules: imports go downhill, functions stay short, the public names are what they say."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgekit
from edgekit import errors

PACKAGE = Path(edgekit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
USERS_OWN = {PACKAGE / "demo" / "model.py"}  # copied out: the user's file from then on
MOST_LINES, MOST_FUNCTION_LINES = 400, 60

# Foundations first: a part imports, when it is imported, only from lines above its own.
LAYERS = (
    ("errors",),
    ("console",),
    ("board", "store"),
    ("child", "rooms", "result", "report"),
    ("machine", "scheme"),
    ("target",),
    ("recipe",),
    ("backends", "exported", "metrics", "measure", "onnxfile"),
    ("agree", "doctor", "gating", "workload"),
    ("bundle", "evaluate", "exporting", "inspection", "training"),
    ("api", "demo", "deploy", "pruners", "quantizers"),
    ("pipeline",),
    ("cli", "runner"),
)


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imported(file: Path) -> Iterator[str]:
    """The parts of edgekit that a file imports when it is imported itself (not inside functions, not for types)."""
    body = list(ast.parse(file.read_text()).body)
    while body:
        node = body.pop()
        runs = isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test)
        if runs or isinstance(node, ast.Try):
            body += node.body  # type: ignore[attr-defined]
        elif isinstance(node, ast.ImportFrom) and node.module == "edgekit":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekit."):
            yield _part(node.module or "")
        elif isinstance(node, ast.Import):
            yield from (_part(alias.name) for alias in node.names if alias.name.startswith("edgekit."))


def test_imports_go_downhill() -> None:
    level = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    wrong: list[str] = []
    for file in FILES:
        mine = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if mine.startswith("__") or file in USERS_OWN:
            continue
        assert mine in level, f"{mine} has no place in LAYERS"
        uphill = {o for o in _imported(file) if o in level and o != mine and level[o] >= level[mine]}
        wrong += [f"{file.relative_to(PACKAGE)} imports {other}" for other in sorted(uphill)]
    assert not wrong


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_no_error_without_a_remedy() -> None:
    raised = []
    for file in FILES:
        if file in USERS_OWN or "runner" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                if name in ("Exception", "RuntimeError", "NotImplementedError", "OSError"):
                    raised.append(f"{file.relative_to(PACKAGE)}:{node.lineno} raises {name}")
    assert not raised
    with pytest.raises(TypeError, match="remedy"):
        errors.InputError("wrong")  # type: ignore[call-arg]


def test_the_public_names_are_there_and_sorted() -> None:
    assert edgekit.__all__ == sorted(edgekit.__all__)
    assert dir(edgekit) == edgekit.__all__
    for name in edgekit.__all__:
        assert callable(getattr(edgekit, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgekit.nothing


@pytest.mark.parametrize("verb", ["targets", "doctor", "gate", "report", "verify", "bench"])
def test_a_board_needs_no_torch(verb: str) -> None:
    """These verbs import nothing that the light install does not bring."""
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'onnx', 'onnxsim', 'onnx_ir', 'sklearn'):\n"
        "            raise ImportError(f'{name} is not on this board')\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = ['edgekit', *sys.argv[1:]]\n"
        "from edgekit.cli import main\nmain()\n"
    )
    arguments = {"targets": [], "doctor": []}.get(verb, ["gone"])
    arguments = ["gone.onnx", "--target", "x86-cpu"] if verb == "bench" else arguments
    done = subprocess.run([sys.executable, "-c", block, verb, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 2), done.stderr
