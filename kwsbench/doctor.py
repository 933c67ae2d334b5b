"""What this machine and environment lack, why it matters, and one command that mends it: ``kwsbench doctor``.

Every check is a small function that returns a :class:`Finding`: ``ok``, ``note`` (all of the workbench that is needed
still runs) or ``missing`` (something needed does not). A check that fails itself is reported as a finding. Nothing is
changed, and nothing outside this machine is asked.
"""

from __future__ import annotations

import fcntl
import importlib.metadata as metadata
import importlib.util
import json
import locale
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

STATES = ("ok", "note", "missing")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
SPIN_LIMIT = 10_000  # of GOMP_SPINCOUNT: beyond it waiting threads hold cores that other jobs need
GIGABYTE = 1e9
LEAST_GB = 1.0  # smoke needs 0.1 GB, the default profile 1 GB
ROOM_GB = 10.0  # a full corpus with its features and models
CGROUP = Path("/sys/fs/cgroup")
_PROJECT = Path(__file__).resolve().parents[1]  # private: the API pages would print it


@dataclass(frozen=True)
class Finding:
    """What one check found. ``fix`` is one command, empty where there is nothing to mend."""

    check: str
    state: str
    found: str
    why: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"a finding is one of {STATES}, got {self.state!r}")


@dataclass(frozen=True)
class Setting:
    """What is asked about: the folder of results, and how many jobs are to run at once (0: as many as cores)."""

    root: Path = Path("runs")
    jobs: int = 0


# ------------------------------------------------------------------------------------------ environment


def check_python(setting: Setting) -> Finding:
    """The interpreter against ``requires-python``."""
    wanted = re.search(r"[\d.]+", metadata.metadata("kwsbench")["Requires-Python"] or "3.11")
    assert wanted is not None
    found = f"{platform.python_version()} at {sys.executable}"
    why = f"kwsbench is written for Python {wanted[0]} and newer"
    if sys.version_info[:2] < _release(wanted[0]):
        return Finding("python", "missing", found, why, "make clean && make report PYTHON=python3.11")
    return Finding("python", "ok", found, why)


def check_packages(setting: Setting) -> Finding:
    """Every dependency is there and new enough; those that constraints.txt pins have that version."""
    why = "the results were made with the versions of constraints.txt; others may differ or fail"
    absent, older, installed = [], [], {}
    for requirement in metadata.requires("kwsbench") or ():
        if "extra ==" in requirement:
            continue
        name, least = re.match(r"([A-Za-z0-9._-]+)\s*(?:>=\s*([\d.]+))?", requirement).groups()  # type: ignore[union-attr]
        try:
            installed[_normal(name)] = metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if least and _release(installed[_normal(name)]) < _release(least):
            older.append(f"{name} {installed[_normal(name)]} (needs {least})")
    fix = _pip_project()
    if absent or older:
        parts = [f"absent: {', '.join(absent)}"] * bool(absent) + [f"too old: {', '.join(older)}"] * bool(older)
        return Finding("packages", "missing", "; ".join(parts), why, fix)
    pins = _pins()
    if not pins:
        return Finding("packages", "ok", f"{len(installed)} packages; no constraints.txt to compare with", why)
    # A local part (+cpu) tells which build of a version it is, not another version.
    other = [f"{n} {v} (pinned {pins[n]})" for n, v in installed.items() if v.partition("+")[0] != pins.get(n, v)]
    if other:
        return Finding("packages", "note", f"other versions than pinned: {', '.join(other)}", why, fix)
    return Finding("packages", "ok", f"{len(installed)} packages, each at its pinned version", why)


