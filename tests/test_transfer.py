from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from test_register import tiny
from torch.testing import assert_close
from ultralytics.nn.tasks import DetectionModel

STOCK = [[[2, 3, 4], 1, "Detect", ["nc"]]]
ALL_LEVELS = {"sce_at": None, "dpe_at": None}


def build(names: list[str] | None = None, **changes) -> DetectionModel:
    """A tiny model with values nobody else has."""
    model = DetectionModel(tiny(nc=len(names) if names else 3, **changes), verbose=False)
    if names:
        model.names = dict(enumerate(names))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return model


def batch_of(model: DetectionModel) -> dict[str, torch.Tensor]:
    """Two images with one object each, as the host's trainer gives them to a model."""
    from ultralytics.cfg import get_cfg

    model.args = get_cfg()
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.6, 0.3, 0.2]])
    return {
        **{"img": torch.rand(2, 3, 96, 96), "batch_idx": torch.arange(2.0), "cls": torch.tensor([[0.0], [1.0]])},
        "bboxes": boxes,
    }


def unchanged(before: dict[str, torch.Tensor], model: DetectionModel, prefix: str) -> bool:
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k.startswith(prefix))


def test_backbone_and_neck_of_a_stock_model_move_completely():
    model, stock = build(), build(head=STOCK)
    account = model.load(stock, verbose=False)
    assert account.body == (len([k for k in model.state_dict() if not k.startswith("model.5.")]),) * 2
    assert account.left == []
    for k, v in stock.state_dict().items():
        if not k.startswith("model.5."):
            assert_close(model.state_dict()[k], v, rtol=0, atol=0)


def test_a_branch_without_context_takes_the_stock_branch_and_the_other_stays_as_it_was():
    model, stock = build(tscode={"dpe": False}), build(head=STOCK)
    before = copy.deepcopy(model.state_dict())
    account = model.load(stock, verbose=False)
    assert {account.head[f"cv2.{i}"] for i in range(3)} == {"moved"}
    assert all(account.head[f"cv3.{i}"].startswith("re-initialised") for i in range(3))
    assert account.head["sce"] == "re-initialised (not in the source)"
    assert unchanged(before, model, "model.5.cv3")
    assert unchanged(before, model, "model.5.sce")
    for k, v in stock.state_dict().items():
        if k.startswith("model.5.cv2"):
            assert_close(model.state_dict()[k], v, rtol=0, atol=0)


def test_the_hosts_swap_of_another_heads_branch_cannot_happen():
    """The host would put the stock cv3, of other input channels, into ours: the next forward raised."""
    model = build(tscode={"dpe": False})
    kinds = [type(m) for m in model.model[-1].cv3.modules()]
    model.load(build(["a", "b"], head=STOCK), verbose=False)
    assert [type(m) for m in model.model[-1].cv3.modules()] == kinds
    assert torch.isfinite(model.eval()(torch.rand(1, 3, 96, 96))[0]).all()


def test_loading_our_weights_into_a_stock_model_leaves_it_working():
    stock = build(head=STOCK)
    account = stock.load(build(["a", "b"]), verbose=False)
    assert account.body[0] == account.body[1]
    assert torch.isfinite(stock.eval()(torch.rand(1, 3, 96, 96))[0]).all()


def test_our_own_checkpoint_moves_completely_with_its_names():
    model, source = DetectionModel(tiny(), verbose=False), build(["cat", "dog", "owl"])
    account = model.load(source, verbose=False)
    assert set(account.head.values()) == {"moved"}
    assert model.names == {0: "cat", 1: "dog", 2: "owl"}
    for k, v in source.state_dict().items():
        assert_close(model.state_dict()[k], v, rtol=0, atol=0)


@pytest.mark.parametrize("end2end", [True, False])
def test_classes_move_by_name_in_all_four_quadrants(end2end):
    source = build(["cat", "dog", "owl"], end2end=end2end, tscode=ALL_LEVELS)
    model = build([" Owl", "fox", "cat"], end2end=end2end, tscode=ALL_LEVELS)
    before = copy.deepcopy(model.state_dict())
    account = model.load(source, verbose=False)
    assert account.head["cv3.0"] == "moved, 2 of 3 classes matched by name"
    convs, sources = model.model[-1].class_convs(), source.model[-1].class_convs()
    assert len(convs) == (9 if end2end else 6)
    for name, conv in convs.items():
        for attribute in ("weight", "bias") if conv.bias is not None else ("weight",):
            ours = getattr(conv, attribute).data.unflatten(0, (3, -1))
            theirs = getattr(sources[name], attribute).data.unflatten(0, (3, -1))
            assert ours.shape[1] == (4 if name.startswith("cv3") else 1)
            assert_close(ours[0], theirs[2], rtol=0, atol=0)  # owl
            assert_close(ours[2], theirs[0], rtol=0, atol=0)  # cat
            assert_close(ours[1], before[f"model.5.{name}.{attribute}"].unflatten(0, (3, -1))[1], rtol=0, atol=0)  # fox


