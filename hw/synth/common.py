"""What the scripts of the physical study share: where things lie, running a tool, writing JSON."""
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "synth"
RESULTS = ROOT / "docs" / "results" / "hw" / "synth"
VENV = BUILD / "venv"
RTL = "hw/rtl"
TERNARY = [f"{RTL}/mmf_core_{name}.sv" for name in ("trits", "row", "tile")]
INT8 = [f"{RTL}/mmf_int8_{name}.sv" for name in ("mul", "row", "tile")]


def yowasp(name):
    """The command of a tool from PyPI, which hw/synth/setup.sh installs."""
    path = VENV / "bin" / f"yowasp-{name}"
    if not path.exists():
        sys.exit(f"{sys.argv[0]}: {path} does not exist; run hw/synth/setup.sh")
    return str(path)


def run(command, log, limit=None):
    """Runs a command in the repository's root; its output goes into a file under build/synth, and is returned."""
    path = BUILD / log
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as out:
        result = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=limit, check=False)
    text = path.read_text(errors="replace")
    if result.returncode != 0:
        sys.exit(f"{sys.argv[0]}: {command[0]} failed with {result.returncode}; the end of {path}:\n{text[-1500:]}")
    return text


def version(command):
    text = subprocess.run(command, capture_output=True, text=True, check=False)
    return re.sub(r"\s+", " ", (text.stdout + text.stderr).replace("Preparing to run", "\n").split("\n")[0]).strip()


def write_json(name, value):
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / name
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"wrote {path.relative_to(ROOT)}", flush=True)