def check_kernel(setting: Setting) -> Finding:
    """What JupyterLab starts under the name ``python3``, which the notebooks ask for."""
    from jupyter_client.kernelspec import KernelSpecManager

    why = "JupyterLab starts the registered kernel, not this interpreter; batch runs always use this one"
    fix = f"{shlex.quote(sys.executable)} -m ipykernel install --sys-prefix --name python3"
    manager = KernelSpecManager()
    folders = manager.find_kernel_specs()
    if "python3" not in folders:
        return Finding("kernel", "missing", "no kernel named python3 is registered", why, fix)
    command = manager.get_kernel_spec("python3").argv[0]
    # A bare name is replaced by Jupyter with its own interpreter.
    if os.path.isabs(command) and not _same_environment(command):
        found = f"python3 is registered in {folders['python3']} for {command}, not for {sys.executable}"
        if not Path(folders["python3"]).is_relative_to(sys.prefix):  # it hides this environment's own
            fix = f"{shlex.quote(sys.executable)} -m jupyter kernelspec remove -f python3"
        return Finding("kernel", "missing", found, why, fix)
    others = sorted(set(folders) - {"python3"})
    also = f"; also registered: {', '.join(others)}" if others else ""
    return Finding("kernel", "ok", f"python3 starts this environment's interpreter{also}", why)


def check_widgets(setting: Setting) -> Finding:
    """Live figures: the Python packages, their front-end files, and that both are of one generation."""
    from jupyter_core.paths import jupyter_path

    why = "without them sliders and live figures stay empty; static figures and reports are not touched"
    fix = _pip("--force-reinstall --no-deps anywidget jupyterlab-widgets ipywidgets")
    wanted = {"ipywidgets": (8,), "jupyterlab-widgets": (3,), "plotly": (6,), "anywidget": (0, 9), "jupyterlab": (4,)}
    versions = {}
    for name, least in wanted.items():
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return Finding("widgets", "missing", f"{name} is not installed", why, fix)
        if _release(versions[name]) < least:
            needed = ".".join(map(str, least))
            return Finding("widgets", "missing", f"{name} {versions[name]} is older than {needed}", why, fix)
    if _release(versions["ipywidgets"])[0] != 8 or _release(versions["jupyterlab-widgets"])[0] != 3:
        pair = f"ipywidgets {versions['ipywidgets']} with jupyterlab-widgets {versions['jupyterlab-widgets']}"
        return Finding("widgets", "missing", f"{pair} do not pair (8 goes with 3)", why, fix)
    folders = [Path(p) for p in jupyter_path("labextensions")]
    # The front end that pairs with ipywidgets 8 is numbered 5.
    pairs = (("anywidget", _release(versions["anywidget"])[:2]), ("@jupyter-widgets/jupyterlab-manager", (5,)))
    for extension, paired in pairs:
        described = next((f / extension / "package.json" for f in folders if (f / extension).is_dir()), None)
        if described is None or not described.is_file():
            return Finding("widgets", "missing", f"the front-end files {extension} are absent", why, fix)
        front = json.loads(described.read_text(encoding="utf-8")).get("version", "")
        if _release(front)[: len(paired)] != paired:
            needed = ".".join(map(str, paired))
            found = f"the front end {extension} is {front or 'unnumbered'}, the Python side needs {needed}"
            return Finding("widgets", "missing", found, why, fix)
    told = ", ".join(f"{name} {versions[name]}" for name in ("ipywidgets", "anywidget", "plotly"))
    return Finding("widgets", "ok", f"{told}, front-end files in place", why)


def check_synth(setting: Setting) -> Finding:
    """The speech synthesizer of the embedded corpus (the extra ``synth``)."""
    why = "the embedded corpus is made with it; recordings need none of it"
    fix = _pip_project("[synth]")
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None:
        return Finding("synth", "note", "espeakng-loader is not installed: no embedded corpus", why, fix)
    folder = Path(next(iter(spec.submodule_search_locations or ("",))))
    if not any(folder.rglob("*espeak-ng*.*")):
        return Finding("synth", "note", f"espeakng-loader has no library in {folder}", why, fix)
    return Finding("synth", "ok", f"espeakng-loader {metadata.version('espeakng-loader')}", why)


