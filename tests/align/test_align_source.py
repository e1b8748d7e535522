"""Reading: label files, COCO files with crowds, corrupt and empty images, and the host's padding."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from ultralytics.data.augment import LetterBox

from tscode_yolo.align.coco import CocoFile
from tscode_yolo.align.labels import BadLabel, read_label_file
from tscode_yolo.align.predict import batches, letterbox
from tscode_yolo.align.source import list_images, open_source

from .align_scenes import draw_dataset

NAMES = {0: "box", 1: "disc"}


def test_label_rows_become_pixels_and_repeats_count_once(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("1 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5\n")
    objects = read_label_file(file, 200, 100, 2)
    assert objects.labels.tolist() == [1, 0]
    np.testing.assert_allclose(objects.boxes, [[80, 30, 120, 70], [20, 10, 60, 50]])
    np.testing.assert_allclose(objects.areas, [1600, 1600])


@pytest.mark.parametrize(
    ("text", "message"),
    [("0 0.5 0.5 0.2", "class cx cy w h"), ("2 0.5 0.5 0.2 0.2", "from 0 to 1"), ("0 a b c d", "expected numbers"),
     ("0 0.5 0.5 3 0.2", "coordinates from 0 to 1"), ("0 .1 .1 .2 .2 .3 .3 .4", "pairs x y")],
)  # fmt: skip
def test_a_bad_row_is_named_with_file_and_line(tmp_path, text, message):
    file = tmp_path / "a.txt"
    file.write_text("0 0.5 0.5 0.1 0.1\n" + text)
    with pytest.raises(BadLabel, match=r"a\.txt:2: .*" + message):
        read_label_file(file, 10, 10, 2)


def test_a_label_file_of_another_encoding_is_named(tmp_path):
    data = draw_dataset(tmp_path / "set", 2)
    (tmp_path / "set" / "labels" / "val" / "0001.txt").write_bytes("0 0.5 0.5 0.1 0.1 é".encode("latin-1"))
    source = open_source(str(data), NAMES)
    assert len(list(source)) == 1
    assert source.problems == ["val/0001.txt: expected text in UTF-8, got the byte 0xe9"]
    assert source.counts["corrupt_labels"] == 1


def test_more_problems_than_are_named_are_counted(tmp_path):
    data = draw_dataset(tmp_path / "set", 23)
    for image in sorted((tmp_path / "set" / "images" / "val").iterdir())[1:]:
        image.write_bytes(b"")
    source = open_source(str(data), NAMES)
    assert len(list(source)) == 1
    assert (source.counts["corrupt_images"], len(source.problems), source.unlisted) == (22, 20, 2)


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 4), (16, 900, 3)])
def test_grey_transparent_and_very_wide_images_are_read(tmp_path, shape):
    data = draw_dataset(tmp_path / "set", 1)
    cv2.imwrite(str(tmp_path / "set" / "images" / "val" / "0000.png"), np.full(shape, 70, np.uint8))
    (sample,) = open_source(str(data), NAMES)
    assert sample.image.shape == (*shape[:2], 3)


def test_what_cannot_be_read_is_counted_and_left_out(tmp_path):
    data = draw_dataset(tmp_path / "set", 5)
    images, labels = tmp_path / "set" / "images" / "val", tmp_path / "set" / "labels" / "val"
    (images / "0000.png").write_bytes(b"not an image")
    (images / "0001.png").write_bytes(b"")
    (labels / "0002.txt").write_text("9 0.5 0.5 0.1 0.1")
    (labels / "0003.txt").write_text("")
    (labels / "0004.txt").unlink()
    source = open_source(str(data), NAMES)
    samples = list(source)
    assert [s.path.name for s in samples] == ["0003.png", "0004.png"]
    assert [s.index for s in samples] == [0, 1]
    assert source.counts == {
        "images_listed": 5, "images_read": 2, "corrupt_images": 2, "corrupt_labels": 1,
        "images_without_label_file": 1, "images_without_objects": 2,
    }  # fmt: skip
    assert len(source.problems) == 3


def _coco(tmp_path, categories=({"id": 7, "name": "disc"}, {"id": 3, "name": "box"})):
    content = {
        "images": [{"id": 11, "file_name": "0000.png"}, {"id": 12, "file_name": "sub/0001.png"}],
        "categories": list(categories),
        "annotations": [
            {"image_id": 11, "category_id": 7, "bbox": [1, 2, 30, 40], "area": 700.0, "iscrowd": 0},
            {"image_id": 11, "category_id": 3, "bbox": [0, 0, 50, 50], "iscrowd": 1},
            {"image_id": 11, "category_id": 3, "bbox": [0, 0, 9, 9], "ignore": 1},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    return file


def test_coco_json_brings_crowds_areas_and_classes_by_name(tmp_path):
    objects = CocoFile(_coco(tmp_path), NAMES)(tmp_path / "0000.png", 96, 96)
    assert objects.labels.tolist() == [1, 0, 0]
    assert objects.boxes[0].tolist() == [1, 2, 31, 42]
    assert objects.areas.tolist() == [700, 2500, 81]
    assert objects.crowd.tolist() == [False, True, False]
    assert objects.ignore.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("part", "number", "change", "message"),
    [("annotations", 0, {"image_id": [11]}, r"annotations\[0\]: expected a number or a text as image_id, got \[11\]"),
     ("annotations", 1, {"category_id": {}}, r"annotations\[1\]: expected a number or a text as category_id, got \{\}"),
     ("images", 0, {"file_name": 5}, r"images\[0\]: expected a text as file_name, got 5"),
     ("images", 1, {"file_name": "./0000.png"}, r"images\[1\]: expected a file_name of its own, .* of images\[0\]"),
     ("images", 1, {"id": 11}, r"images\[1\]: expected an id of its own, got 11 of images\[0\]"),
     ("categories", 0, {"id": None}, r"categories\[0\]: expected a number or a text as id"),
     ("annotations", 0, {"id": 8, "iscrowd": "0"}, r"annotation 8: expected 0 or 1 as iscrowd, got '0'"),
     ("annotations", 0, {"id": 8, "ignore": []}, r"annotation 8: expected 0 or 1 as ignore, got \[\]")],
)  # fmt: skip
def test_an_odd_entry_of_a_coco_json_is_named_with_its_file(tmp_path, part, number, change, message):
    file = _coco(tmp_path)
    content = json.loads(file.read_text())
    content[part][number].update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances\.json: " + message):
        CocoFile(file, NAMES)


def test_category_ids_that_are_words_need_names(tmp_path):
    with pytest.raises(ValueError, match=r"instances\.json: categories\[1\]: expected a name .* got id 'b', name None"):
        CocoFile(_coco(tmp_path, ({"id": 1}, {"id": "b"})), NAMES)
    words = ({"id": "a", "name": "disc"}, {"id": "b", "name": "box"})
    assert CocoFile(_coco(tmp_path, words), NAMES).classes == {"a": 1, "b": 0}


def test_an_image_listed_twice_is_one_and_annotations_of_none_are_told(tmp_path, caplog):
    draw_dataset(tmp_path / "set", 4)
    file = _coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0])
    content["annotations"].append({"image_id": "11", "category_id": 7, "bbox": [1, 2, 3, 4]})
    file.write_text(json.dumps(content))
    source = open_source(str(file), NAMES, images=str(tmp_path / "set" / "images" / "val"))
    assert [len(s.objects) for s in source] == [3, 0]
    assert "1 annotations are left out, for the COCO json lists no image of their image_id" in caplog.text


def test_coco_json_as_data_takes_the_images_it_lists(tmp_path):
    draw_dataset(tmp_path / "set", 4)
    source = open_source(str(_coco(tmp_path)), NAMES, images=str(tmp_path / "set" / "images" / "val"))
    samples = list(source)
    assert [s.path.name for s in samples] == ["0000.png", "0001.png"]
    assert [len(s.objects) for s in samples] == [3, 0]


def test_categories_of_other_names_go_by_order_only_if_as_many(tmp_path):
    strangers = ({"id": 9, "name": "x"}, {"id": 4, "name": "y"})
    assert CocoFile(_coco(tmp_path, strangers), NAMES).classes == {4: 0, 9: 1}
    with pytest.raises(ValueError, match="expected categories named"):
        CocoFile(_coco(tmp_path, strangers[:1]), NAMES)


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path):
    file = _coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"] = [{"id": 11, "file_name": "x/0000.png"}, {"id": 12, "file_name": "y/0000.png"}]
    file.write_text(json.dumps(content))
    reader = CocoFile(file, NAMES)
    assert [len(reader(tmp_path / d / "0000.png", 96, 96)) for d in "xy"] == [3, 0]
    assert reader(tmp_path / "0000.png", 96, 96) is None
    draw_dataset(tmp_path / "set", 1)
    images = tmp_path / "set" / "images" / "val"
    (images / "again").mkdir()
    (images / "again" / "0000.png").write_bytes((images / "0000.png").read_bytes())
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match=r"expected one image for each entry of the COCO json, got .*again"):
        open_source(str(_coco(tmp_path / "plain")), NAMES, images=str(images))


def test_what_a_coco_json_says_of_other_classes_and_absent_images_is_not_lost_in_silence(tmp_path, caplog):
    draw_dataset(tmp_path / "set", 1)
    file = _coco(tmp_path, ({"id": 7, "name": "Disc"}, {"id": 3, "name": "crate"}))
    source = open_source(str(file), NAMES, images=str(tmp_path / "set" / "images" / "val"))
    assert [len(s.objects) for s in source] == [1]  # disc is Disc, crates are left out
    assert "1 of 2 images of the COCO json are not there" in caplog.text
    assert "2 annotations are left out, for the model has no class of that name: crate (2)" in caplog.text


@pytest.mark.parametrize("box", [None, [], [1, 2, 3], [1, 2, 3, float("nan")]])
def test_a_coco_box_that_is_none_is_named(tmp_path, box):
    file = _coco(tmp_path)
    content = json.loads(file.read_text())
    content["annotations"][1] = {"id": 77, "image_id": 11, "category_id": 3, "bbox": box}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 77: expected bbox"):
        CocoFile(file, NAMES)


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [("annotations", {"image_id": 11, "bbox": [1, 1, 2, 2]}, r"annotations\[0\]: expected image_id, category_id"),
     ("annotations", {"category_id": 7, "bbox": [1, 1, 2, 2]}, "got none of image_id"),
     ("annotations", {"image_id": 11, "category_id": 7, "bbox": ["a", 1, 2, 2]}, "expected bbox"),
     ("annotations", {"image_id": 11, "category_id": 7, "bbox": [1, 1, -2, 2]}, "expected bbox"),
     ("annotations", {"image_id": 11, "category_id": 7, "bbox": [1, 1, 2, 2], "area": "x"}, "a number as area"),
     ("images", {"id": 3}, r"images\[0\]: expected id, file_name, got none of file_name"),
     ("categories", "box", r"categories\[0\]: expected id")],
)  # fmt: skip
def test_a_coco_file_with_a_part_missing_names_it(tmp_path, part, entry, message):
    file = _coco(tmp_path)
    content = json.loads(file.read_text())
    content[part] = [entry]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        CocoFile(file, NAMES)


def test_an_area_of_null_is_the_boxs(tmp_path):
    file = _coco(tmp_path)
    content = json.loads(file.read_text())
    content["annotations"] = [{"image_id": 11, "category_id": 7, "bbox": [1, 2, 30, 40], "area": None}]
    file.write_text(json.dumps(content))
    assert CocoFile(file, NAMES)(tmp_path / "0000.png", 96, 96).areas.tolist() == [1200]


def test_class_names_of_model_and_data_are_compared(tmp_path, dataset, caplog):
    with pytest.raises(ValueError, match="expected the classes in the model's order"):
        open_source(str(dataset), {0: NAMES[1], 1: NAMES[0]})
    open_source(str(dataset), {0: NAMES[0], 1: "plate"})
    assert "1 classes are called otherwise in the model and in" in caplog.text


def test_errors_say_what_was_expected(tmp_path, dataset):
    with pytest.raises(ValueError, match="images=FOLDER"):
        open_source(str(_coco(tmp_path)), NAMES)
    with pytest.raises(ValueError, match="expected a part named 'test'"):
        open_source(str(dataset), NAMES, split="test")
    with pytest.raises(ValueError, match="expected 1 classes"):
        open_source(str(dataset), {0: "box"})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    file = tmp_path / "other.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"other\.json: expected a COCO instances file, got no JSON"):
        CocoFile(file, NAMES)
    file.write_text("null")
    with pytest.raises(ValueError, match="expected a COCO instances file, got a NoneType"):
        CocoFile(file, NAMES)
    (tmp_path / "noval.yaml").write_text("train: images\nnames: [box, disc]\n")
    with pytest.raises(ValueError, match="'val:' key missing"):
        open_source(str(tmp_path / "noval.yaml"), NAMES)
    file.write_text('{"images": [], "categories": []}')
    with pytest.raises(ValueError, match="without annotations"):
        CocoFile(file, NAMES)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (333, 500), (50, 37), (1000, 31)])
def test_padding_is_the_hosts(shape):
    """The same pixels as the host's resize and LetterBox to the shape its rect batches would have."""
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    padded, frame = letterbox(image, 320, 32)
    ratio = 320 / max(shape)
    w, h = min(int(np.ceil(shape[1] * ratio)), 320), min(int(np.ceil(shape[0] * ratio)), 320)
    resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR) if (h, w) != shape else image
    expected = LetterBox(frame.shape, auto=False, scaleup=False)(image=resized)
    assert np.array_equal(padded, expected)
    assert all(side % 32 == 0 for side in frame.shape)
    corners = np.array([[frame.pad[0], frame.pad[1], frame.pad[0] + w, frame.pad[1] + h]])
    np.testing.assert_allclose(frame.to_image(corners), [[0, 0, shape[1], shape[0]]], atol=1e-9)


def test_batches_hold_one_shape_lose_nothing_and_wait_little(dataset):
    samples = list(open_source(str(dataset), NAMES))
    groups = list(batches(samples, 96, 32, True, 2))
    assert sorted(s.index for g in groups for s, _, _ in g) == list(range(6))
    for group in groups:
        assert len(group) <= 2
        assert len({image.shape for _, image, _ in group}) == 1
