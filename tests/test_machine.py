"""What this computer is, on copies of other computers' ``/proc`` and ``/sys``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgekit import machine
from edgekit.measure import noise

PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Revision\t: c04170
Model\t: Raspberry Pi 5 Model B Rev 1.0
"""
XEON = "".join(
    f"processor\t: {i}\nmodel name\t: Intel(R) Xeon(R) Gold 6330\nphysical id\t: {i // 4}\nsiblings\t: 4\n"
    f"core id\t\t: {i % 2}\ncpu MHz\t: {2000 + i}.5\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n\n"
    for i in range(8)
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(machine.SYSROOT, str(tmp_path))
    return tmp_path


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_machine_is_described_and_nothing_in_it_says_who_it_is() -> None:
    facts = machine.describe()
    json.dumps(facts, allow_nan=False)
    assert facts["cpu"]
    assert facts["cores"]["available"] == len(os.sched_getaffinity(0))
    assert facts["memory_bytes"] > 2**28
    assert os.uname().nodename not in json.dumps(facts)
    assert len(machine.fingerprint()) == 64
    assert machine.fingerprint() == machine.fingerprint()
    versions = machine.versions()
    assert versions["numpy"]
    assert versions["edgekit"]


def test_an_empty_machine_is_unknown_and_not_an_error(root: Path) -> None:
    facts = machine.describe()
    assert facts["governor"] is None
    assert facts["temperature_c"] is None
    assert facts["throttled"] is None
    assert facts["memory_bytes"] is None
    assert facts["frequency_mhz"] == {"min": None, "max": None, "now": None}
    assert facts["isa"] == []
    assert facts["cpu"]
    assert machine.cpu_times() is None
    assert machine.energy_counters() == {}
    assert machine.load() is None


def test_a_raspberry_pi(root: Path) -> None:
    put(
        root,
        {
            "proc/cpuinfo": PI,
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/meminfo": "MemTotal:        8245344 kB\nMemFree: 1 kB\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1500000\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2400000\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000\n",
            "sys/class/thermal/thermal_zone0/temp": "61750\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        },
    )
    facts = machine.describe()
    assert facts["cpu"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["isa"] == ["asimd", "asimdhp", "asimddp", "fphp"]
    assert facts["memory_bytes"] == 8245344 * 1024
    assert facts["governor"] == "ondemand"
    assert facts["frequency_mhz"] == {"min": 1500.0, "max": 2400.0, "now": 1800.0}
    assert facts["temperature_c"] == 61.75
    assert facts["throttled"] is True  # under-voltage and throttling, now and since boot
    assert facts["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert facts["virtual"] is None
    assert any("'ondemand'" in w for w in noise.machine_warnings(1))


def test_a_server_with_hardware_threads(root: Path) -> None:
    put(root, {"proc/cpuinfo": XEON, "sys/fs/cgroup/memory.max": "max\n"})
    facts = machine.describe()
    assert facts["cores"]["physical"] == 4
    assert facts["frequency_mhz"]["now"] == pytest.approx(2004.0)
    assert {"avx2", "avx512_vnni", "amx_int8"} <= set(facts["isa"])


def test_frequency_is_that_of_the_measured_cores(root: Path) -> None:
    assert machine.core_frequency([0]) is None
    put(root, {"proc/cpuinfo": XEON})
    assert machine.core_frequency([1, 3]) == pytest.approx(2002.5)
    put(root, {"sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3100000\n"})
    assert machine.core_frequency([1]) == 3100.0


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            1.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
    ids=["v2 half a core", "v2 free", "v1 one and a half", "v1 free", "none"],
)
def test_container_limits(
    root: Path, files: dict[str, str], cpus: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, files)
    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1, 2, 3])
    assert machine.cgroup_limit() == cpus
    assert machine.usable_threads() == (4 if cpus is None else max(1, int(cpus)))


def test_memory_limit_of_a_container(root: Path) -> None:
    put(root, {"proc/meminfo": "MemTotal: 8000000 kB\n", "sys/fs/cgroup/memory.max": "536870912\n"})
    assert machine.memory_bytes() == 536870912


def test_cores_are_picked_fast_ones_first_and_one_thread_of_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1, 2, 3])
    base = "sys/devices/system/cpu/cpu"
    put(root, {f"{base}{i}/topology/thread_siblings_list": "0,2" if i in (0, 2) else "1,3" for i in range(4)})
    assert machine.pick_cores(2) == [0, 1]
    assert machine.pick_cores(3) == [0, 1, 3]
    put(root, {f"{base}{i}/topology/thread_siblings_list": str(i) for i in range(4)})
    put(root, {f"{base}{i}/cpu_capacity": "1024" if i < 2 else "430" for i in range(4)})
    assert machine.pick_cores(1) == [1]
    assert machine.pick_cores(2) == [0, 1]
    assert machine.pick_cores(9) == [0, 1, 2, 3]


def test_steal_is_read_from_the_kernels_ticks(root: Path) -> None:
    put(root, {"proc/stat": "cpu  100 0 50 800 10 0 5 35 0 0\ncpu0 1 2 3\n"})
    assert machine.cpu_times() == {"total": 1000, "idle": 810, "steal": 35}


def test_energy_counters(root: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    put(
        root,
        {
            f"{zone}/energy_uj": "123456\n",
            f"{zone}/max_energy_range_uj": "262143328850\n",
            f"{zone}/name": "package-0\n",
        },
    )
    put(root, {"sys/class/powercap/intel-rapl:1/name": "psys\n"})  # not readable by this user
    assert machine.energy_counters() == {"package-0": (123456, 262143328850)}


def quiet(**changes: object) -> noise.Noise:
    facts: dict[str, object] = {
        "steal": 0.0,
        "waited": 0.0,
        "switches": 0.0,
        "frequency_mhz": 2000.0,
        "frequency_change": 0.0,
        "temperature_c": 50.0,
        "throttled": 0,
    }
    return noise.Noise(**{**facts, **changes})  # type: ignore[arg-type]


def test_quiet_runs_are_trusted_and_nothing_is_said() -> None:
    runs = [quiet()] * 8
    assert noise.untrusted(runs) == ""
    assert noise.warnings(runs, 1) == []
    unknown = [quiet(steal=None, waited=None, frequency_mhz=None, frequency_change=None, throttled=None)] * 8
    assert noise.untrusted(unknown) == ""
    assert noise.warnings(unknown, 1) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"throttled": 2}, "slowed itself down"),
        ({"frequency_change": 0.2}, "frequency"),
        ({"frequency_mhz": 1500.0}, "frequency"),
    ],
)
def test_heat_and_frequency_forbid_a_verdict(changes: dict[str, object], words: str) -> None:
    runs = [quiet()] * 7 + [quiet(**changes)]
    assert words in noise.untrusted(runs)
    assert words in noise.warnings(runs, 1)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waited": 0.3}, "other programs ran"),
        ({"switches": 90.0}, "other programs ran"),
        ({"steal": 0.1}, "host gave"),
    ],
)
def test_load_is_said_and_judged_by_the_interval_alone(changes: dict[str, object], words: str) -> None:
    runs = [quiet(**changes)] * 8
    assert noise.untrusted(runs) == ""
    assert words in noise.warnings(runs, 1)[0]
