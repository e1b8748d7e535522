from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys

import pytest

from tscode_yolo import __version__, cli, doctor
from tscode_yolo.parity.variants import ALL, NEEDS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("640", 640),
        ("0.5", 0.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("best.pt", "best.pt"),
        ("[1, 2]", [1, 2]),
        ("onnx,openvino", "onnx,openvino"),
        ("1,2", "1,2"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_read_in_the_hosts_style(text, value):
    assert cli.parse([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["docter"], "unknown verb 'docter'; did you mean 'doctor'?"),
        (["doctor", "imgsz"], "expected key=value, got 'imgsz'"),
        (["doctor", "a=1", "a=2"], "'a' is given twice"),
    ],
)
def test_a_wrong_command_line_gets_one_message_and_exit_code_2(argv, message, capsys):
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_names_every_verb(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_doctor_is_well_here_but_for_what_this_environment_lacks(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "autoload", lambda: "tested in a fresh process elsewhere")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.versions, doctor.hooks, doctor.yamls, doctor.forward))
    assert doctor.main({}) == 0
    out = capsys.readouterr().out
    assert "coarsest map 3x5" in out
    assert "nn.tasks.parse_model" in out


def test_doctor_finds_a_dead_hook_and_says_so(capsys):
    from tscode_yolo import register

    register.unregister()
    try:
        assert doctor.main({}) == 1
    finally:
        register.register()
    out = capsys.readouterr().out
    assert "SICK hooks" in out
    assert "not wrapped: ultralytics.nn.tasks.parse_model" in out
    assert "SICK forward" in out  # the checks after a failed one still run


def test_doctor_says_when_autoload_is_off(monkeypatch, capsys):
    monkeypatch.setenv("TSCODE_YOLO_AUTOLOAD", "0")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.autoload,))
    assert doctor.main({}) == 1
    assert "switched off by TSCODE_YOLO_AUTOLOAD=0; unset it" in capsys.readouterr().out


def test_doctor_refuses_arguments(capsys):
    assert doctor.main({"model": "x"}) == 2
    assert "takes no arguments, got model" in capsys.readouterr().err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(cli.VERBS[verb][1])
    assert len(said.splitlines()) > 2
    module = importlib.import_module(cli.VERBS[verb][0])
    module = sys.modules[module.main.__module__]
    keys = getattr(module, "KEYS", None) or getattr(module, "ARGUMENTS", ())
    keys = [f.name for f in dataclasses.fields(keys)] if dataclasses.is_dataclass(keys) else keys
    assert [k for k in keys if not re.search(rf"\b{k}\b[=: ]", said)] == []


def test_help_says_the_defaults_where_they_stand_in_the_code(capsys):
    assert cli.main(["parity", "help"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^    count: .* \[8\]$", said, flags=re.MULTILINE)
    assert re.search(r"^    baseline: [^\[]*$", said, flags=re.MULTILINE)
    assert [name for name in (*NEEDS, "base", *ALL) if not re.search(rf"\b{name}\b", said)] == ["opset17"]
    assert cli.main(["align", "help"]) == 0
    assert re.search(r"^    rect: .* \[true\]$", capsys.readouterr().out, flags=re.MULTILINE)


def test_a_reader_who_has_seen_enough_is_no_error():
    head = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
    with subprocess.Popen(head, stdin=subprocess.PIPE) as reader:
        reader.stdin.write(b"\n")
        reader.stdin.flush()
        reader.wait()
        shown = subprocess.run(
            [sys.executable, "-m", "tscode_yolo.cli", "help"], stdout=reader.stdin, stderr=subprocess.PIPE, check=False
        )
    assert (shown.returncode, shown.stderr) == (0, b"")


def test_help_takes_a_verb_behind_it_too(capsys):
    assert cli.main(["profile", "help"]) == 0
    said = capsys.readouterr().out
    assert cli.main(["help", "profile"]) == 0
    assert capsys.readouterr().out == said
    assert cli.main(["help", "profil"]) == 2
    assert "did you mean 'profile'?" in capsys.readouterr().err


def test_an_error_is_a_traceback_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("TSCODE_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown verb 'profil'"):
        cli.main(["profil"])


def test_a_stop_is_one_line(monkeypatch, capsys):
    def stopped(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", stopped)
    assert cli.main(["align", "model=a.pt"]) == 130
    assert capsys.readouterr().err == "tscode: stopped\n"
