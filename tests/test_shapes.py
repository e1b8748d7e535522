from __future__ import annotations

import cv2
import numpy as np
import pytest
from ultralytics.data.utils import check_det_dataset

from tscode_yolo import shapes


def test_the_same_images_every_time():
    a, b = (shapes.draw(np.random.default_rng([1, 5, 128]), 128) for _ in range(2))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    other = shapes.draw(np.random.default_rng([1, 6, 128]), 128)
    assert not np.array_equal(a[0], other[0])


def test_boxes_are_inside_the_image_and_tight_around_their_object():
    for i in range(20):
        _, rows = shapes.draw(np.random.default_rng([0, i, 160]), 160)
        x, y, w, h = rows[:, 1:].T
        assert set(rows[:, 0]) <= set(range(len(shapes.NAMES)))
        for low, high in ((x - w / 2, x + w / 2), (y - h / 2, y + h / 2)):
            assert (low >= -1e-9).all()
            assert (high <= 1 + 1e-9).all()


def test_a_ring_has_a_hole_and_a_disc_has_none():
    def filled(name: str) -> list[bool]:
        out = []
        for i in range(60):
            mask = shapes._mask(np.random.default_rng(i), 200, shapes.NAMES.index(name))
            ys, xs = np.nonzero(mask)
            inside = ys.min() > 0 and ys.max() < 199 and xs.min() > 0 and xs.max() < 199
            if len(ys) > 200 and inside:
                out.append(bool(mask[round(ys.mean()), round(xs.mean())]))
        return out

    assert any(filled("disc"))
    assert all(filled("disc"))
    assert not any(filled("ring"))


def test_every_class_and_small_and_large_objects_occur():
    rows = np.concatenate([shapes.draw(np.random.default_rng([0, i, 320]), 320)[1] for i in range(40)])
    assert set(rows[:, 0]) == {0, 1, 2, 3}
    side = np.sqrt(rows[:, 3] * rows[:, 4]) * 320
    assert (side < 32).mean() > 0.2
    assert (side > 96).mean() > 0.1


def test_a_run_that_breaks_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw", broken)
    with pytest.raises(KeyboardInterrupt):
        shapes.make_shapes(tmp_path / "set", {"train": 2})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not made by tscode_yolo, so it is left alone"):
        shapes.make_shapes(tmp_path / "set", {"train": 2})
    assert (tmp_path / "set/precious.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_set_made_before_is_replaced(tmp_path):
    shapes.make_shapes(tmp_path / "set", {"train": 3}, size=64)
    shapes.make_shapes(tmp_path / "set", {"train": 2}, size=64)
    assert len(list((tmp_path / "set/images/train").iterdir())) == 2


def test_sizes_too_small_to_draw_in_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 64 pixels, got 32"):
        shapes.make_shapes(tmp_path / "set", size=32)


def test_the_host_finds_and_makes_the_set_by_bare_name(tmp_path, monkeypatch):
    import ultralytics.data.utils as host

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host, "DATASETS_DIR", tmp_path)
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    data = check_det_dataset("shapes.yaml")
    assert data["names"] == dict(enumerate(shapes.NAMES))
    assert len(list((tmp_path / "tscode-shapes/images/train").iterdir())) == 3
    assert cv2.imread(str(tmp_path / "tscode-shapes/images/val/00000.jpg")).shape == (320, 320, 3)
    labels = (tmp_path / "tscode-shapes/labels/val/00001.txt").read_text().split("\n")
    assert len(labels[0].split()) == 5


def test_a_users_own_shapes_yaml_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "shapes.yaml").write_text(f"path: {tmp_path}\ntrain: own\nval: own\nnames: [mine]\n")
    assert check_det_dataset("shapes.yaml")["names"] == {0: "mine"}