def check_sound(setting: Setting) -> Finding:
    """libsndfile reads what corpora are made of; a FLAC file comes back as it went in."""
    import io

    import numpy as np
    import soundfile

    why = "corpora are read and synthetic speech is written through libsndfile"
    fix = _pip("--force-reinstall --no-deps soundfile")
    found = f"libsndfile {soundfile.__libsndfile_version__}"
    absent = sorted({"WAV", "FLAC", "OGG", "MP3", "AIFF"} - set(soundfile.available_formats()))
    if "WAV" in absent or "FLAC" in absent:
        return Finding("sound", "missing", f"{found} has no {', '.join(absent)}", why, fix)
    wave = np.arange(-800, 800, dtype=np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16000, format="FLAC", subtype="PCM_16")
    buffer.seek(0)
    if not np.array_equal(soundfile.read(buffer, dtype="int16")[0], wave):
        return Finding("sound", "missing", f"{found} changes samples on the way through FLAC", why, fix)
    if absent:
        return Finding("sound", "note", f"{found} has no {', '.join(absent)}: such files are skipped", why, fix)
    return Finding("sound", "ok", f"{found}: WAV, FLAC, Ogg, MP3, AIFF", why)


# ---------------------------------------------------------------------------------------------- machine


def check_threads(setting: Setting) -> Finding:
    """Cores against what jobs and thread pools would take."""
    cores = usable_cores()
    jobs = setting.jobs or 1
    why = "threads beyond the cores wait for each other: two such jobs made 3 steps/s each where one alone makes 138"
    set_threads = {name: os.environ[name] for name in THREAD_VARIABLES if os.environ.get(name)}
    spin = os.environ.get("GOMP_SPINCOUNT", "")
    settings = ", ".join(f"{k}={v}" for k, v in set_threads.items()) or "thread counts unset"
    found = f"{cores} cores usable of {os.cpu_count()}, {settings}, GOMP_SPINCOUNT={spin or 'unset'}"
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        return Finding("threads", "note", f"{found}; OMP_WAIT_POLICY=active", why, "unset OMP_WAIT_POLICY")
    if not spin.isdigit() or int(spin) > SPIN_LIMIT:
        return Finding("threads", "note", f"{found}: waiting threads spin long", why, "export GOMP_SPINCOUNT=1000")
    each = max([int(v) for v in set_threads.values() if v.isdigit()] or [0])
    if each > cores:
        return Finding("threads", "note", found, why, f"export OMP_NUM_THREADS={cores}")
    if jobs > cores:
        found = f"{found}; {jobs} jobs at once are more than the cores"
        return Finding("threads", "note", found, why, f"kwsbench sweep SPEC.yaml --jobs {cores}")
    if jobs * each > cores:
        found = f"{found}; {jobs} jobs of {each} threads"
        return Finding("threads", "note", found, why, f"export OMP_NUM_THREADS={max(1, cores // jobs)}")
    # Set nowhere, thread pools count the machine's cores, not this container's.
    if not each and (os.cpu_count() or 1) > cores and _counts_all_cores():
        return Finding("threads", "note", found, why, f"export OMP_NUM_THREADS={cores}")
    return Finding("threads", "ok", found, why)


def check_gpu(setting: Setting) -> Finding:
    """What torch computes on."""
    import torch

    why = "results live per kind of device: a model trained on a GPU is another artifact than one trained on the CPU"
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / GIGABYTE
        return Finding("gpu", "ok", f"{name}, {memory:.0f} GB: training runs there", why)
    if shutil.which("nvidia-smi"):
        build = f"torch {torch.__version__} (built for {torch.version.cuda or 'the CPU'})"
        found = f"there is an NVIDIA driver, but {build} does not see a GPU: training runs on the CPU"
        return Finding("gpu", "note", found, why, _pip(f"--force-reinstall torch=={metadata.version('torch')}"))
    return Finding("gpu", "ok", "none: training runs on the CPU, and nothing needs more", why)


