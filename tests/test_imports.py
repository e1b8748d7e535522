"""Imports point down only (CONTRIBUTING.md, layout)."""

from __future__ import annotations

import ast
from pathlib import Path

import tscode_yolo

PACKAGE = Path(tscode_yolo.__file__).parent
# room: the rooms it may import, at module level or inside a function
ALLOWED = {
    "config": set(),
    "shipped": set(),
    "shapes": set(),
    "deform": set(),
    "resample": set(),
    "integral": set(),
    "quality": set(),
    "priors": set(),
    "recipes": {"config"},
    "blocks": {"deform"},
    "down_of_sum": {"blocks", "resample"},
    "context": {"blocks", "down_of_sum", "resample"},
    "branches": {"blocks", "config", "context"},
    "head": {
        *("blocks", "branches", "config", "context", "down_of_sum", "integral", "priors", "quality"),
        "resample",
    },
    "transfer": set(),
    "fpn": {"config", "deform"},
    "build": {"config", "fpn", "head", "recipes"},
    "register": {
        *("blocks", "build", "config", "context", "deform", "fpn", "head", "integral", "priors", "quality"),
        *("recipes", "shipped", "transfer"),
    },
    "doctor": {"config", "register", "shipped"},
    "verbs": {"config", "shipped"},
    "study": {"config", "register", "shipped", "verbs"},
    "align": {"verbs"},
    "graft": {"head", "register", "study", "transfer", "verbs"},
    "safe": {"build", "config", "register", "study", "transfer", "verbs"},
    "parity": {"config", "register", "study", "verbs"},
    "cli": {"config"},
    "__init__": {"register"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}: a relative import, which hides it"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tscode_yolo":
            names = node.module.split(".")[1:2] or [a.name for a in node.names]  # `from tscode_yolo import context`
            rooms |= {n for n in names if (PACKAGE / n).is_dir() or (PACKAGE / f"{n}.py").is_file()}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tscode_yolo.")}
    return rooms


def test_imports_point_down_only():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert room in ALLOWED, f"new room {room}: say in this test what it may import"
        assert imported_rooms(path) <= ALLOWED[room] | {room}, path.name


def test_only_register_writes_into_the_hosts_namespace():
    """No other module assigns to an attribute of a host module or class, or calls setattr on one."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        host_names = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ultralytics"))
            or isinstance(node, ast.Import)
            for alias in node.names
            if isinstance(node, ast.ImportFrom) or alias.name.startswith("ultralytics")
        }
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            written = {ast.unparse(t).split(".")[0] for t in targets if isinstance(t, ast.Attribute)}
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                written |= {ast.unparse(node.args[0]).split(".")[0]}
            assert path.name == "register.py" or not written & host_names, f"{path.name} line {node.lineno}"
