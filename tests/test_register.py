from __future__ import annotations

import copy
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch
import ultralytics
import yaml
from conftest import CHANNELS, REPO, fresh_python, run
from ultralytics import YOLO
from ultralytics.data import utils as data_utils
from ultralytics.nn import tasks
from ultralytics.utils import checks

from tscode_yolo import config, register
from tscode_yolo.build import build_layers
from tscode_yolo.shipped import cfg_path

TINY = {  # a model YAML small enough to build in no time: levels 1..4 are C2, P3, P4, P5
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [c, 3, 2]] for c in (8, *CHANNELS)],
    "head": [[[1, 2, 3, 4], 1, "TSCODEDetect", ["nc", {"finer": True}]]],
}


def tiny(**changes) -> dict:
    return {**copy.deepcopy(TINY), **changes}


@pytest.fixture
def unplugged():
    """The host without the plug-in, for the time of a test."""
    register.unregister()
    yield
    register.register()


def test_every_patch_is_live_and_registering_again_changes_nothing():
    import ultralytics.data.utils
    import ultralytics.nn.tasks  # noqa: F401

    before = tasks.parse_model
    register.register()
    assert tasks.parse_model is before
    assert all(register.live().values()), register.live()


def test_unregister_restores_the_originals(unplugged):
    assert not any(register.live().values())
    assert tasks.parse_model.__module__ == "ultralytics.nn.tasks"
    assert not hasattr(tasks.parse_model, "__wrapped__")
    assert not hasattr(tasks.BaseModel.load, "__wrapped__")
    with pytest.raises(KeyError, match="TSCODEDetect"):
        tasks.DetectionModel(tiny(), verbose=False)


def test_a_stock_model_is_bitwise_the_same_with_and_without(unplugged):
    def build() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return tasks.DetectionModel("yolo11n.yaml", nc=4, verbose=False).state_dict()

    without = build()
    register.register()
    with_plugin = build()
    assert without.keys() == with_plugin.keys()
    assert all(torch.equal(without[k], with_plugin[k]) for k in without)


def test_the_row_wins_over_the_top_level_mapping():
    d = tiny(tscode={"sce_kernel": 5, "cls_depth": 1}, head=[[[2, 3, 4], 1, "TSCODEDetect", ["nc", {"sce_kernel": 7}]]])
    head = tasks.DetectionModel(d, verbose=False).model[-1]
    assert (head.options["sce_kernel"], head.options["cls_depth"], head.finer) == (7, 1, False)


def test_a_built_model_is_what_the_host_expects():
    model = tasks.DetectionModel(tiny(end2end=True, reg_max=1), verbose=False)
    head = model.model[-1]
    assert head.type == "tscode_yolo.head.TSCODEDetect"
    assert (head.i, head.f, head.nl, head.nc, head.reg_max) == (5, [1, 2, 3, 4], 3, 3, 1)
    assert head.np == sum(p.numel() for p in head.parameters())
    assert model.stride.tolist() == [8, 16, 32]
    assert tasks.guess_model_task(model.yaml) == "detect"
    assert model.yaml["head"] == tiny()["head"]  # what a checkpoint keeps is what the user wrote
    assert head.one2one_cv2 is not None


def test_the_log_has_one_row_a_layer_and_ours_is_ours():
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("ultralytics")
    logger.addHandler(handler)
    try:
        model = tasks.DetectionModel(tiny(), verbose=True)
    finally:
        logger.removeHandler(handler)
    rows = [m for m in said if m[:3].strip().isdigit()]
    assert [int(row[:3]) for row in rows] == list(range(len(model.model)))
    assert "tscode_yolo.head.TSCODEDetect" in rows[-1]
    assert "levels=3" in rows[-1]
    assert "finer=True" in rows[-1]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            [[[2, 3, 4], 1, "TSCODEDetect", ["nc", {"sec": True}]]],
            "^model YAML: unknown tscode option 'sec'; did you mean 'sce'",
        ),
        ([[4, 1, "TSCODEDetect", ["nc"]]], "reads at least 2 layers, its row names 4"),
        ([[[4], 1, "TSCODEDetect", ["nc"]]], r"reads at least 2 layers, its row names \[4\]"),
        ([[[3, 4], 1, "TSCODEDetect", ["nc", {"finer": True}]]], "at least 2 predicted levels after the finer map"),
        ([[[2, 3, 4], 1, "TSCODEDetect", ["nc", 16]]], r"the arguments of TSCODEDetect are \[nc\] or"),
        ([[[2, 3, 4], 1, "TSCODEDetect", [{"sce": False}]]], r"the arguments of TSCODEDetect are \[nc\] or"),
        ([[[2, 3, 4], 1, "TSCODEdetect", ["nc"]]], "unknown layer 'TSCODEdetect'; did you mean 'TSCODEDetect'"),
        ([[[2, 3, 4], 1, "TSCODEDetct", ["nc"]]], "unknown layer 'TSCODEDetct'; did you mean 'TSCODEDetect'"),
        ([[[2, 3, 4], 1, "TSCODEDetect", ["nc", {"quality": "iou"}]]], "the host's loss does not train that branch"),
        ([[[2, 4], 1, "TSCODEDetect", ["nc"]]], r"consecutive levels.*input 0 is 32x32 and input 1 is 8x8"),
        ([[[2, 3, 4], 1, "TSCODEDetect", ["nc"]], [-1, 1, "nn.Identity", []]], "must be the last row of `head:`"),
    ],
)
def test_a_wrong_row_gets_one_clear_error(head, message):
    with pytest.raises(ValueError, match=message):
        tasks.DetectionModel(tiny(head=head), verbose=False)