def check_kernels(setting: Setting) -> Finding:
    """The Numba kernels compile and equal the NumPy reference on a small random program."""
    import numpy as np

    from kwsbench.integer import run

    why = "every integer score comes from these kernels"
    fix = _pip("--force-reinstall --no-deps numba llvmlite")
    program = _small_program()
    frames = np.random.default_rng(0).normal(size=(40, program.n_mels)).astype(np.float32)
    expected = run.run(program, frames, "reference")
    wrong = [b for b in run.BACKENDS if not np.array_equal(run.run(program, frames, b), expected)]
    if wrong:
        return Finding("kernels", "missing", f"other values than the reference: {', '.join(wrong)}", why, fix)
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(run.__file__).parent)
    if not _writable(folder):
        found = f"the kernels agree with the reference, but {folder} cannot be written: each process compiles them anew"
        return Finding("kernels", "note", found, why, 'export NUMBA_CACHE_DIR="$HOME/.cache/kwsbench-numba"')
    found = f"{len(run.BACKENDS) - 1} kernels equal the reference on {expected.size} values; compiled code is kept"
    return Finding("kernels", "ok", found, why)


def check_disk(setting: Setting) -> Finding:
    """The folder of results can be written, and there is room."""
    folder = _nearest(setting.root)
    why = "corpora, features and models are kept there and made once"
    elsewhere = "kwsbench doctor --root /another/disk/runs"
    if not _writable(folder):
        return Finding("disk", "missing", f"cannot write to {folder.resolve()}", why, elsewhere)
    free = shutil.disk_usage(folder).free / GIGABYTE
    found = f"{free:.1f} GB free for {setting.root.resolve()}"
    if free < LEAST_GB:
        return Finding("disk", "missing", f"{found}; at least {LEAST_GB:g} GB are needed", why, elsewhere)
    if free < ROOM_GB:
        found = f"{found}: enough for the embedded corpus, not for a full one"
        return Finding("disk", "note", found, why, elsewhere)
    return Finding("disk", "ok", found, why)


def check_locks(setting: Setting) -> Finding:
    """A lock on a file in the folder of results shuts out a second holder."""
    folder = _nearest(setting.root)
    why = "runs that share a folder take turns by file locks; without them two would write one file"
    fix = "kwsbench doctor --root /a/local/disk/runs"
    if not _writable(folder):
        return Finding("locks", "missing", f"no file can be made in {folder.resolve()} to lock", why, fix)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-test.") as first, open(first.name, "rb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found = f"{folder.resolve()} takes no locks ({error.strerror})"
            return Finding("locks", "missing", found, why, fix)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("locks", "ok", f"locks hold in {folder.resolve()}", why)
    return Finding("locks", "missing", f"a lock in {folder.resolve()} does not shut out a second holder", why, fix)


def check_text(setting: Setting) -> Finding:
    """UTF-8 for file names and output."""
    why = "labels, file names and captions are UTF-8 text"
    encodings = {
        "file names": sys.getfilesystemencoding(),
        "files": locale.getpreferredencoding(False),
        "output": getattr(sys.stdout, "encoding", None) or "utf-8",
    }
    other = [f"{what} {name}" for what, name in encodings.items() if name.lower().replace("-", "") != "utf8"]
    if other:
        return Finding("text", "note", f"not UTF-8: {', '.join(other)}", why, "export PYTHONUTF8=1 LANG=C.UTF-8")
    return Finding("text", "ok", "UTF-8 everywhere", why)


def check_temporary(setting: Setting) -> Finding:
    """The folder for temporary files."""
    why = "kernels, browsers and the synthesizer leave short-lived files there"
    fix = 'export TMPDIR="$HOME/tmp"'
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return Finding("temporary files", "missing", f"no folder takes them: {error}", why, fix)
    free = shutil.disk_usage(folder).free / GIGABYTE
    if free < 0.2:
        return Finding("temporary files", "missing", f"{free:.2f} GB free in {folder}", why, fix)
    return Finding("temporary files", "ok", f"{free:.1f} GB free in {folder}", why)


