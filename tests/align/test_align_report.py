"""The whole command: files written, numbers in them, words, errors; and the interval's arithmetic."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from tscode_yolo import cli
from tscode_yolo.align import AlignArgs, command, main
from tscode_yolo.align.collect import Settings, collect
from tscode_yolo.align.command import short_names
from tscode_yolo.align.html import number
from tscode_yolo.align.measure import Measurer
from tscode_yolo.align.predict import Detector
from tscode_yolo.align.source import open_source
from tscode_yolo.align.tide import Kind
from tscode_yolo.align.verdict import findings, headline, shares

from .align_oracles import random_scene
from .align_scenes import Page, draw_dataset

CSV = "epoch, train/cls_loss, val/cls_loss\n1,2.0,2.5\n2,1.0,1.5\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory, checkpoint):
    """One run with two models over a set that has an unreadable, an empty and an unlabelled image."""
    folder = tmp_path_factory.mktemp("align")
    data = draw_dataset(folder / "set", 8)
    (folder / "set" / "images" / "val" / "0000.png").write_bytes(b"broken")
    (folder / "set" / "labels" / "val" / "0001.txt").write_text("")
    (folder / "set" / "labels" / "val" / "0002.txt").unlink()
    for i in range(3, 8):  # names that matplotlib would take for formulas
        for part, ending in (("images", "png"), ("labels", "txt")):
            file = folder / "set" / part / "val" / f"000{i}.{ending}"
            file.rename(file.with_name(f"000{i} $x_^$.{ending}"))
    (folder / "results.csv").write_text(CSV)
    (folder / "out").mkdir()
    (folder / "out" / "maps-99.png").write_bytes(b"of a run before")
    code = main(
        {"model": checkpoint, "baseline": checkpoint, "data": str(data), "imgsz": 96, "resamples": 30, "examples": 2,
         "cam": 1, "results": str(folder), "baseline_results": str(folder / "results.csv"),
         "out": str(folder / "out"), "verbose": False}
    )  # fmt: skip
    assert code == 0
    return folder / "out"


def test_every_piece_is_written(written):
    names = {p.name for p in written.iterdir()}
    assert {"report.html", "report.json", "plots-1.png", "plots-2.png", "curves-1.png"} <= names
    assert "maps-99.png" not in names
    for png in written.glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")


def test_json_counts_what_was_read_and_left_out(written):
    report = json.loads((written / "report.json").read_text())
    data = report["data"]
    assert (data["images_listed"], data["images_read"], data["corrupt_images"]) == (8, 7, 1)
    assert (data["images_without_objects"], data["images_without_label_file"], data["objects"]) == (2, 1, 10)
    assert data["objects_per_class"] == {"box": 5, "disc": 5}
    assert report["schema"] == 1
    assert set(report["models"][0]["classes"]) == {"box", "disc"}
    assert set(report["models"][0]["sizes"]) == {"small", "medium", "large"}


def test_json_says_what_was_asked_for(written):
    arguments = json.loads((written / "report.json").read_text())["arguments"]
    assert (arguments["imgsz"], arguments["split"], arguments["data"]) == (96, "val", "set/data.yaml")


def test_a_model_differs_in_nothing_from_itself(written):
    report = json.loads((written / "report.json").read_text())
    told = [c for c in report["difference"].values() if c["value"] is not None]
    assert len(told) > 20
    for cell in told:
        assert cell["value"] == 0
        assert cell["low"] in (0, None)
        assert cell["high"] in (0, None)


def test_the_page_stands_alone_and_closes_what_it_opens(written):
    text = (written / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "url(" not in text
    assert len(page.images) >= 3
    for image in page.images:
        assert image["alt"]
        assert base64.b64decode(image["src"].split(",", 1)[1]).startswith(b"\xff\xd8")
    report = json.loads((written / "report.json").read_text())
    assert report["headline"] in text.replace("&#x27;", "'")
    assert number("ap", report["models"][0]["overall"]["ap"]["value"]) in text
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"]*", "", text.split("How this was made")[0]))


def test_names_of_classes_and_files_are_escaped(written, tmp_path):
    from tscode_yolo.align import html

    report = json.loads((written / "report.json").read_text())
    report["models"][0]["classes"]["<b>"] = report["models"][0]["classes"].pop("box")
    page = html.render(report, ["<i>", "b"], [], "<script>")
    assert "<script>" not in page
    assert "<b>" not in page.replace("<b>–", "").split("By size and class")[1].split("The data")[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [({"data": "d"}, "model="), ({"model": "m"}, "data="),
     ({"model": "m", "data": "d", "basline": "x"}, "mean baseline"),
     ({"model": "m", "data": "d", "help": 1}, "valid: annotations, .*images, imgsz"),
     ({"model": "m", "data": "d", "conf": 2}, "conf=2: expected a number from 0 to 1"),
     ({"model": "m", "data": "d", "imgsz": "x"}, "imgsz"),
     ({"model": "m", "data": "d", "imgsz": 100}, "imgsz=100: expected a multiple of 32"),
     ({"model": "m", "data": "d", "device": "x"}, "device=x: expected cpu"),
     ({"model": "m", "data": "d", "limit": 0}, "limit"), ({"model": "m", "data": "d", "cam": -1}, "cam"),
     ({"model": "m", "data": "d", "baseline_results": "r"}, "results="),
     ({"model": [5], "data": "d"}, "model=.*: expected a name or path"),
     ({"model": "m", "data": "d", "split": True}, "split=True")],
)  # fmt: skip
def test_bad_keys_and_values_are_explained(args, message):
    with pytest.raises(ValueError, match=message):
        AlignArgs.parse(args)


def test_errors_give_exit_code_2_and_no_folder(tmp_path, checkpoint, dataset):
    out = tmp_path / "out"
    run = ["align", f"model={checkpoint}", f"out={out}"]
    assert cli.main([*run, f"data={tmp_path / 'none.json'}", "images=."]) == 2
    assert cli.main([*run, f"data={dataset}", f"results={tmp_path / 'x.csv'}"]) == 2
    for image in (tmp_path / "set" / "images" / "val").iterdir():
        image.write_bytes(b"")
    assert cli.main([*run, f"data={dataset}", "imgsz=96", "verbose=False"]) == 2
    assert not out.exists()


def test_left_out_images_are_counted_and_named(written):
    report = json.loads((written / "report.json").read_text())
    assert report["data"]["problems"] == ["val/0000.png: cannot be decoded as an image"]
    assert "val/0000.png: cannot be decoded" in (written / "report.html").read_text()


def test_every_number_of_the_page_has_its_interval(written):
    """No value without bounds where it has them in the JSON: key numbers, loss and TIDE bars, both tables."""
    report = json.loads((written / "report.json").read_text())
    text = (written / "report.html").read_text()
    for name in ("tide_background", "loss_boxes", "loss_classes", "olrp", "spearman_kept", "d_ece"):
        cell = report["models"][0]["overall"][name]
        low, high = number(name, cell["low"]).removesuffix(" %"), number(name, cell["high"])
        assert f"{low} to {high}" in text, name
    for cells in report["models"][0]["classes"].values():
        for name, cell in cells.items():
            if name.startswith(("ap", "loss", "tide", "d_ece", "la_ece")):
                assert None not in (cell["value"], cell["low"], cell["high"]), name


def test_numbers_are_written_before_pictures_are_drawn(tmp_path, checkpoint, dataset, monkeypatch):
    monkeypatch.setattr(command.pictures, "draw", lambda *_: 1 / 0)
    args = {"model": checkpoint, "data": str(dataset), "imgsz": 96, "resamples": 0, "out": str(tmp_path / "out")}
    with pytest.raises(ZeroDivisionError):
        main({**args, "verbose": False})
    assert json.loads((tmp_path / "out" / "report.json").read_text())["headline"]


def test_a_place_that_cannot_be_written_costs_no_pass(tmp_path, checkpoint, dataset, monkeypatch):
    monkeypatch.setattr(command, "collect", lambda *_: 1 / 0)
    (tmp_path / "file").write_text("")
    args = {"model": checkpoint, "data": str(dataset), "imgsz": 96, "out": str(tmp_path / "file"), "verbose": False}
    with pytest.raises(ValueError, match="expected a folder that can be made"):
        main(args)
    with pytest.raises(ValueError, match="expected a checkpoint or a model YAML"):
        main({**args, "model": str(dataset)})


@pytest.mark.parametrize(
    ("keys", "size", "told"), [({}, 96, "the training of the first model"), ({"imgsz": 64}, 64, "given")]
)
def test_the_input_size_is_the_one_of_the_training(tmp_path, checkpoint, dataset, keys, size, told):
    """As ``yolo val`` does, unless another is asked for; the page and the JSON say which."""
    args = {"model": checkpoint, "data": str(dataset), "resamples": 0, "examples": 0, "cam": 0, "verbose": False}
    assert main({**args, **keys, "out": str(tmp_path / "out")}) == 0
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert (settings["imgsz"], settings["imgsz_from"]) == (size, told)
    assert f"val, {size} px" in (tmp_path / "out" / "report.html").read_text()


def test_a_baseline_of_another_training_size_is_shown_the_first_models(tmp_path, checkpoint, caplog):
    other = torch.load(checkpoint, weights_only=False)
    other["train_args"]["imgsz"] = 64
    torch.save(other, tmp_path / "other.pt")
    found, _ = command._open(AlignArgs(checkpoint, "d"), [checkpoint, str(tmp_path / "other.pt")])
    assert [d.imgsz for d in found] == [96, 96]
    assert [d.trained_imgsz for d in found] == [96, 64]
    assert "the baseline was trained with imgsz=64; both are shown 96" in caplog.text
    assert Detector("yolo11n.yaml").imgsz == 640


def test_the_page_has_both_halves_of_the_loss(written):
    text = (written / "report.html").read_text()
    cell = json.loads((written / "report.json").read_text())["models"][0]["overall"]["loss_scores"]
    row = text.split("loss, scores' half")[1].split("</tr>")[0]
    assert f"<td>{number('loss_scores', cell['value'])}<small>" in row
    assert text.index("loss, scores' half") < text.index("loss, boxes' half")


def test_every_key_is_documented():
    """One row a key in the order of AlignArgs, with its default where that is a plain value."""
    text = (Path(__file__).parents[2] / "docs" / "align.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", text, re.MULTILINE))
    assert list(rows) == [f.name for f in fields(AlignArgs)]
    for field in fields(AlignArgs):
        if isinstance(field.default, bool | int | float | str):
            assert rows[field.name].strip("`") == str(field.default).lower(), field.name


def test_a_device_is_a_name_or_the_number_of_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert AlignArgs.parse({"model": "m", "data": "d", "device": 0}).device == "cuda:0"
    assert AlignArgs.parse({"model": "m", "data": "d", "device": "cpu"}).device == "cpu"
    with pytest.raises(ValueError, match="device=7: expected one of 1 GPUs"):
        AlignArgs.parse({"model": "m", "data": "d", "device": 7})


def test_short_names_tell_models_apart():
    assert short_names(["a/x.pt", "b/y.pt"]) == ["x", "y"]
    assert short_names(["r/one/weights/best.pt", "r/two/weights/best.pt"]) == ["one/weights/best", "two/weights/best"]
    assert short_names(["x.pt", "x.pt"]) == ["x (1)", "x (2)"]


def test_a_set_without_any_object_still_gives_words(measure):
    scene = [{"gts": [], "dets": [{"box": [0, 0, 50, 50], "cls": 0, "score": 0.9}]}, {"gts": [], "dets": []}]
    values, collector, _ = measure(scene)
    assert np.isnan(values["ap"][0])
    assert collector.counts["images_without_predictions"] == 1
    overall = {k: {"value": None, "low": None, "high": None} for k in values}
    report = {"models": [{"overall": overall}]}
    assert "no labelled objects" in headline(report)


def test_objects_without_any_prediction_are_all_missed(measure):
    scene = [{"gts": [{"box": [0, 0, 50, 50], "cls": 1, "crowd": False}], "dets": []}]
    values, collector, _ = measure(scene)
    assert (values["ap"][0], values["covered"][0], values["olrp"][2]) == (0, 0, 1)
    assert values["loss_unseen"][0] == 1
    assert collector.objects.rows["missed"].tolist() == [True]


def test_label_files_and_a_coco_file_of_one_set_give_the_same_numbers(tmp_path, checkpoint):
    """And a crowd over everything in the COCO file turns every unmatched box of its class into an ignored one."""
    data = draw_dataset(tmp_path / "set", 5)
    detector = Detector(checkpoint, imgsz=96)
    names = {0: "box", 1: "disc"}
    source = open_source(str(data), names)
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "box"}, {"id": 8, "name": "disc"}]}
    for sample in source:
        content["images"].append({"id": sample.index, "file_name": sample.path.name})
        for box, label in zip(sample.objects.boxes, sample.objects.labels, strict=True):
            x1, y1, x2, y2 = box
            row = {"image_id": sample.index, "category_id": (5, 8)[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            content["annotations"].append(row)
    file = tmp_path / "instances.json"

    def numbers(source):
        collection = collect(source, [detector], Settings(examples=0), progress=False)
        values = Measurer(collection.collectors[0], 5, 2)(np.ones((1, 5), np.uint16))
        return {k: v[0] for k, v in values.items()}, collection

    file.write_text(json.dumps(content))
    images = str(tmp_path / "set" / "images" / "val")
    plain, _ = numbers(source)
    coco, _ = numbers(open_source(str(file), names, images=images))
    for name, value in plain.items():
        np.testing.assert_allclose(coco[name], value, atol=1e-6, err_msg=name)
    assert plain["covered"][0] > 0
    for image in range(5):
        row = {"image_id": image, "category_id": 5, "bbox": [0, 0, 96, 96], "iscrowd": 1}
        content["annotations"].append(row)
    file.write_text(json.dumps(content))
    _, crowded = numbers(open_source(str(data), names, annotations=str(file)))
    rows = crowded.collectors[0].detections.rows
    background = rows["kind"][rows["cls"] == 0]
    assert (background == Kind.IGNORED).sum() > 0.9 * len(background)
    assert crowded.labels["crowd_regions"] == 5
    assert crowded.labels["objects"] == 10


def _overall(**values):
    names = ("ap", "loss_alignment", "loss_scores", "loss_boxes", "loss_unseen", "rank", "best_first", "gap",
             "nms_removed")  # fmt: skip
    return {n: {"value": values.get(n, 0.0), "low": None, "high": None} for n in names}


@pytest.mark.parametrize(
    ("values", "word"),
    [({"ap": 0.4, "loss_alignment": 0.4, "loss_scores": 0.45, "loss_boxes": 0.1, "loss_unseen": 0.05}, "scores pick"),
     ({"ap": 0.4, "loss_alignment": 0.05, "loss_scores": 0.1, "loss_boxes": 0.45, "loss_unseen": 0.05}, "tight enough"),
     ({"ap": 0.4, "loss_alignment": 0.05, "loss_scores": 0.3, "loss_boxes": 0.1, "loss_unseen": 0.2}, "data or the"),
     ({"ap": 0.4, "loss_alignment": 0.1, "loss_scores": 0.3, "loss_boxes": 0.2, "loss_unseen": 0.1}, "Both"),
     ({"ap": 1.0}, "no loss")],
)  # fmt: skip
def test_the_headline_names_the_larger_cause(values, word):
    report = {"models": [{"overall": _overall(**values), "counts": {"detections": 9}}]}
    assert word in headline(report)
    assert sum(shares(report["models"][0]["overall"]).values()) == pytest.approx(1 - values["ap"])


def test_a_model_that_detects_nothing_is_not_blamed_on_the_data():
    model = {"overall": _overall(ap=0.0, loss_unseen=1.0), "counts": {"detections": 0}}
    assert headline({"models": [model], "settings": {"conf": 0.5}}) == (
        "The model detects nothing: no box scores above conf=0.5."
    )


def test_findings_repeat_the_numbers(written):
    report = json.loads((written / "report.json").read_text())
    assert findings(report) == report["findings"]
    assert f"AP is {100 * report['models'][0]['overall']['ap']['value']:.1f} %" in report["findings"][0]
    assert any("corrupt" in line for line in report["findings"])


def test_a_crowded_scene_goes_through_every_number(measure):
    """No number is infinite, and every share lies between 0 and 1."""
    values, _, _ = measure(random_scene(5, images=20))
    for name, value in values.items():
        assert not np.isinf(value).any(), name
        if name not in ("rank", "gap", "spearman", "pearson", "spearman_kept", "pearson_kept", "loss_alignment",
                        "loss_scores", "loss_boxes", "loss_classes"):  # fmt: skip
            assert np.nanmin(value) >= 0, name
            assert np.nanmax(value) <= 1, name
