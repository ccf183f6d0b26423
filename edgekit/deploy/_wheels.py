"""A runtime for a device that has none: wheels from here, an environment of its own there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekit import console
from edgekit.deploy import _transfer
from edgekit.deploy._preflight import numbers
from edgekit.deploy._remote import Remote, patiently
from edgekit.errors import StageError, UnavailableError
from edgekit.store import sha256_json

INSTALL_S = 1800.0

# pip runs from its own wheel: Debian's Python may have neither pip nor ensurepip.
_INSTALL = """
cd || exit 1
[ -f {env}/whole ] && exit 0
rm -rf {env}
"{python}" -m venv --without-pip {env} 2>&1 || exit 1
pip=$(ls {wheels}/pip-*.whl | head -n 1)
set -- --quiet --disable-pip-version-check --no-index --find-links {wheels}
{env}/bin/python "$pip/pip" install "$@" {names} 2>&1 || exit 1
{env}/bin/python -c 'import numpy, {module}' 2>&1 || exit 1
touch {env}/whole
"""


def install(remote: Remote, home: str, facts: dict[str, str], manifest: dict[str, Any], source: Path | None) -> str:
    """Put numpy and the bundle's runtime into an environment on the device.

    Args:
        remote: The device. home: edgekit's folder there. facts: The preflight's. manifest: The bundle's.
        source: A folder with the wheels; None: pip gets them, for the device's Python and processor.

    Returns:
        The environment's Python, for a shell on the device.

    Raises:
        UnavailableError: There are no such wheels, or the runtime does not come as one.
        StageError: The device can't install them.
    """
    backend = manifest["backend"]
    if backend == "tensorrt":
        raise UnavailableError(
            "TensorRT is not installed from wheels",
            remedy="on a Jetson install JetPack; elsewhere NVIDIA's tensorrt package",
        )
    version = manifest["versions"].get(backend)
    names = ["numpy", f"{backend}=={version}" if version else backend]
    with tempfile.TemporaryDirectory(prefix="edgekit-wheels-") as temporary:
        folder = source or download(names, facts, Path(temporary))
        files = {path.name: path for path in sorted(folder.glob("*.whl"))}
        if not any(name.startswith("pip-") for name in files):
            raise UnavailableError(
                "there is no wheel of pip among the wheels", where=str(folder), remedy="put one there: pip download pip"
            )
        key = sha256_json([sorted(files), facts.get("python_tag"), facts.get("arch")])[:24]
        console.note(f"{remote.host}: installing {' '.join(names)} into an environment of its own")
        _transfer.send(remote, files, f"{home}/wheels/{key}")
    env = f"{home}/envs/{key}"
    script = _INSTALL.format(
        env=env, python=facts["python"], wheels=f"{home}/wheels/{key}", names=" ".join(names), module=backend
    )
    answer = patiently(lambda: remote.script(script, INSTALL_S), remote.host)
    if answer.code:
        raise StageError(
            f"the runtime could not be installed on the device: {answer.out.strip()[-400:]}",
            where=remote.host,
            remedy="check the wheels against the device's Python and processor",
            details=answer.out[-4000:],
        )
    return f"$HOME/{env}/bin/python"


def download(names: list[str], facts: dict[str, str], folder: Path) -> Path:
    """Let pip get the wheels for the device's Python and processor, and pip's own.

    Raises:
        UnavailableError: pip is not here, or its index has no such wheels.
    """
    tag = facts.get("python_tag", "")
    version = ".".join(str(part) for part in numbers(facts.get("python_version", ""))[:2])
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--implementation", "cp", "--python-version", version, "--abi", tag]
    command += [part for platform in platforms(facts) for part in ("--platform", platform)]
    try:
        done = subprocess.run([*command, "pip", *names], capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"pip can't download: {error}", remedy="give the wheels in a folder") from error
    if done.returncode:
        raise UnavailableError(
            f"pip finds no wheels for the device: {(done.stderr or done.stdout).strip()[-400:]}",
            remedy="bundle with a runtime version that has wheels for it, or give the wheels in a folder",
            details=done.stderr[-4000:],
        )
    return folder


def platforms(facts: dict[str, str]) -> list[str]:
    """The wheel platforms that the device's C library can load, newest first."""
    arch = facts.get("arch", "")
    version = numbers(facts.get("libc", "").rpartition(" ")[2]) or (2, 17)
    newest = version[1] if version[0] == 2 else 17
    return [f"manylinux_2_{minor}_{arch}" for minor in range(newest, 16, -1)] + [f"manylinux2014_{arch}"]