def check_loopback(setting: Setting) -> Finding:
    """A port on 127.0.0.1, where JupyterLab and its kernels listen."""
    why = "JupyterLab and its kernels talk over 127.0.0.1, and nowhere else"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return Finding("loopback", "missing", f"127.0.0.1 cannot be used ({error})", why, "sudo ip link set lo up")
    return Finding("loopback", "ok", "127.0.0.1 takes connections", why)


def check_recordings(setting: Setting) -> Finding:
    """The folder that KWSBENCH_SPEECH names."""
    why = "`make result` and the tests of real recordings look there"
    named = os.environ.get("KWSBENCH_SPEECH", "")
    if not named:
        return Finding("recordings", "ok", "KWSBENCH_SPEECH is not set: the embedded corpus serves", why)
    if not Path(named).is_dir():
        return Finding("recordings", "note", f"KWSBENCH_SPEECH={named} is no folder", why, "unset KWSBENCH_SPEECH")
    return Finding("recordings", "ok", f"KWSBENCH_SPEECH={named}", why)


def check_browser(setting: Setting) -> Finding:
    """Chromium and its driver, of one version: for the tests only."""
    why = "only the browser tests need them; without them those are skipped"
    fix = "sudo apt install chromium chromium-driver"
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    absent = [name for name, path in (("chromium", chromium), ("chromedriver", driver)) if not path]
    if absent:
        return Finding("browser", "note", f"no {' and no '.join(absent)} on PATH", why, fix)
    majors = [_major(_output(path, "--version")) for path in (chromium, driver) if path]
    if len(set(majors)) > 1:
        return Finding("browser", "note", f"chromium {majors[0]} and chromedriver {majors[1]} do not match", why, fix)
    return Finding("browser", "ok", f"chromium and chromedriver {majors[0]}", why)


def check_cross(setting: Setting) -> Finding:
    """A compiler and an emulator for 64-bit Arm."""
    why = "optional: they let generated code run as Arm instructions; nothing needs them today"
    tools = ("aarch64-linux-gnu-gcc", "qemu-aarch64")
    absent = [tool for tool in tools if not shutil.which(tool)]
    if platform.machine() in ("aarch64", "arm64") and shutil.which("cc"):
        return Finding("cross tools", "ok", "this machine is 64-bit Arm: its own compiler serves", why)
    if absent:
        fix = "sudo apt install gcc-aarch64-linux-gnu qemu-user"
        return Finding("cross tools", "note", f"no {' and no '.join(absent)} on PATH", why, fix)
    return Finding("cross tools", "ok", " and ".join(tools), why)


# Name, check, and whether the workbench needs what it looks at.
CHECKS: tuple[tuple[str, Callable[[Setting], Finding], bool], ...] = (
    ("python", check_python, True),
    ("packages", check_packages, True),
    ("kernel", check_kernel, True),
    ("widgets", check_widgets, True),
    ("threads", check_threads, False),
    ("kernels", check_kernels, True),
    ("sound", check_sound, True),
    ("disk", check_disk, True),
    ("locks", check_locks, True),
    ("temporary files", check_temporary, True),
    ("loopback", check_loopback, True),
    ("text", check_text, False),
    ("gpu", check_gpu, False),
    ("synth", check_synth, False),
    ("recordings", check_recordings, False),
    ("browser", check_browser, False),
    ("cross tools", check_cross, False),
)


def examine(setting: Setting) -> list[Finding]:
    """Every finding, in the order of ``CHECKS``; a check that fails itself is one, too."""
    return [_guarded(name, check, needed, setting) for name, check, needed in CHECKS]


def _guarded(name: str, check: Callable[[Setting], Finding], needed: bool, setting: Setting) -> Finding:
    try:
        return check(setting)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        found = f"{absent} is not installed" if absent else f"could not be checked: {type(error).__name__}: {error}"
        why = "what cannot be looked at may not work either"
        return Finding(name, "missing" if needed else "note", found, why, _pip_project())