def test_options_without_effect_are_a_warning(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("tscode_yolo.build.LOGGER.warning", said.append)
    tasks.DetectionModel(tiny(tscode={"sce": False}), verbose=False)
    assert said == []
    tasks.DetectionModel(tiny(tscode={"sce": False, "cls_width": 4.0}), verbose=False)
    assert len(said) == 1
    assert "tscode options without effect: cls_width (of a head with sce: true)" in said[0]


def test_a_wrong_name_is_said_before_a_backbone_is_made(monkeypatch):
    monkeypatch.setattr("tscode_yolo.build.build_fpn", lambda d, ch: pytest.fail("made a backbone"))
    with pytest.raises(ValueError, match="did you mean 'TSCODEDetect'"):
        tasks.DetectionModel(tiny(head=[[[2, 3, 4], 1, "TSCODEDetct", ["nc"]]]), verbose=False)


def test_our_layers_elsewhere_get_one_clear_error():
    with pytest.raises(ValueError, match="TSCODEDetect belongs into `head:`"):
        tasks.DetectionModel(
            tiny(backbone=[*tiny()["backbone"], [[2, 3, 4], 1, "TSCODEDetect", ["nc"]]]), verbose=False
        )
    with pytest.raises(ValueError, match="unknown layer 'TorchVisionFpn'; did you mean 'TorchvisionFPN'"):
        tasks.DetectionModel(tiny(backbone=[[-1, 1, "TorchVisionFpn", []], *tiny()["backbone"][1:]]), verbose=False)


def test_every_model_yaml_of_the_host_reaches_the_host_unchanged():
    files = sorted((Path(ultralytics.__file__).parent / "cfg/models").rglob("*.yaml"))
    assert len(files) > 50
    for file in files:
        d = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert build_layers(d, 3, False, lambda *given: given) == (d, 3, False), file.name
        assert build_layers(d, 3, False, lambda *given: given)[0] is d


def test_a_head_that_cannot_be_imported_takes_no_stock_model_with_it(tmp_path):
    code = (
        "import sys, warnings; sys.modules.update({'tscode_yolo.head': None, 'tscode_yolo.blocks': None})\n"
        "warnings.simplefilter('ignore'); from ultralytics import YOLO\n"
        "YOLO('yolo11n.yaml').save('stock.pt'); print(type(YOLO('stock.pt').model.model[-1]).__name__)"
    )
    assert fresh_python(code, tmp_path, PYTHONPATH=str(REPO)).splitlines()[-1] == "Detect"


def test_a_checkpoint_is_rebuilt_as_it_was_whatever_the_defaults_are_by_then(monkeypatch):
    """The resolved options stand in the model's yaml, which the host's trainer rebuilds from."""
    model = tasks.DetectionModel(tiny(tscode={"recipe": "dw"}), verbose=False)
    before = {k: v.shape for k, v in model.state_dict().items()}
    assert model.yaml["tscode"] == model.model[-1].options
    fields = config.HeadConfig.__dataclass_fields__
    monkeypatch.setattr(config, "PRESETS", {"yolo": {"box_depth": 3, "cls_width": 64, "sce_kernel": 7}})
    assert {"box_depth", "cls_width", "sce_kernel"} <= set(fields)
    again = tasks.DetectionModel(copy.deepcopy(model.yaml), verbose=False)
    assert {k: v.shape for k, v in again.state_dict().items()} == before
    other = tasks.DetectionModel(tiny(tscode={"recipe": "dw"}), verbose=False)
    assert {k: v.shape for k, v in other.state_dict().items()} != before  # the change would have shown


@pytest.mark.parametrize("key", ["tscod", "TSCODE", "tscodes", "ts_code"])
def test_a_misspelt_key_for_the_options_is_refused(key):
    with pytest.raises(ValueError, match="the options of TSCODEDetect go under `tscode:`"):
        tasks.DetectionModel(tiny(**{key: {"sce": False}}), verbose=False)


def test_a_finer_map_that_leaves_two_levels_is_said_aloud():
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("ultralytics")
    logger.addHandler(handler)
    try:
        tasks.DetectionModel(tiny(head=[[[2, 3, 4], 1, "TSCODEDetect", ["nc", {"finer": True}]]]), verbose=False)
    finally:
        logger.removeHandler(handler)
    assert any("2 levels are left" in line for line in said)


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify", "semantic"])
def test_a_model_of_another_task_is_refused(task, tmp_path):
    if task == "semantic" and not hasattr(tasks, "SemanticSegmentationModel"):
        pytest.skip("this Ultralytics has no semantic segmentation")
    with pytest.raises(ValueError, match="has a TSCODEDetect head, which does task=detect"):
        YOLO("yolo11n-tscode.yaml", task=task)


def test_rtdetr_and_world_models_are_refused():
    for model in (tasks.RTDETRDetectionModel, tasks.WorldModel):
        with pytest.raises(ValueError, match=f"plain DetectionModel; asked for was a {model.__name__}"):
            model("yolo11n-tscode.yaml", verbose=False)


def test_unregistered_stays_unregistered(tmp_path):
    code = (
        "import tscode_yolo.register as r; r.unregister()\n"
        "import ultralytics.nn.tasks as t, ultralytics.data.utils as u\n"
        "off = hasattr(t.parse_model, '__wrapped__') or hasattr(u.check_file, '__wrapped__'); r.register()\n"
        "print(off, hasattr(t.parse_model, '__wrapped__') and hasattr(u.check_file, '__wrapped__'))"
    )
    assert fresh_python(code, tmp_path, PYTHONPATH=str(REPO)).splitlines()[-1] == "False True"


@pytest.mark.parametrize(
    ("asked", "scale"),
    [("tscode.yaml", ""), ("tscodes.yaml", "s"), ("tscode-x.yaml", "x"), ("yolo11m-tscode.yaml", "m")],
)
def test_yamls_are_found_by_bare_name_with_their_scale(asked, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = tasks.yaml_model_load(asked)
    assert d["scale"] == scale
    assert d["head"][-1][2] == "TSCODEDetect"


def test_the_users_own_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tscode.yaml").write_text("nc: 7\nbackbone: []\nhead: [[[1, 2], 1, TSCODEDetect, [nc]]]\n")
    assert tasks.yaml_model_load("tscode.yaml")["nc"] == 7
    assert tasks.yaml_model_load("tscoden.yaml")["nc"] == 7  # with its scale letter too


def test_the_hosts_arguments_may_be_given_by_position():
    assert checks.check_yaml("nobody.yaml", (".yaml",), False) == []
    assert tasks.check_yaml("nobody.yaml", (".yaml",), False) == []
    assert tasks.check_yaml("tscode.yaml", (".yaml",), False) == str(cfg_path("tscode.yaml"))
    assert data_utils.check_file("shapes.yaml", "", False, ".", False) == str(cfg_path("shapes.yaml"))


def test_names_of_nobody_stay_the_hosts_error_or_get_the_closest_of_ours():
    with pytest.raises(FileNotFoundError, match=r"^'nobody\.yaml' does not exist"):
        tasks.yaml_model_load("nobody.yaml")
    with pytest.raises(FileNotFoundError, match=r"of that name: yolo27-tscode\.yaml; did you mean yolo26-tscode\.yaml"):
        tasks.yaml_model_load("yolo27-tscode.yaml")
    with pytest.raises(
        FileNotFoundError, match=r"name: models/tscode\.yaml; .* go by their bare names, e\.g\. tscode\.yaml"
    ):
        tasks.yaml_model_load("models/tscode.yaml")
    with pytest.raises(FileNotFoundError, match=r"of that name(: yolo11nn-.*)?; did you mean yolo11n-tscode\.yaml\?$"):
        tasks.yaml_model_load("yolo11nn-tscode.yaml")
    with pytest.raises(FileNotFoundError, match=r"zzzzzzzzzzzzzz\.yaml; valid, .*yolo12-tscode\.yaml"):
        tasks.yaml_model_load("tscode-zzzzzzzzzzzzzz.yaml")
    with pytest.raises(ValueError, match=r"describes a data set, not a model: data=shapes\.yaml"):
        tasks.yaml_model_load("shapes.yaml")
    assert tasks.yaml_model_load("yolo11s.yaml")["scale"] == "s"


@pytest.mark.parametrize("end2end", [True, False])
def test_augment_really_augments(end2end):
    """Three views give more anchor points than one, and the flipped view is flipped back."""
    model = tasks.DetectionModel(tiny(end2end=end2end), verbose=False).eval()
    if end2end and type(model.model[-1]).end2end.fset is None:
        pytest.skip("this Ultralytics always takes the one-to-one branch, which the host does not augment")
    x = torch.rand(1, 3, 160, 160)
    plain, augmented = model(x)[0], model(x, augment=True)[0]
    assert augmented.shape[-1] > 1.5 * plain.shape[-1]
    n = plain.shape[-1] - (plain.shape[-1] // 21)  # the host drops the coarsest level of the full-size view
    torch.testing.assert_close(augmented[..., :n], plain[..., :n])


def test_distillation_compares_the_predicted_levels():
    distill = pytest.importorskip("ultralytics.nn.distill_model", reason="this Ultralytics has no distillation")
    ours = tasks.DetectionModel(tiny(), verbose=False)
    stock = tasks.DetectionModel(tiny(head=[[[2, 3, 4], 1, "Detect", ["nc"]]]), verbose=False)
    assert distill.DistillationModel.get_distill_layers(ours) == [2, 3, 4, 5]
    assert distill.DistillationModel.get_distill_layers(stock) == [2, 3, 4, 5]


def test_an_unsupported_host_gets_one_warning_and_no_patch(unplugged, monkeypatch):
    monkeypatch.setattr(ultralytics, "__version__", "8.3.100")
    monkeypatch.setattr(register, "_warned", set())
    with pytest.warns(RuntimeWarning, match=r"supports ultralytics >= 8\.4\.0, < 9\.0\.0; installed is 8\.3\.100"):
        register.register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register.register()
    assert not any(register.live().values())


PROBE = "from ultralytics.nn import tasks; print(hasattr(tasks.parse_model, '__wrapped__'))"


@pytest.mark.parametrize("order", ["import tscode_yolo; ", "import ultralytics.nn.tasks, tscode_yolo; "])
def test_importing_us_before_or_after_the_host_plugs_in(order, tmp_path):
    assert fresh_python(order + PROBE, tmp_path, PYTHONPATH=str(REPO)).splitlines()[-1] == "True"


def test_importing_our_modules_first_plugs_in(tmp_path):
    code = "import tscode_yolo.head; " + PROBE
    assert fresh_python(code, tmp_path, PYTHONPATH=str(REPO)).splitlines()[-1] == "True"


def test_autoload_can_be_switched_off(tmp_path):
    code = "import tscode_yolo; " + PROBE
    path = str(REPO)
    assert fresh_python(code, tmp_path, PYTHONPATH=path, TSCODE_YOLO_AUTOLOAD="0").splitlines()[-1] == "False"


def test_a_failure_of_ours_warns_and_leaves_the_host_working(tmp_path):
    code = (
        "import sys, warnings; import tscode_yolo; sys.modules['tscode_yolo.register'] = None\n"
        "with warnings.catch_warnings(record=True) as w:\n"
        "    warnings.simplefilter('always'); from ultralytics.nn import tasks\n"
        "print(any('could not plug itself' in str(x.message) for x in w), tasks.DetectionModel.__name__)"
    )
    path = str(REPO)
    assert fresh_python(code, tmp_path, PYTHONPATH=path).splitlines()[-1] == "True DetectionModel"


def test_the_import_at_interpreter_start_loads_nothing_else(tmp_path):
    code = "import os, sys; before = set(sys.modules); import tscode_yolo; print(sorted(set(sys.modules) - before))"
    out = run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=str(REPO)).stdout  # -S: no .pth imported it
    assert out.strip() == "['tscode_yolo']"


def test_a_stock_checkpoint_is_loaded_without_our_modules(tmp_path):
    torch.save({"model": tasks.DetectionModel("yolo11n.yaml", verbose=False)}, tmp_path / "stock.pt")
    code = (
        "import tscode_yolo, sys, torch; from ultralytics import YOLO; from ultralytics.nn import tasks\n"
        "allowed = set(torch.serialization.get_safe_globals())\n"
        "YOLO('stock.pt')\n"
        "print(hasattr(tasks.torch_safe_load, '__wrapped__'),\n"
        "      set(torch.serialization.get_safe_globals()) - allowed,\n"
        "      [m for m in ('head', 'context', 'fpn', 'recipes.contract') if f'tscode_yolo.{m}' in sys.modules])"
    )
    assert fresh_python(code, tmp_path, PYTHONPATH=str(REPO)).splitlines()[-1] == "True set() []"
