"""Move pretrained weights into a model and say what moved.

The host's own `load` swaps a whole classification branch when two heads differ in width, whatever their kinds, and does
not know four rows per class. Here a head moves unit by unit (one tower, one encoder): completely, or not at all. A
branch that is the stock head's takes the source's width first, as the host has it: that width depends on the number of
classes, which own data change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

STOCK_TOWERS = ("cv3", "one2one_cv3")  # classification towers of the stock head, whose width depends on its classes
FIRST = "model.0.conv.weight"  # the host adapts it to another number of image channels


@dataclass
class Account:
    """What a transfer did.

    Attributes:
        body: tensors moved and tensors in all of backbone and neck.
        left: backbone and neck tensors that did not move, with the reason.
        head: per unit of the head, how it moved or the reason why it was re-initialised.
    """

    body: tuple[int, int] = (0, 0)
    left: list[str] = field(default_factory=list)
    head: dict[str, str] = field(default_factory=dict)

    def lines(self, source: str) -> list[str]:
        """The account as text."""
        moved, total = self.body
        share = f"{100 * moved / total:.0f} %" if total else "none"
        out = [f"Weights from {source}: backbone and neck {moved}/{total} tensors ({share})"]
        out += [f"  not moved   {name}" for name in self.left[:10]]
        out += [f"  not moved   ... and {len(self.left) - 10} more"] if len(self.left) > 10 else []
        by_outcome: dict[str, list[str]] = {}
        for unit, outcome in self.head.items():
            by_outcome.setdefault(outcome, []).append(unit)
        out += [f"  head  {outcome}: {', '.join(units)}" for outcome, units in by_outcome.items()]
        return out


def transfer(model: Any, source: Any, load_body: Callable[..., None], verbose: bool = True) -> Account:
    """Load a source model's weights into `model`, in place.

    Args:
        model: the host's DetectionModel that receives.
        source: the model that gives; any host model, ours or stock.
        load_body: the host's own `load(weights, verbose)` bound to `model`; it gets the source without its head.
        verbose: log the account.

    Returns:
        The account. What did not move keeps its initial values, but for SCE's predictor where a stock tower moved in
        beside it: that starts at zero, with the stock predictor's bias. A YAML's placeholders for class names give way
        to the source's where class rows moved by their number.
    """
    from ultralytics.utils import LOGGER

    given = source.float().state_dict()
    n = len(model.model) - 1
    first = _first_conv(model, given)
    load_body(_without_head(source), verbose=False)
    if first is not None:
        model.state_dict()[FIRST].copy_(first)
    body = {k: v for k, v in model.state_dict().items() if not k.startswith(f"model.{n}.")}
    left = [
        f"{k}: {'not in the source' if k not in given else f'{list(given[k].shape)} there, {list(v.shape)} here'}"
        for k, v in body.items()
        if k not in given or (given[k].shape != v.shape and (k != FIRST or first is not None))
    ]
    account = Account((len(body) - len(left), len(body)), left)
    account.head = _transfer_head(model, source)
    model.pt_path = getattr(source, "pt_path", None)
    outcomes = [account.head[_unit(c)] for c in _class_convs(model.model[-1])]
    by_number = any(o.startswith("moved") and "class" not in o for o in outcomes)
    if by_number and model.names == {i: str(i) for i in range(len(source.names))}:  # a YAML's placeholders
        model.names = dict(source.names)
    if verbose:
        for line in account.lines(str(model.pt_path or "the given model")):
            LOGGER.info(line)
        if getattr(source, "is_fused", lambda: False)() and not model.is_fused():
            LOGGER.warning("The source is fused for inference; train from the unfused checkpoint instead.")
    return account


def _first_conv(model: Any, given: dict[str, Tensor]) -> Tensor | None:
    """The first conv's own values where it has other filters than the source's: the host would mix the two."""
    own = model.state_dict().get(FIRST)
    if own is None or FIRST not in given:
        return None
    same = own.shape[0] == given[FIRST].shape[0] and own.shape[2:] == given[FIRST].shape[2:]
    return None if same else own.clone()


def _without_head(source: Any) -> Any:
    """A view of the source that shares its tensors but ends before the head."""
    view = copy.copy(source)
    view._modules = {**source._modules, "model": source.model[:-1]}
    return view


def _transfer_head(model: Any, source: Any) -> dict[str, str]:
    """Move the head's units that are the same on both sides; returns the outcome of each."""
    head, src = model.model[-1], source.model[-1]
    replaced = take_widths(head, src)
    origins, stock, theirs = _origins(head, src), stock_units(head), set(stock_units(src).values())
    rows = _matching_rows(_names(source), _names(model), src, head)
    classes, src_classes = _class_convs(head), _class_convs(src)
    given, own = src.state_dict(), head.state_dict()
    conv_of = {_unit(name): name for name in classes}
    units: dict[str, list[str]] = {}
    for k in own:
        units.setdefault(_unit(k), []).append(k)
    reasons: dict[str, str] = {}
    predictors: dict[str, Any] = {}  # in the source
    for unit, keys in units.items():
        conv, origin = conv_of.get(unit), origins.get(unit, unit)
        there = {f"{unit}{k.removeprefix(origin)}": v for k, v in given.items() if _unit(k) == origin}
        plain, other = ([k for k in ks if conv is None or not k.startswith(f"{conv}.")] for ks in (keys, there))
        reasons[unit] = _difference(plain, other, own, there, in_another_form=stock.get(unit) in theirs)
        if conv is not None:
            predictors[unit] = src_classes.get(f"{origin}{conv.removeprefix(unit)}")
            reasons[unit] = reasons[unit] or _class_difference(
                classes[conv], predictors[unit], head.nc, getattr(src, "nc", 0), bias_elsewhere=origin != unit
            )
        units[unit] = plain
    instead = {u: stock[u] for u, o in origins.items() if o != u and not reasons[u]}
    _hold_back_partners(reasons, head, instead)
    outcome = {}
    for unit, keys in units.items():
        conv, origin = conv_of.get(unit), origins.get(unit, unit)
        if reasons[unit]:
            outcome[unit] = f"re-initialised ({reasons[unit]})"
            if unit in replaced:
                _put(head, unit, replaced[unit])
            continue
        for k in keys:
            own[k].copy_(given[f"{origin}{k.removeprefix(unit)}"])
        outcome[unit] = "moved" if conv is None else _move_class_rows(classes[conv], predictors[unit], rows, head.nc)
        if unit in instead:
            _add_nothing(classes[conv_of[instead[unit]]], predictors[unit], rows, head.nc)
            outcome[unit] = outcome[unit].replace("moved", f"moved from {origin}", 1)
    if hasattr(head, "refresh_kernels"):
        head.refresh_kernels()
    return outcome