def as_text(findings: Iterable[Finding]) -> str:
    """The findings as a table, what is missing last; reasons and commands only where something is to be done."""
    rows = sorted(findings, key=lambda f: STATES.index(f.state))
    width = max(len(f.check) for f in rows)
    lines = []
    for f in rows:
        lines.append(f"{f.state:8}{f.check:{width}}  {f.found}")
        if f.state != "ok":
            indent = " " * (8 + width + 2)
            lines += [f"{indent}why: {f.why}", *([f"{indent}fix: {f.fix}"] if f.fix else [])]
    counts = {state: sum(f.state == state for f in rows) for state in STATES}
    if counts["missing"]:
        lines.append(f"\n{counts['missing']} of {len(rows)} checks found something needed missing")
    else:
        notes = f", {counts['note']} with a note" if counts["note"] else ""
        lines.append(f"\nall that is needed is there ({len(rows)} checks{notes})")
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> str:
    """The findings as JSON: a list of objects with check, state, found, why, fix."""
    return json.dumps([asdict(f) for f in findings], indent=1, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------- helpers


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group (rounded down, at least 1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cgroup_cores() -> float | None:
    """The processor quota in cores, None where there is none; versions 2 and 1 of control groups."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((CGROUP / name).read_text() for name in names).split()
            quota, period = words[0], words[1]
        except (OSError, IndexError):
            continue
        return None if quota in ("max", "-1") else int(quota) / int(period)
    return None


def _counts_all_cores() -> bool:
    """Whether a thread pool would start more threads than there are cores to use: it knows affinity, not quotas."""
    quota = _cgroup_cores()
    return quota is not None and hasattr(os, "sched_getaffinity") and quota < len(os.sched_getaffinity(0))


def _small_program():
    """A program of two layers with random codes, from 8 x 4 inputs."""
    import numpy as np

    from kwsbench.integer.program import InputQuantizer, OutputDense, Program, Proof, UnfoldedDense

    rng = np.random.default_rng(1)
    proof = Proof(128, 2**20, 2**20)

    def codes(rows: int, columns: int) -> np.ndarray:
        return rng.choice(np.arange(-31, 32, 2), (rows, columns)).astype(np.int8)

    hidden = UnfoldedDense(
        "layer0", codes(9, 32), 5, "odd", rng.integers(-127, 128, 9).astype(np.int8),
        rng.integers(-127, 128, 9).astype(np.int8), 20000, 4096, 30, 0.05, True, proof,
    )  # fmt: skip
    output = OutputDense(
        "layer1", codes(2, 9), 5, "odd", rng.integers(-99, 99, 2).astype(np.int32), np.full(2, 0.01), proof
    )
    front = InputQuantizer(np.zeros(8, np.float32), np.ones(8, np.float32), float(np.float32(0.03)))
    return Program(("word",), 8, 4, 0.03, front, (hidden, output))


def _pins() -> dict[str, str]:
    file = _PROJECT / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {_normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def _pip(rest: str) -> str:
    """pip of this interpreter, with the pins where there are any."""
    pins = _PROJECT / "constraints.txt"
    constraints = f"-c {shlex.quote(str(pins))} " if pins.is_file() else ""
    return f"{shlex.quote(sys.executable)} -m pip install {constraints}{rest}"


def _pip_project(extras: str = "") -> str:
    """pip that installs this checkout again, or the package where there is no checkout."""
    checkout = (_PROJECT / "pyproject.toml").is_file()
    return _pip(("-e " if checkout else "") + shlex.quote((str(_PROJECT) if checkout else "kwsbench") + extras))


def _same_environment(command: str) -> bool:
    """Whether an interpreter's path lies in this environment. Links are not followed: a venv's python is one."""
    own = Path(os.path.abspath(sys.executable)).parent
    return Path(os.path.abspath(command)).parent in (own, Path(sys.prefix) / own.name)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
            file.write(b"x")
        return True
    except OSError:
        return False


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout


def _major(text: str) -> str:
    found = re.search(r"(\d+)\.\d", text)
    return found[1] if found else "?"
