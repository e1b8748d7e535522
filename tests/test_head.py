from __future__ import annotations

import copy
import io
import math
import pickle
from itertools import product

import pytest
import torch
from conftest import CHANNELS, wake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from tscode_yolo.config import SCHEMA
from tscode_yolo.head import SUM_FIRST, TSCODEDetect

VARIANTS = {
    "default": {},
    "without C2": {"finer": False},
    "paper": {
        "preset": "paper",
        "sce_width": 64,  # more than GroupNorm's 32 groups, which cannot normalise one value each (a 1x1 map)
        "dpe_width": 64,
        "cls_width": 64,
        "box_width": 64,
        "box_depth": 3,
    },
    "stock": {"preset": "stock"},
    "sce alone": {"dpe": False},
    "dpe alone": {"sce": False},
    "native widths": {"sce_width": None, "dpe_width": None, "sce_skip": "none"},
    "light path": {"sce_skip": "light", "cls_depth": 2},
    "dense full-size tower": {"sce_skip": "dense"},
    "shared down-sampling": {"share_down": True},
    "pooled, no coarser": {"sce_down": "max", "sce_coarser": False},
    "tower bias": {"tower_bias": True},
    "four levels": {"dpe_levels": [-1, 0, 1, 2]},
    "bilinear": {"dpe_up": "bilinear"},
    "quality": {"quality": "iou", "score": "sqrt_pq"},
    "quality estimate and scale": {"lqe": True, "level_scale": True, "pred_kernel": 3},
    "all levels": {"sce_at": None, "dpe_at": None},
    "SCE above, DPE below": {"sce_at": [1, 2], "dpe_at": [0, 1], "sce_skip": "none"},
}


ALL_LEVELS = {"sce_at": None, "dpe_at": None}