def test_scores_of_a_class_stay_the_same_when_classes_change_places():
    source = build(["cat", "dog", "owl"])
    model = build(["owl", "cat", "dog"])
    model.load(source, verbose=False)
    x = torch.rand(1, 3, 96, 160)
    a, b = source.eval()(x)[0], model.eval()(x)[0]
    assert_close(b[:, [4, 5, 6]], a[:, [6, 4, 5]])


@pytest.mark.parametrize("end2end", [True, False])
def test_own_data_keep_the_hidden_layers_of_a_stock_class_branch(end2end):
    """The stock branch is max(P3's channels, classes) wide: 40 with 40 classes, 24 with 3. The host takes the 40."""
    source = build([f"c{i}" for i in range(40)], head=STOCK, end2end=end2end)
    model = build(["unicorn", "c7", "c31"], tscode={"sce": False}, end2end=end2end)
    model.model[-1].bias_init()
    head, given = model.model[-1], source.model[-1]
    prior = [t[-1].bias[0].item() for t in head.cv3]
    assert (head.cv3[0][-1].in_channels, given.cv3[0][-1].in_channels) == (24, 40)
    account = model.load(source, verbose=False)
    for name in ("cv3", "one2one_cv3") if end2end else ("cv3",):
        for i, tower in enumerate(getattr(given, name)):
            own = getattr(head, name)[i]
            assert account.head[f"{name}.{i}"] == "moved, 2 of 3 classes matched by name"
            hidden = {k: v for k, v in tower.state_dict().items() if not k.startswith("2.")}
            assert hidden
            assert all(torch.equal(own.state_dict()[k], v) for k, v in hidden.items())
            assert torch.equal(own[-1].weight[1], tower[-1].weight[7])
            assert own[-1].bias[0].item() == prior[i]  # unicorn's
            assert all(p.requires_grad for p in own.parameters())
            assert all(p is not q for p, q in zip(own.parameters(), tower.parameters()))
    loss, _ = model.train()(batch_of(model))
    loss.sum().backward()
    assert torch.isfinite(model.eval()(torch.rand(1, 3, 96, 96))[0]).all()


def test_towers_of_another_scale_or_kind_do_not_move_in():
    legacy = build([f"c{i}" for i in range(40)], head=STOCK)
    legacy.model[-1].cv3 = torch.nn.ModuleList(torch.nn.Sequential(*t[:1], t[-1]) for t in legacy.model[-1].cv3)
    wide = tiny(nc=40, head=STOCK, backbone=[[-1, 1, "Conv", [c, 3, 2]] for c in (8, 16, 32, 48, 64)])
    for source in (legacy, DetectionModel(wide, verbose=False)):
        model = build(["a", "b"], tscode={"sce": False})
        before = copy.deepcopy(model.state_dict())
        account = model.load(source, verbose=False)
        assert account.head["cv3.1"].startswith("re-initialised")
        assert unchanged(before, model, "model.5.cv3")


