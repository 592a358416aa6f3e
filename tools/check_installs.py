"""Follow every install line of documents and messages, each in an environment of its own.

    python tools/check_installs.py          # all of them, some minutes: make installs
    python tools/check_installs.py serve    # only those that name this

The lines are those that tests/test_extras.py finds. In place of ``fxelastic`` and of ``.``, the
wheel of this checkout is installed, with the versions of constraints.txt: otherwise pip may fetch
gigabytes of CUDA libraries with torch. What each line is for must be importable afterwards, and
torch only where the line asks for it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.test_extras import LINES, ROOT, calls

# What must be importable with each extra, and always.
MODULES = {
    "torch": "fxelastic.train",
    "report": "fxelastic.report.page",
    "serve": "fxelastic.cli.serve_http",
    "sign": "cryptography.hazmat.primitives.asymmetric.ed25519",
}
BASE = "fxelastic.edge"


def output_of(*command: str | Path) -> str:
    """What a command that failed wrote; nothing if it succeeded."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"code {done.returncode}"


def check(line: str, wheel: Path, folder: Path) -> str:
    """Install what a line names in a new environment.

    Args:
        line: A package, perhaps with extras.
        wheel: This checkout's.
        folder: For the environment.

    Returns:
        What went wrong; nothing if it works.
    """
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    ours = re.fullmatch(r"(?:fxelastic|\.)(?:\[([\w,]+)\])?", line)
    named = re.sub(r"^(fxelastic|\.)", str(wheel), line) if ours else line
    # Isolated (-I): a PYTHONPATH that has the package would make pip think that it is installed.
    constraints = ("--constraint", ROOT / "constraints.txt")
    failure = output_of(python, "-I", "-m", "pip", "install", "--quiet", *constraints, named)
    if failure or ours is None:
        return failure
    extras = ours[1].split(",") if ours[1] else []
    code = f"import {', '.join([BASE, *(MODULES[extra] for extra in extras)])}"
    if "torch" not in extras:
        code += "\nimport importlib.util\nassert importlib.util.find_spec('torch') is None, 'torch'"
    return output_of(python, "-I", "-c", code)


def main(names: list[str]) -> int:
    """Check all lines, or those that contain one of the names; 1 if any fails."""
    lines = {line for _, line in LINES} | {f"fxelastic[{extra}]" for *_, extra in calls()}
    n_failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheels = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        if failure := output_of(sys.executable, *wheels):
            raise SystemExit(failure)
        (wheel,) = folder.glob("*.whl")
        for i, line in enumerate(sorted(lines)):
            if names and not any(name in line for name in names):
                continue
            failure = check(line, wheel, folder / str(i))
            n_failed += bool(failure)
            print(f"pip install {line}: {failure or 'works'}", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