def anchors(height: int, width: int) -> int:
    return sum((height // s) * (width // s) for s in (8, 16, 32))


def select(head: Detect, end2end: bool) -> None:
    """Choose the branch for inference; hosts before 8.4.100 or so always take the one-to-one branch if it is there."""
    if type(head).end2end.fset is not None:
        head.end2end = end2end
    elif head.end2end is not end2end:
        pytest.skip("this Ultralytics cannot choose the branch")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("end2end", [True, False])
def test_both_off_is_the_stock_head(make_head, pyramid, legacy, end2end):
    ours = make_head(sce=False, dpe=False, box_prior=math.inf, legacy=legacy, end2end=end2end)
    Detect.legacy = legacy
    stock = Detect(5, 4, end2end, CHANNELS[1:])
    stock.stride = ours.stride
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    stock.bias_init()
    for (name, a), (_, b) in zip(ours.named_parameters(), stock.named_parameters()):
        if name.endswith("2.bias"):
            assert_close(a, b)  # the same priors
    stock.load_state_dict(ours.state_dict())
    x = pyramid()
    assert_close(ours.train()(list(x)), stock.train()(x[1:]), rtol=0, atol=0)
    assert_close(ours.eval()(list(x))[0], stock.eval()(x[1:])[0], rtol=0, atol=0)


@pytest.mark.parametrize("end2end", [True, False])
def test_a_level_without_a_context_reads_the_plain_level(make_head, pyramid, end2end):
    """Its towers on P_l are all there is; the level with contexts says something else."""
    head = make_head(sce_at=[0], dpe_at=[0], lqe=False, one2one_sce=True, end2end=end2end)
    wake(head)
    x = pyramid()
    for prefix in ("", "one2one_") if end2end else ("",):
        said = head.forward_head(list(x), **(head.one2one if prefix else head.one2many))
        for task, name in (("boxes", "cv2"), ("scores", "cv3")):
            _, *towers = getattr(head, prefix + name)
            plain = torch.cat([tower(p).flatten(2) for tower, p in zip(towers, x[2:])], -1)
            finest, coarser = said[task].split([said[task].shape[-1] - plain.shape[-1], plain.shape[-1]], -1)
            assert_close(coarser, plain, rtol=0, atol=0)
            assert finest.shape[-1] == x[1][0, 0].numel()
    for t in (said["boxes"], said["scores"]):
        assert torch.isfinite(t).all()
    one = (
        head.forward_head([x[0] + 1, *x[1:]], **head.one2many)["boxes"] - head.forward_head(x, **head.one2many)["boxes"]
    )
    assert one[..., : finest.shape[-1]].any()
    assert not one[..., finest.shape[-1] :].any()  # C2 is for the finest level


@pytest.mark.parametrize(("prior", "expected"), [(None, 2.0), (3.5, 3.5), (math.inf, 7.5)])
def test_boxes_start_at_the_distance_asked_for(make_head, prior, expected):
    """The mean of the DFL bins, in strides, that the predictor's bias alone gives; 16 bins cut a little off."""
    head = make_head(reg_max=16, box_prior=prior)
    for tower in head.cv2:
        bins = tower[-1].bias.reshape(4, 16).softmax(-1)
        assert_close(bins @ torch.arange(16.0), torch.full((4,), expected), rtol=0.1, atol=0)
    assert make_head(reg_max=1, box_prior=prior).cv2[0][-1].bias.tolist() == [2.0 if prior != 3.5 else 3.5] * 4


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("end2end", [True, False])
def test_contexts_start_as_nothing_added(make_head, pyramid, end2end, shared):
    """DPE's sum starts as P_l (projected where its width differs), SCE's logits as the full-size path's alone."""
    head = make_head(
        end2end=end2end, dpe_width=24, share_down=shared, sce_at=None, dpe_at=None
    ).eval()  # the width of P3
    c2, *levels = pyramid()
    plain = [same(p) for same, p in zip(head.dpe.same, levels)]
    assert_close(head.dpe(levels, c2), plain, rtol=0, atol=0)
    assert_close(plain[0], levels[0], rtol=0, atol=0)
    skips = torch.cat([s(p).flatten(2) for s, p in zip(head.cls_skip, levels)], -1)
    bias = torch.cat([t[-1].bias[:5].view(1, 5, 1).expand(1, 5, p[0, 0].numel()) for t, p in zip(head.cv3, levels)], -1)
    assert_close(head.forward_head([c2, *levels], **head.one2many)["scores"], skips + bias)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("end2end", [True, False])
def test_outputs_follow_the_hosts_contract(make_head, pyramid, options, end2end):
    head, x = make_head(end2end=end2end, **options), pyramid(finer=options.get("finer", True))
    preds = head.train()(list(x))
    if end2end:
        assert set(preds) == {"one2many", "one2one"}
    for branch in preds.values() if end2end else [preds]:
        assert {"boxes", "scores", "feats"} <= set(branch)
        assert branch["boxes"].shape == (2, 16, anchors(96, 160))
        assert branch["scores"].shape == (2, 5, anchors(96, 160))
        assert [f.shape[1] for f in branch["feats"]] == list(CHANNELS[1:])  # the predicted levels, not C2
        assert ("quality" in branch) == ("quality" in options)
    select(head, end2end)
    decoded = head.eval()(list(x))[0]
    assert decoded.shape == ((2, 300, 6) if end2end else (2, 9, anchors(96, 160)))
    scores = decoded[..., 4] if end2end else decoded[:, 4:]
    assert scores.min() >= 0
    assert scores.max() <= 1


@torch.no_grad()
def check_size(head: TSCODEDetect, x: list[torch.Tensor]) -> None:
    """The shapes are right and the values finite, for one size of the inputs."""
    out, raw = head(list(x))
    a = sum(p.shape[2] * p.shape[3] for p in x[-3:])
    for preds in (raw["one2many"], raw["one2one"]) if "one2many" in raw else [raw]:
        assert preds["scores"].shape == (len(x[0]), 2, a)
        assert preds["boxes"].shape == (len(x[0]), 4, a)
    assert torch.isfinite(out).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    batch=st.integers(1, 2),
    name=st.sampled_from(list(VARIANTS)),
    end2end=st.booleans(),
)
def test_any_size_the_host_can_produce_works(make_head, pyramid, h, w, batch, name, end2end):
    options = VARIANTS[name]
    head = make_head(nc=2, reg_max=1, end2end=end2end, **options).eval()
    check_size(head, pyramid(32 * h, 32 * w, batch, finer=options.get("finer", True)))


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_height_and_width_from_32_to_640_works(make_head, pyramid, options):
    """Every side against an odd, an even, the smallest and the largest other: the parity of P5 is what matters."""
    head = make_head(nc=2, reg_max=1, **options).eval()
    others = (1, 2, 13, 20)
    for h, w in {*product(range(1, 21), others), *product(others, range(1, 21))}:
        check_size(head, pyramid(32 * h, 32 * w, 1, finer=options.get("finer", True)))


def test_all_four_quadrants_get_the_class_prior(make_head):
    head = make_head(end2end=True, sce_at=None)
    for towers, places in ((head.cv3, 4), (head.one2one_cv3, 1)):
        for tower, stride in zip(towers, (8, 16, 32)):
            expected = math.log(5 / 5 / (640 / stride) ** 2)
            assert_close(tower[-1].bias.data, torch.full((places * 5,), expected))
    assert all(torch.equal(a[-1].bias, b[-1].bias) for a, b in zip(head.cv2, head.one2one_cv2))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_two_branches_of_an_end_to_end_head_have_no_weight_in_common(make_head, options):
    head = make_head(end2end=True, **options)
    assert len(list(head.parameters())) == len(head.state_dict(keep_vars=True)) - len(list(head.buffers()))
    assert len({p.data_ptr() for p in head.parameters()}) == len(list(head.parameters()))


@pytest.mark.parametrize("one2one_sce", [True, False])
def test_one2one_branches_train_without_the_body(make_head, pyramid, one2one_sce):
    head, x = make_head(end2end=True, one2one_sce=one2one_sce), pyramid()
    for t in x:
        t.requires_grad_()
    preds = head.train()(list(x))
    assert_close(preds["one2one"]["boxes"], preds["one2many"]["boxes"])  # twins start equal
    assert torch.equal(preds["one2one"]["scores"], preds["one2many"]["scores"]) == one2one_sce
    preds["one2one"]["scores"].sum().backward()
    assert all(t.grad is None for t in x)
    touched = {n.split(".")[0] for n, p in head.named_parameters() if p.grad is not None}
    classification = {"one2one_cv3", "one2one_lqe"} | ({"one2one_sce", "one2one_cls_skip"} if one2one_sce else set())
    assert touched == classification | {"one2one_dpe", "one2one_cv2"}  # the last two through lqe


def test_one2one_classification_without_sce_is_the_stock_heads(make_head, pyramid):
    head, x = make_head(end2end=True).eval(), pyramid()
    stock = Detect(5, 4, True, CHANNELS[1:]).eval()
    stock.one2one_cv3.load_state_dict(head.one2one_cv3.state_dict())
    ours = head.forward_head(list(x), **{**head.one2one, "lqe": None})["scores"]
    assert_close(ours, stock.forward_head(list(x[1:]), **stock.one2one)["scores"])


def test_one2one_classification_without_sce_keeps_the_other_options(make_head):
    head = make_head(end2end=True, dpe_neck=True, dpe_width=24, dpe_at=None)
    assert [tower[0][0].conv.in_channels for tower in head.one2one_cv3] == [24] * 3


@pytest.mark.parametrize("end2end", [None, True, False])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_fuse_changes_no_output_and_drops_the_other_branch(make_head, pyramid, options, end2end):
    from ultralytics.nn.tasks import BaseModel

    head = make_head(end2end=end2end is not None, **options)
    if end2end is not None:
        select(head, end2end)
    wake(head).eval()
    x = pyramid(finer=options.get("finer", True))

    def raw() -> list[torch.Tensor]:
        """The output; of the end-to-end one, whose order ties may change, what it is made from."""
        out, preds = head(list(x))
        return [preds["one2one"]["boxes"], preds["one2one"]["scores"]] if end2end else [out]

    before = raw()
    parameters = sum(p.numel() for p in head.parameters())
    model = BaseModel()
    model.model = torch.nn.Sequential(head)
    model.fuse(verbose=False)
    assert_close(raw(), before, rtol=1e-4, atol=1e-4)
    if type(head).end2end.fset is None:  # older hosts call our fuse for end-to-end heads only, and count any norm
        return
    assert model.is_fused()
    if options.get("preset") != "paper":
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in head.modules())
    if not options.get("level_scale"):
        assert not any("lqe" in name for name, _ in head.named_parameters())  # a row of the box predictor now
    if end2end is not None:
        dropped = "" if end2end else "one2one_"
        assert all(
            getattr(head, f"{dropped}{n}", None) is None for n in ("cv2", "cv3", "sce", "dpe", "cls_skip", "lqe")
        )
        assert sum(p.numel() for p in head.parameters()) < 0.65 * parameters


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_inference_without_autograd_says_the_same_and_leaves_its_inputs(make_head, pyramid, options):
    head, x = wake(make_head(**options)).eval(), pyramid(96, 224, finer=options.get("finer", True))
    given = [t.clone() for t in x]
    with torch.enable_grad():
        expected = head(list(x))[0]
    with torch.no_grad():
        assert_close(head(list(x))[0], expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(x, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_give_finite_outputs_near_full_precision(make_head, pyramid, dtype):
    head, x = wake(make_head()).eval(), pyramid()
    full = head(list(x))[0]

    def near(out: torch.Tensor) -> None:
        assert_close(out[:, :4].float(), full[:, :4], rtol=0.1, atol=2.0)  # pixels
        assert_close(out[:, 4:].float(), full[:, 4:], rtol=0, atol=0.1)  # scores
        assert (out[:, 4:].float() - full[:, 4:]).abs().mean() < 0.01

    with torch.autocast("cpu", dtype):
        near(head(list(x))[0])
    half = copy.deepcopy(head).to(dtype)
    half.stride, half.shape = half.stride.to(dtype), None  # the host's model._apply does the former
    lowered = half([t.to(dtype) for t in x])[0]
    assert lowered.dtype == dtype
    near(lowered)


def test_training_in_bfloat16_reaches_every_parameter(make_head, pyramid):
    head = make_head(end2end=True)
    with torch.autocast("cpu", torch.bfloat16):
        preds = head.train()(pyramid())
        loss = sum(p[k].float().square().mean() for p in preds.values() for k in ("boxes", "scores"))
    loss.backward()
    missing = [n for n, p in head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == ["dfl.conv.weight"]  # frozen by the host


def test_deepcopy_and_pickle_keep_options_and_outputs(make_head, pyramid):
    head, x = wake(make_head(end2end=True, share_down=True)).eval(), pyramid()
    buffer = io.BytesIO()
    torch.save(head, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(head), torch.load(buffer, weights_only=False)):
        assert_close(twin(list(x))[0], head(list(x))[0], rtol=0, atol=0)
        assert twin.options == head.options
        assert twin.options["share_down"] is True


def test_a_pickled_head_of_before_levels_could_be_chosen_encodes_all(make_head, pyramid):
    head = wake(make_head(sce_at=None, dpe_at=None)).eval()
    expected = head.forward_head(pyramid_of_ones(pyramid), **head.one2many)
    del head.sce.at, head.dpe.at, head.options["sce_at"], head.options["dpe_at"]
    again = pickle.loads(pickle.dumps(head))
    assert again.sce.at == again.dpe.at == (0, 1, 2)
    assert again.options["sce_at"] is again.options["dpe_at"] is None
    assert_close(again.forward_head(pyramid_of_ones(pyramid), **again.one2many), expected, rtol=0, atol=0)


def pyramid_of_ones(pyramid) -> list[torch.Tensor]:
    return [torch.ones_like(p) for p in pyramid()]


def test_a_checkpoint_of_a_newer_schema_is_refused_with_the_cure(make_head):
    state = make_head().__getstate__()
    assert state["schema"] == SCHEMA
    with pytest.raises(
        RuntimeError,
        match=rf"schema {SCHEMA + 1}; .* up to {SCHEMA}\. Update it: in a clone of tscode-yolo, pip install",
    ):
        TSCODEDetect.__new__(TSCODEDetect).__setstate__({**state, "schema": SCHEMA + 1})


def test_hooks_see_the_predicted_levels_only(make_head, pyramid):
    head, x, seen = make_head().eval(), pyramid(), []
    handle = head.register_forward_pre_hook(lambda module, args: seen.append([t.shape[1] for t in args[0]]))
    head(list(x))
    handle.remove()
    head(list(x))
    assert seen == [list(CHANNELS[1:])]


def test_what_a_hook_returns_replaces_the_predicted_levels(make_head, pyramid):
    head, x = make_head().eval(), pyramid()
    zeros = [torch.zeros_like(t) for t in x[1:]]
    head.register_forward_pre_hook(lambda module, args: (zeros,))
    assert_close(head(list(x))[0], make_head_like(head)([x[0], *zeros])[0])


def test_hooks_that_want_keywords_see_the_predicted_levels_too(make_head, pyramid):
    head, x, seen = make_head().eval(), pyramid(), []

    def hook(module, args, kwargs):
        seen.append(len(args[0]))
        return args, kwargs

    head.register_forward_pre_hook(hook, with_kwargs=True)
    assert_close(head(list(x))[0], make_head_like(head)(list(x))[0])
    assert seen == [3]


def make_head_like(head: TSCODEDetect) -> TSCODEDetect:
    twin = copy.deepcopy(head)
    twin._forward_pre_hooks.clear()
    twin._forward_pre_hooks_with_kwargs.clear()
    return twin


def test_quality_is_folded_into_the_scores(make_head, pyramid):
    head, x = make_head(quality="centerness", score="pq").eval(), pyramid()
    out, raw = head(list(x))
    assert_close(out[:, 4:], raw["scores"].sigmoid() * raw["quality"].sigmoid(), rtol=1e-4, atol=1e-5)


def test_torch_compile_takes_the_whole_head(make_head, pyramid):
    head, x = wake(make_head()).eval(), pyramid()
    compiled = torch.compile(
        lambda maps: head.forward_head(maps, **head.one2many)["scores"], backend="eager", fullgraph=True
    )
    assert_close(compiled(list(x)), head.forward_head(list(x), **head.one2many)["scores"])


@torch.no_grad()
@pytest.mark.parametrize("end2end", [True, False])
def test_tracing_at_one_size_gives_the_graph_of_another(make_head, pyramid, end2end):
    """Odd and even coarsest maps need the same graph, else a dynamic export would be wrong at other sizes."""
    head = wake(make_head(end2end=end2end, one2one_sce=True, **ALL_LEVELS)).eval()
    branch = head.one2one if end2end else head.one2many

    class Raw(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, *maps):
            preds = self.head.forward_head(list(maps), **branch)
            return preds["boxes"], preds["scores"]

    even, odd = pyramid(128, 128), pyramid(96, 160)
    traced = torch.jit.trace(Raw(), tuple(even), check_trace=False)
    assert_close(traced(*odd), Raw()(*odd), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [True, False])
def test_group_norm_works_on_a_single_cell_at_any_width(make_head, pyramid, train):
    """32 channels in 32 groups would be one value a group on a 1x1 map, which torch refuses."""
    head = make_head(norm="gn", sce_width=32, dpe_width=64, cls_width=40, box_width=32).train(train)
    out = head(pyramid(32, 32, 1))
    scores = (out if train else out[1])["scores"]
    assert torch.isfinite(scores).all()
    groups = {m.num_channels: m.num_groups for m in head.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert (groups[32], groups[64], groups[40]) == (16, 32, 8)


def test_the_class_branch_does_not_change_shape_with_the_number_of_classes():
    ch = (32, 64, 128, 256)
    few, many = (TSCODEDetect(nc, ch=ch, options={"finer": True}) for nc in (3, 80))
    classes = tuple(many.class_convs())
    for (name, a), b in zip(few.state_dict().items(), many.state_dict().values()):
        assert a.shape == b.shape or name.startswith(classes), name


def test_errors_name_what_was_expected(make_head, pyramid):
    with pytest.raises(ValueError, match="at least 2 predicted levels after the finer map, got inputs with channels"):
        TSCODEDetect(5, ch=(8, 16), options={"finer": True})
    with pytest.raises(ValueError, match="sharing over levels needs the same channels on all of them"):
        TSCODEDetect(5, ch=(8, 16, 32), options={"share_down": True, "sce_width": None})
    for name in ("sce_at", "dpe_at"):
        with pytest.raises(ValueError, match=r"\[0, 3\]: expected numbers from 0 \(the finest\) to 2, for 3 levels"):
            TSCODEDetect(5, ch=CHANNELS[1:], options={name: [0, 3]})
    head = TSCODEDetect(5, ch=CHANNELS[1:], options={})
    with pytest.raises(ValueError, match="expected 3 input maps, got 4"):
        head(pyramid())
    p3, p4, p5 = pyramid(finer=False)
    with pytest.raises(ValueError, match=r"input 0 is 12x20 and input 1 is 3x5\. Check the layer numbers"):
        head([p3, p5, p4])


@pytest.mark.parametrize("kind", ["separable", "linear"])
def test_an_export_has_the_kernels_of_dpe_as_constants(make_head, pyramid, kind):
    """ExecuTorch's partitioner does not take a kernel that is computed in the graph."""
    head = wake(make_head(down_conv=kind, dpe_at=None)).eval()
    maps = pyramid(96, 160)
    expected = head(list(maps))[0]
    for first in (block[0] for block in head.dpe.detail):  # what every host does to its own layers
        if kind == "separable":
            first.conv, first.forward = fuse_conv_and_bn(first.conv, first.bn), first.forward_fuse
            del first.bn
    head.export = True
    assert_close(head(list(maps)), expected, rtol=1e-4, atol=1e-3)
    assert all(block.kernel is not None for block in head.dpe.detail)
    traced = torch.jit.trace(head, (maps,), check_trace=False)
    assert "aten::sum" not in {node.kind() for node in traced.inlined_graph.nodes()}


@pytest.mark.parametrize("kind", ["linear", "separable"])
@pytest.mark.parametrize("fused", [True, False])
def test_torch_export_takes_the_whole_head(make_head, pyramid, kind, fused):
    """As ExecuTorch and LiteRT are reached: not by tracing, with proxies for modules."""
    head = wake(make_head(down_conv=kind, dpe_at=None)).eval()
    maps = pyramid(96, 160)
    expected = head(list(maps))[0]
    for block in head.dpe.detail if fused else ():  # not head.fuse(): old hosts call it on end-to-end heads only
        block.fuse()
    head.export = True
    exported = torch.export.export(head, (list(maps),))
    assert_close(exported.module()(list(maps)), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", [*SUM_FIRST, "onnx"])
def test_formats_that_need_it_get_the_sum_as_equation_5_writes_it(make_head, pyramid, format):
    head = wake(make_head(dpe_at=None)).eval()
    maps = pyramid(96, 160)
    expected = head(list(maps))[0]
    head.export, head.format = True, format
    assert_close(head(list(maps)), expected, rtol=1e-4, atol=1e-3)
    assert head.dpe.sum_first == (format in SUM_FIRST)
    head.export = False
    head(list(maps))
    assert not head.dpe.sum_first


@pytest.mark.parametrize("end2end", [False, True])
def test_lqe_adds_one_number_a_point_that_its_boxes_decide(make_head, pyramid, end2end):
    head = make_head(end2end=end2end, lqe=True).eval()
    x = pyramid()
    prefix = "one2one_" if end2end else ""
    branches = head.one2one if end2end else head.one2many
    before = head.forward_head(list(x), **branches)["scores"]
    torch.nn.init.normal_(getattr(head, f"{prefix}lqe")[1].weight)
    change = head.forward_head(list(x), **branches)["scores"] - before
    sizes = [t.shape[-2] * t.shape[-1] for t in x[-3:]]
    first, second, third = change.split(sizes, -1)
    assert not first.any()  # zero at the start
    assert not third.any()
    assert_close(second, second[:, :1].expand_as(second), rtol=0, atol=1e-5)  # alike for all classes
    assert second[0, 0].unique().numel() == sizes[1]  # no two points alike
    head.train().forward_head(list(x), **branches)["scores"].sum().backward()
    trained = {n.split(".")[0] for n, p in head.named_parameters() if p.grad is not None}
    assert trained >= {f"{prefix}lqe", f"{prefix}cv2", f"{prefix}dpe"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"sce": False}, False),
        ({"recipe": "atss"}, False),
        ({"lqe": False}, False),
        ({"preset": "paper"}, False),
    ],
)
def test_lqe_comes_with_sce_and_the_hosts_loss(options, expected):
    wide = {"sce_width": 64, "dpe_width": 64, "cls_width": 64, "box_width": 64} if "preset" in options else {}
    head = TSCODEDetect(3, ch=(16, 32, 64), options={**options, **wide})
    assert (head.lqe is not None) == expected