def family(name: str, names: list[str], **options) -> DetectionModel:
    """A model of a shipped YAML, nano, with values nobody else has."""
    from tscode_yolo.verbs.loading import with_options

    model = DetectionModel(with_options(name, options) if options else name, nc=len(names), verbose=False)
    model.names = dict(enumerate(names))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(b, std=0.1)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(b, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def coco() -> DetectionModel:
    """A stock YOLO11n of 80 classes, whose class towers are 80 wide; with three they are 64."""
    return family("yolo11n.yaml", [f"c{i}" for i in range(80)])


def scores(model: DetectionModel, x: torch.Tensor) -> torch.Tensor:
    """Class logits (B, nc, A) in evaluation."""
    with torch.inference_mode():
        return model.eval()(x)[1]["scores"]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_full_size_tower_is_the_stock_heads_and_sce_starts_as_nothing_added(coco, depth):
    model = family("yolo11n-tscode.yaml", list(coco.names.values()), cls_depth=depth)
    for estimate in model.model[-1].lqe:  # as at the start
        torch.nn.init.zeros_(estimate.weight)
    before = copy.deepcopy(coco.state_dict())
    account = model.load(coco, verbose=False)
    assert unchanged(before, coco, "")
    assert account.head["cls_skip.0"] == "moved from cv3.0"
    assert account.head["cv3.0"] == "re-initialised (starts as nothing added to cls_skip.0, but for its bias)"
    assert account.head["sce"] == "re-initialised (not in the source)"
    others = "moved" if depth == 2 else "re-initialised (built differently in the source)"
    assert account.head["cv3.1"] == account.head["cv3.2"] == others
    x = torch.rand(1, 3, 64, 96)
    ours, theirs = scores(model, x), scores(coco, x)
    points = 8 * 12 if depth == 1 else ours.shape[-1]  # P3's, or all
    assert_close(ours[..., :points], theirs[..., :points])
    assert ours.shape == theirs.shape
    assert depth == 2 or (ours - theirs)[..., points:].abs().max() > 0.01


def test_own_data_keep_the_hidden_layers_of_the_full_size_tower_and_the_rows_of_known_classes(coco):
    model = family("yolo11n-tscode.yaml", ["unicorn", "c7", "c31"])
    model.model[-1].bias_init()
    head, given = model.model[-1], coco.model[-1]
    prior = head.cv3[0][-1].bias[0].item()
    assert head.cls_skip[0][-1].in_channels == 64
    account = model.load(coco, verbose=False)
    assert account.head["cls_skip.0"] == "moved from cv3.0, 2 of 3 classes matched by name"
    tower, theirs = head.cls_skip[0], given.cv3[0]
    hidden = {k: v for k, v in theirs.state_dict().items() if not k.startswith("2.")}
    assert all(torch.equal(tower.state_dict()[k], v) for k, v in hidden.items())
    assert torch.equal(tower[-1].weight[1:], theirs[-1].weight[[7, 31]])
    assert tower[-1].bias is None
    assert not head.cv3[0][-1].weight.any()
    rows = head.cv3[0][-1].bias.unflatten(0, (3, 4))  # of each class in its four places
    assert_close(rows[1:], theirs[-1].bias[[7, 31], None].expand(2, 4), rtol=0, atol=0)
    assert rows[0].tolist() == [prior] * 4
    loss, _ = model.train()(batch_of(model))
    loss.sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


def test_a_full_size_tower_as_wide_as_cocos_moves_into_another_of_our_models(coco):
    wide, model = (family("yolo11n-tscode.yaml", ["a", "b"], cls_depth=2) for _ in range(2))
    wide.load(coco, verbose=False)
    for p in wide.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert wide.model[-1].cls_skip[0][-1].in_channels == 80
    assert set(model.load(wide, verbose=False).head.values()) == {"moved"}
    x = torch.rand(1, 3, 64, 64)
    assert_close(scores(model, x), scores(wide, x), rtol=0, atol=0)


def test_a_stock_model_takes_all_class_towers_of_another_width_or_none(coco):
    """The host takes the width of the first for that of all: it could not build another again."""
    ours, stock = family("yolo11n-tscode.yaml", ["a", "b"], cls_depth=2), family("yolo11n.yaml", ["a", "b"])
    ours.load(coco, verbose=False)
    account = stock.load(ours, verbose=False)
    assert [t[-1].in_channels for t in stock.model[-1].cv3] == [64, 64, 64]
    assert account.head["cv3.1"] == "re-initialised (other channels in the source)"
    assert not [m for m in stock.modules() if type(m).__module__.startswith("tscode_yolo")]


def test_a_tower_whose_partners_differ_stays_as_it_was_its_width_too(coco):
    wide = family("yolo11n-tscode.yaml", ["a", "b"], cls_depth=2)
    wide.load(coco, verbose=False)
    model = family("yolo11n-tscode.yaml", ["a", "b"], cls_depth=2, sce_kernel=5)
    before = copy.deepcopy(model.state_dict())
    account = model.load(wide, verbose=False)
    assert account.head["cls_skip.0"] == "re-initialised (with the rest of its branch)"
    assert account.head["cv3.1"] == "moved"
    assert unchanged(before, model, "model.23.cls_skip")
    assert unchanged(before, model, "model.23.cv3.0")


def test_a_quality_estimate_moves_with_the_stock_tower_it_was_added_to():
    names = ["a", "b"]
    source = family("yolo11n-tscode.yaml", names, sce=False, lqe=True)
    model = family("yolo11n-tscode.yaml", names, cls_depth=2)
    account = model.load(source, verbose=False)
    assert {account.head[f"lqe.{i}"] for i in range(3)} == {"moved"}
    x = torch.rand(1, 3, 64, 64)
    assert_close(scores(model, x), scores(source, x))


def test_groups_are_normalised_in_the_width_of_the_source():
    def custom(channels: int) -> DetectionModel:
        """Another P3 in front of the same towers."""
        backbone = [[-1, 1, "Conv", [c, 3, 2]] for c in (8, 16, channels, 32, 40)]
        model = DetectionModel(tiny(nc=3, backbone=backbone, tscode={"norm": "gn", **ALL_LEVELS}), verbose=False)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        return model

    model = custom(24)
    model.load(custom(32), verbose=False)
    assert torch.isfinite(model.eval()(torch.rand(1, 3, 96, 96))[0]).all()


def test_loading_twice_finds_the_classes_by_name(coco):
    """YOLO(yaml).load(weights).train(data=...) loads the weights into a model of the YAML, and that into the data's."""
    first, model = DetectionModel("yolo11n-tscode.yaml", verbose=False), family("yolo11n-tscode.yaml", ["c31", "x"])
    first.load(coco, verbose=False)
    assert first.names == coco.names
    assert model.load(first, verbose=False).head["cls_skip.0"] == "moved, 1 of 2 classes matched by name"
    assert torch.equal(model.model[-1].cls_skip[0][-1].weight[0], coco.model[-1].cv3[0][-1].weight[31])


def test_a_dense_full_size_tower_is_yolov8s():
    names = ["a", "b", "c"]
    source = family("yolov8n.yaml", names)
    model = family("yolov8n-tscode.yaml", names, cls_conv="dense", cls_depth=2, lqe=False)
    account = model.load(source, verbose=False)
    assert account.head["cls_skip.0"] == "moved from cv3.0"
    assert account.head["cv3.1"] == account.head["cv3.2"] == "moved"
    x = torch.rand(1, 3, 64, 64)
    assert_close(scores(model, x), scores(source, x))


@pytest.mark.parametrize("options", [{"act": "relu"}, {"cls_kernel": 5}, {"sce_skip": "light"}, {"norm": "gn"}])
def test_a_tower_that_is_not_built_as_the_stock_heads_stays_fresh(coco, options):
    model = family("yolo11n-tscode.yaml", ["a", "b"], cls_depth=2, **options)
    before = copy.deepcopy(model.state_dict())
    account = model.load(coco, verbose=False)
    assert account.head["cls_skip.0"] == "re-initialised (built differently in the source)"
    assert account.head["cv3.0"].startswith("re-initialised")
    assert unchanged(before, model, "model.23.cls_skip")
    assert unchanged(before, model, "model.23.cv3.0")


def test_a_width_that_was_asked_for_is_kept(coco):
    model = family("yolo11n-tscode.yaml", ["a", "b"], cls_depth=2, cls_width=48)
    account = model.load(coco, verbose=False)
    assert account.head["cv3.1"] == "re-initialised (other channels in the source)"
    assert model.model[-1].cv3[1][-1].in_channels == 48
    assert account.head["cls_skip.0"].startswith("moved from cv3.0")


def test_each_branch_of_an_end_to_end_head_takes_its_own_towers():
    names = ["a", "b", "c"]
    source = family("yolo26n.yaml", names)
    model = family("yolo26n-tscode.yaml", names, sce=True, one2one_sce=True, lqe=False, cls_depth=2)
    account = model.load(source, verbose=False)
    for prefix in ("", "one2one_"):
        assert account.head[f"{prefix}cls_skip.0"] == f"moved from {prefix}cv3.0"
        assert account.head[f"{prefix}cv3.2"] == "moved"
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = model.eval()(x)[1], source.eval()(x)[1]
    for branch in ("one2many", "one2one"):
        assert_close(ours[branch]["scores"], theirs[branch]["scores"])


def test_fewer_classes_keep_the_whole_class_branch():
    """From COCO to own data: only the rows of new classes start afresh."""
    source = build([f"c{i}" for i in range(40)])
    model = build(["unicorn", "c7", "c31"])
    account = model.load(source, verbose=False)
    assert {account.head[u] for u in ("cv3.0", "cv3.1", "cv3.2", "cls_skip.0")} == {
        "moved, 2 of 3 classes matched by name"
    }
    assert account.head["sce"] == "moved"


def test_logits_that_are_added_up_move_together_or_not_at_all():
    source, model = build(tscode=ALL_LEVELS), build(tscode={**ALL_LEVELS, "cls_width": 64})
    before = copy.deepcopy(model.state_dict())
    account = model.load(source, verbose=False)
    assert account.head["cv3.0"] == "re-initialised (other channels in the source)"
    assert account.head["sce"] == account.head["cls_skip.1"] == "re-initialised (with the rest of its branch)"
    assert unchanged(before, model, "model.5.cls_skip")
    assert account.head["cv2.0"] == "moved"


def test_levels_without_sce_are_no_part_of_the_sum_and_move_by_themselves():
    options = {"sce_at": [0], "dpe_at": [0]}
    source, model = build(tscode=options), build(tscode={**options, "sce_width": 48})
    account = model.load(source, verbose=False)
    assert account.head["cv3.0"].startswith("re-initialised")
    assert account.head["sce"].startswith("re-initialised")
    assert account.head["cls_skip.0"] == "re-initialised (with the rest of its branch)"
    assert {u for u, outcome in account.head.items() if outcome == "moved"} >= {"cv3.1", "cv3.2", "cv2.0", "dpe"}
    assert set(build(tscode=options).load(source, verbose=False).head.values()) == {"moved"}


@pytest.mark.parametrize("levels", [(ALL_LEVELS, {}), ({}, ALL_LEVELS)])
def test_a_quality_estimate_moves_with_the_towers_it_is_part_of(levels):
    given, own = levels
    source, model = build(tscode=given), build(tscode=own)
    before = copy.deepcopy(model.state_dict())
    account = model.load(source, verbose=False)
    outcomes = {u: o for u, o in account.head.items() if u.startswith(("cv2", "cv3", "lqe"))}
    assert outcomes["lqe.1"] == outcomes["lqe.2"] == "re-initialised (with what it reads and is added to)"
    assert outcomes["cv2.1"].startswith("re-initialised")
    assert unchanged(before, model, "model.5.lqe.1")
    assert set(build(tscode=given).load(source, verbose=False).head.values()) == {"moved"}


@pytest.mark.parametrize("end2end", [False, True])
def test_a_quality_branch_moves_with_the_towers_it_reads(end2end):
    own = {"recipe": "atss", "level_scale": True}
    source = build(tscode=own, end2end=end2end)
    account = build(tscode={**own, "box_depth": 2}, end2end=end2end).load(source, verbose=False)
    for prefix in ("", "one2one_") if end2end else ("",):
        for unit in ("quality", "box_scale"):
            assert account.head[prefix + unit] == "re-initialised (with the towers it reads or scales)"
    assert account.head["cv3.1"] == "moved"
    assert set(build(tscode=own, end2end=end2end).load(source, verbose=False).head.values()) == {"moved"}


def test_a_fused_model_takes_a_fused_ones_weights_with_the_small_kernels_of_dpe():
    fused, other = (build().eval().fuse(verbose=False) for _ in range(2))
    fused.load(other, verbose=False)
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert_close(fused(image)[0], other(image)[0], rtol=0, atol=0)


def test_other_classes_without_names_in_common_keep_their_prior():
    model, source = build(["x", "y"]), build(["cat", "dog", "owl"])
    before = copy.deepcopy(model.state_dict())
    account = model.load(source, verbose=False)
    assert account.head["cv3.1"] == "moved but its class rows (no class in common)"
    assert torch.equal(model.state_dict()["model.5.cv3.1.2.bias"], before["model.5.cv3.1.2.bias"])


def test_a_source_of_other_channels_moves_nothing_that_does_not_fit():
    wide = tiny(backbone=[[-1, 1, "Conv", [c, 3, 2]] for c in (8, 16, 24, 32, 48)])
    model, source = build(), DetectionModel(wide, verbose=False)
    account = model.load(source, verbose=False)
    assert any("model.4.conv.weight: [48, 32, 3, 3] there, [40, 32, 3, 3] here" in line for line in account.left)
    assert torch.isfinite(model.eval()(torch.rand(1, 3, 96, 96))[0]).all()


def test_the_account_is_printed(caplog):
    from ultralytics.utils import LOGGER

    model, stock = build(), build(head=STOCK)
    stock.pt_path = "stock.pt"
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, LOGGER.name):
        model.load(stock)
    LOGGER.removeHandler(caplog.handler)
    assert "Weights from stock.pt: backbone and neck 30/30 tensors (100 %)" in caplog.text
    assert "head  re-initialised (not in the source): dpe, sce, lqe.0" in caplog.text
    assert re.search(r"head  re-initialised \(.* in the source\): cv2\.0, cv2\.1, cv2\.2", caplog.text)


