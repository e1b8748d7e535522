"""`tscode parity` in every format, each heavy one in a virtual environment of its own, gathered in one table.

    python examples/parity_all_formats.py FOLDER [--only=openvino,ncnn] [--share] [--remove] model=best.pt
        [baseline=stock.pt] [data=data.yaml] [variants=all] [imgsz=640] json=parity.json md=parity.md

FOLDER gets one environment a name of ENVIRONMENTS; those that are there already are used again. All together take
about 20 GB and an hour, most of it downloads; nothing is installed anywhere else. --share lets the environments see
what is installed beside the Python that runs this script, torch above all, and install only what they need besides:
a quarter of it. --remove deletes each environment after use. The table says what could not be installed, and why.
"""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# name: (formats, what they need besides tscode-yolo). The bounds are those of ultralytics/engine/exporter.py and
# ultralytics/utils/export in 8.4.190: numpy and torch are held where a converter does not take the newest.
ENVIRONMENTS: dict[str, tuple[str, list[str]]] = {
    "onnx": ("torchscript,onnx", ["onnx", "onnxruntime", "onnxslim>=0.1.82"]),
    "openvino": ("openvino", ["openvino>=2024.0.0", "nncf>=2.14.0"]),
    "ncnn": ("ncnn", ["ncnn", "pnnx==20260526"]),
    # MNN's converter imports Alibaba's log client, and pip-installs it in mid-flight where it is missing.
    "mnn": ("mnn", ["MNN>=2.9.6", "aliyun-log-python-sdk", "protobuf<6", "onnx<1.20", "onnxslim>=0.1.82"]),
    "executorch": ("executorch", ["executorch", "numpy<=2.3.5"]),
    "litert": ("litert", ["litert-torch>=0.10.0", "ai-edge-litert>=2.3.0", "ai-edge-quantizer>=0.10.0"]),
    "tensorflow": (
        "saved_model,pb",
        [
            *("tensorflow<=2.19.0", "tf_keras<=2.19.0", "numpy<2", "protobuf>=5", "onnx2tf>=1.26.3,<1.29.0"),
            *("sng4onnx>=1.0.1", "onnx_graphsurgeon>=0.3.26", "ai-edge-litert>=1.2.0", "psutil", "onnx"),
            *("onnxruntime", "onnxslim>=0.1.82"),
        ],
    ),
    "paddle": ("paddle", ["paddlepaddle>=3.0.0,<3.3.0", "x2paddle", "six", "setuptools<82", "protobuf<7"]),
    "coreml": ("coreml", ["coremltools>=9.0", "numpy<=2.3.5", "scikit-learn"]),
    "tensorrt": ("engine", ["tensorrt", "onnx", "onnxslim>=0.1.82"]),
}


def make(folder: Path, requirements: list[str], share: bool) -> tuple[Path, str]:
    """Make an environment, or use the one that is there; its Python, and pip's last line if pip failed."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "complete"
    if done.exists():
        return python, ""
    venv.create(folder, with_pip=True, clear=True)
    if share:
        home = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True
        ).stdout.strip()
        Path(home, "shared.pth").write_text("\n".join([*site.getsitepackages(), *shared_paths()]) + "\n")
    ours = ["--no-deps", str(REPO)] if share else [str(REPO)]
    for what in (ours, requirements):
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            return python, "pip: " + " ".join((errors or result.stderr.splitlines() or ["no reason given"])[0].split())
    done.touch()
    return python, ""


def shared_paths() -> list[str]:
    """Other folders of packages this Python sees, e.g. by .pth files of its own."""
    return [p for p in sys.path if p.endswith("site-packages")]


def not_installed(formats: str, reason: str) -> list[dict[str, object]]:
    """Rows that say why a format is missing from the table."""
    empty = dict.fromkeys(("model", "baseline", "latency", "input"))
    said = {"verdict": "not run", "reason": reason, "skipped": reason, "precision": "float32", "packages": {}}
    return [{**empty, "format": f, "variant": "base", **said} for f in formats.split(",")]


def main(argv: list[str]) -> int:
    options = {a.partition("=")[0]: a.partition("=")[2] for a in argv if a.startswith("--")}
    given = dict(a.split("=", 1) for a in argv if not a.startswith("--") and "=" in a)
    folders = [a for a in argv if not a.startswith("--") and "=" not in a]
    if len(folders) != 1 or "model" not in given or "json" not in given:
        print(__doc__, file=sys.stderr)
        return 2
    target = {k: given.pop(k) for k in ("json", "md") if k in given}
    paths = {k: str(Path(v).absolute()) for k, v in given.items() if k in ("model", "baseline", "data", "source")}
    arguments = [f"{k}={v}" for k, v in {**given, **paths}.items()]
    names = options["--only"].split(",") if options.get("--only") else list(ENVIRONMENTS)
    reports, missing = [], []
    for name in names:
        formats, requirements = ENVIRONMENTS[name]
        home = Path(folders[0]).absolute() / name
        print(f"{name}: environment", flush=True)
        python, failure = make(home, requirements, "--share" in options)
        result = home / "parity.json"
        result.unlink(missing_ok=True)  # of an earlier run
        if not failure:
            print(f"{name}: tscode parity formats={formats}", flush=True)
            command = [python, "-m", "tscode_yolo.cli", "parity", f"formats={formats}", f"json={result}", *arguments]
            environment = {**os.environ, "YOLO_AUTOINSTALL": "false"}
            environment.pop("PYTHONPATH", None)
            ended = subprocess.run(command, cwd=home, env=environment, check=False).returncode
            failure = "" if result.exists() else f"tscode parity ended with exit code {ended} and no report"
        if failure:
            missing += not_installed(formats, failure)
        else:
            reports.append(json.loads(result.read_text()))
        if "--remove" in options:
            shutil.rmtree(home)
    if not reports:
        raise SystemExit(f"no format could be run: {missing[0]['reason']}")
    return gather(reports, missing, target)


def gather(reports: list[dict], missing: list[dict[str, object]], target: dict[str, str]) -> int:
    """Write one report; 0 if something passed and nothing failed."""
    from tscode_yolo.parity.table import markdown, merge
    from tscode_yolo.verbs.storage import write_json

    report = merge(reports)
    report["rows"] += missing
    write_json(Path(target["json"]), report)
    if "md" in target:
        Path(target["md"]).write_text(markdown(report), encoding="utf-8")
    verdicts = [row["verdict"] for row in report["rows"]]
    return 0 if "PASS" in verdicts and "FAIL" not in verdicts else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