def take_widths(head: Any, src: Any, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Rebuild the classification towers of `head` that are the stock head's in the width of the source's.

    Only where width is all they differ in. Hidden layers come with the source's values; the predictor keeps its number
    of outputs and its bias, and its weights start afresh.

    Args:
        head: of the host's Detect, ours or stock; changed in place.
        src: likewise.
        only: names of towers to look at, as cv3.0; None: all.

    Returns:
        The towers that were there before, by name.
    """
    before = {}
    for unit, origin in _origins(head, src).items():
        own, other = head.get_submodule(unit), src.get_submodule(origin)
        if (only is None or unit in only) and own[-1].in_channels != other[-1].in_channels:
            before[unit] = own
            _put(head, unit, _of_width(own, other))
    return before


def _put(head: Any, unit: str, tower: Any) -> None:
    """Make `tower` the head's tower of that name."""
    name, i = unit.split(".")
    getattr(head, name)[int(i)] = tower


def stock_units(head: Any) -> dict[str, str]:
    """Classification towers in the place of a stock one, by name: the stock head's name of each; ours says itself."""
    if hasattr(head, "stock_units"):
        return dict(head.stock_units())
    return {u: u for name in STOCK_TOWERS for u in (f"{name}.{i}" for i in range(len(getattr(head, name, None) or ())))}


def _origins(head: Any, src: Any) -> dict[str, str]:
    """Where in `src` the classification towers of `head` are that are the stock head's, by unit: built alike in both.

    Of a source without SCE it is cv3 that cls_skip takes. A stock head has all of its towers there or none: the host
    takes the width of the first for that of all.
    """
    theirs = stock_units(src)
    found = {unit: unit if unit in theirs else stock for unit, stock in stock_units(head).items()}
    alike = {
        unit: origin
        for unit, origin in found.items()
        if origin in theirs and _kind(head.get_submodule(unit)) == _kind(src.get_submodule(origin))
    }
    if hasattr(head, "stock_units"):
        return alike
    lists = {unit.split(".")[0] for unit in found.keys() - alike.keys()}
    return {unit: origin for unit, origin in alike.items() if unit.split(".")[0] not in lists}


def _kind(tower: Any) -> list[Any]:
    """What a tower is made of, whatever its width: its input's channels, then each layer's name, type and kernel."""
    layers: list[tuple[str, Any]] = [
        (name, m) for name, m in tower.named_modules(remove_duplicate=False) if not list(m.children())
    ]
    convs = [m for _, m in layers if isinstance(m, nn.Conv2d)]
    return [convs[0].in_channels if convs else None] + [
        (name, type(m), *((m.kernel_size, m.stride, 1 < m.groups == m.in_channels) if isinstance(m, nn.Conv2d) else ()))
        for name, m in layers
    ]


def _of_width(own: Any, src: Any) -> Any:
    """The tower `own` with the layers of `src`, but a fresh predictor with the outputs and bias of its own."""
    tower, last = copy.deepcopy(own), own[-1]
    for name, layer in src.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:  # convs and norms
            parent, _, child = name.rpartition(".")
            setattr(tower.get_submodule(parent), child, copy.deepcopy(layer))
    tower[-1] = nn.Conv2d(src[-1].in_channels, last.out_channels, 1, bias=last.bias is not None)
    if last.bias is not None:
        tower[-1].bias.data.copy_(last.bias.data)
    return tower.to(last.weight).train(own.training).requires_grad_(last.weight.requires_grad)


def _hold_back_partners(reasons: dict[str, str], head: Any, instead: dict[str, str]) -> None:
    """Logits that are added up move together: what sce, cv3 and cls_skip learned means nothing without the others.

    But for a cls_skip that is the stock head's own tower: it moves, and SCE starts as nothing added to it. Nor does a
    level's lqe move without the localisation tower it reads and the class logits it is added to, nor quality and box
    scale without the localisation towers.

    Args:
        reasons: why a unit does not move, or nothing; added to.
        head: ours or stock.
        instead: cls_skip towers that take the place of a stock tower, by name, and the towers of SCE beside them.
    """
    for skip, tower in instead.items():
        reasons[tower] = f"starts as nothing added to {skip}, but for its bias"
    for prefix in ("", "one2one_"):
        sce = getattr(head, f"{prefix}sce", None)
        if sce is not None:
            parts = {f"{prefix}{name}.{i}" for name in ("cv3", "cls_skip") for i in sce.at}
            partners = [u for u in reasons if u == f"{prefix}sce" or (u in parts and u not in instead)]
            if any(reasons[u] for u in partners):
                for u in partners:
                    reasons[u] = reasons[u] or "with the rest of its branch"
        boxes = [u for u in reasons if u.startswith(f"{prefix}cv2.")]
        for unit in (f"{prefix}quality", f"{prefix}box_scale"):  # over all levels
            if unit in reasons and any(reasons[u] for u in boxes):
                reasons[unit] = reasons[unit] or "with the towers it reads or scales"
        for unit in [u for u in reasons if u.startswith(f"{prefix}lqe.")]:
            boxes_of, skip, scores_of = (unit.replace("lqe", name) for name in ("cv2", "cls_skip", "cv3"))
            if reasons[boxes_of] or reasons[skip if skip in instead else scores_of]:
                reasons[unit] = reasons[unit] or "with what it reads and is added to"


def _unit(key: str) -> str:
    """The unit of a head that a tensor belongs to: cv2.0, one2one_cv3.1, or sce, dpe, dfl, ... as a whole."""
    first, second = [*key.split("."), ""][:2]
    return f"{first}.{second}" if first.removeprefix("one2one_") in ("cv2", "cv3", "cls_skip", "lqe") else first


def _difference(
    keys: list[str], there: list[str], own: dict[str, Tensor], given: dict[str, Tensor], in_another_form: bool
) -> str:
    """Why a unit cannot move, by the names and shapes of its tensors on both sides: empty if it can.

    `in_another_form`: the source has the tower it stands for, if not under its name.
    """
    if not there and keys and not in_another_form:
        return "not in the source"
    if set(keys) != set(there):
        return "built differently in the source"
    return "" if all(own[k].shape == given[k].shape for k in keys) else "other channels in the source"


def _class_convs(head: Any) -> dict[str, nn.Conv2d]:
    """Convs that end in class logits, by name: ours says itself, the stock head's are the last of cv3."""
    if hasattr(head, "class_convs"):
        return head.class_convs()
    pairs = ((n, getattr(head, n, None) or ()) for n in ("cv3", "one2one_cv3"))
    return {f"{n}.{i}.{len(t) - 1}": t[-1] for n, towers in pairs for i, t in enumerate(towers)}


def _class_difference(conv: nn.Conv2d, src: nn.Conv2d | None, nc: int, src_nc: int, bias_elsewhere: bool) -> str:
    """Why a predictor's rows cannot move: empty if they can. `bias_elsewhere`: it is for another conv to take."""
    if src is None or not src_nc:
        return "not in the source"
    same = conv.weight.shape[1:] == src.weight.shape[1:] and conv.out_channels // nc == src.out_channels // src_nc
    same = same and (src.bias is not None if bias_elsewhere else (conv.bias is None) == (src.bias is None))
    return "" if same else "other channels in the source"


def _names(model: Any) -> list[str]:
    """Class names, comparable; empty if the model has only the YAML's placeholders."""
    names = getattr(model, "names", None) or {}
    values = list(names.values()) if isinstance(names, dict) else list(names)
    placeholders = all(str(v) == str(i) for i, v in enumerate(values))
    return [] if placeholders else [str(v).strip().lower() for v in values]


def _matching_rows(names: list[str], own: list[str], src: Any, head: Any) -> dict[int, int]:
    """Which source class fills which of ours: by name where both have names, else by number if the counts agree."""
    if names and own:
        return {i: names.index(name) for i, name in enumerate(own) if name in names}
    return {i: i for i in range(head.nc)} if getattr(src, "nc", 0) == head.nc else {}


def _move_class_rows(conv: nn.Conv2d, src: nn.Conv2d, rows: dict[int, int], nc: int) -> str:
    """Copy the rows of each class, one or four, to its new place."""
    if not rows:
        return "moved but its class rows (no class in common)"
    per_class = conv.out_channels // nc
    to, origin = torch.tensor(list(rows)), torch.tensor(list(rows.values()))
    for name, p in conv.named_parameters():
        q = getattr(src, name)
        p.data.unflatten(0, (nc, per_class))[to] = q.data.unflatten(0, (-1, per_class))[origin].to(p)
    by_position = len(rows) == nc and all(i == j for i, j in rows.items())
    return "moved" if by_position else f"moved, {len(rows)} of {nc} classes matched by name"


def _add_nothing(conv: Any, src: Any, rows: dict[int, int], nc: int) -> None:
    """Make SCE's predictor add nothing but the bias of a stock predictor, whose weights are in cls_skip.

    Args:
        conv: SCE's predictor, 4 rows a class.
        src: the stock one.
        rows: source class of each of ours.
        nc: our number of classes.
    """
    nn.init.zeros_(conv.weight)
    if rows:
        to, origin = torch.tensor(list(rows)), torch.tensor(list(rows.values()))
        conv.bias.data.unflatten(0, (nc, -1))[to] = src.bias.data[origin, None].to(conv.bias)