def test_own_data_on_official_weights_keep_what_the_stock_model_keeps(shared):
    """tscode.yaml has the stock classification: all of it but the rows of new classes comes from yolo26n."""
    from ultralytics import YOLO

    weights = YOLO(shared / "weights/yolo26n-restored.pt").model
    model = DetectionModel("tscode.yaml", nc=3, verbose=False)
    model.names = {0: "cell", 1: "Person", 2: "platelet"}
    account = model.load(weights, verbose=False)
    towers = {u: o for u, o in account.head.items() if "cv3" in u}
    assert len(towers) == 6
    assert set(towers.values()) == {"moved, 1 of 3 classes matched by name"}


@pytest.mark.parametrize("end2end", [True, False])
def test_the_stock_preset_starts_as_the_stock_model(end2end):
    source = build(["cat", "dog", "owl"], head=STOCK, end2end=end2end)
    model = DetectionModel(tiny(tscode={"preset": "stock"}, end2end=end2end), verbose=False)
    account = model.load(source, verbose=False)
    new = {u for u, outcome in account.head.items() if outcome != "moved"}
    assert new == ({"dpe", "one2one_dpe"} if end2end else {"dpe"})
    x = torch.rand(1, 3, 96, 160)
    assert_close(model.eval()(x)[0], source.eval()(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_the_stock_preset_says_what_official_weights_say(name, shared):
    from ultralytics import YOLO
    from ultralytics.nn.tasks import BaseModel

    if not hasattr(BaseModel, "_remap_cls_by_names"):
        pytest.skip("the weights were saved by a newer Ultralytics, whose models this one builds differently")
    weights = YOLO(shared / "weights" / f"{name}-restored.pt").model.float().eval()
    model = DetectionModel(f"{name}-tscode-stock.yaml", verbose=False)
    model.load(weights, verbose=False)
    x = torch.rand(1, 3, 96, 160)
    with torch.inference_mode():
        assert_close(model.eval()(x)[0], weights(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_official_weights_move_completely_into_their_family(name, shared):
    from ultralytics import YOLO

    weights = YOLO(shared / "weights" / f"{name}-restored.pt").model
    model = YOLO(f"{name}-tscode.yaml", verbose=False).model
    account = model.load(weights, verbose=False)
    assert account.left == []
    assert account.body[0] > 250


def test_a_first_conv_of_other_filters_stays_and_is_accounted_for():
    """The host would fill part of it with the source's filters."""
    from ultralytics import YOLO

    model, source = (YOLO(f"yolo11{scale}-tscode.yaml", verbose=False).model for scale in "sn")
    before = model.state_dict()["model.0.conv.weight"].clone()
    account = model.load(source, verbose=False)
    assert torch.equal(model.state_dict()["model.0.conv.weight"], before)
    assert any(line.startswith("model.0.conv.weight: [16, 3, 3, 3] there, [32, 3, 3, 3] here") for line in account.left)


def test_a_checkpoint_of_before_levels_could_be_chosen_is_rebuilt_as_it_was(tmp_path):
    """To train on from it, or to resume, the host builds the model anew from the YAML in the checkpoint."""
    from ultralytics import YOLO

    old = build(tscode=ALL_LEVELS)
    old.args = {}
    head = old.model[-1]
    for name in ALL_LEVELS:
        del old.yaml["tscode"][name], head.options[name]
    del head.sce.at, head.dpe.at
    torch.save({"model": old, "ema": None, "train_args": {}}, tmp_path / "old.pt")
    again = YOLO(tmp_path / "old.pt").model
    rebuilt = DetectionModel(again.yaml, nc=3, verbose=False)
    assert rebuilt.model[-1].sce.at == rebuilt.model[-1].dpe.at == (0, 1, 2)
    assert set(rebuilt.load(again, verbose=False).head.values()) == {"moved"}
