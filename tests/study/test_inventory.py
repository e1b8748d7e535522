"""Data sets: what is in them, what their hash depends on, and what may judge a model."""

from __future__ import annotations

import shutil

import pytest

from tscode_yolo.study.inventory import read_dataset, require_unseen, seen_in_training


def test_a_data_set_is_read_as_the_host_would(drawn):
    data = read_dataset(drawn)
    assert data.name == "drawn"
    assert data.names == ("box", "disc")
    assert {k: len(v) for k, v in data.images.items()} == {"train": 8, "val": 4}
    assert str(drawn.parent) not in str(data.as_dict())


def test_the_hash_follows_content_not_place(drawn, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(drawn.parent, copy)
    before = read_dataset(drawn).sha256
    assert read_dataset(copy / "data.yaml").sha256 == before
    label = next((copy / "labels" / "val").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    assert read_dataset(copy / "data.yaml").sha256 != before


def test_a_text_file_may_list_the_images(drawn, tmp_path):
    images = sorted((drawn.parent / "images" / "val").glob("*.png"))
    (tmp_path / "val.txt").write_text("\n".join(map(str, images[:3])) + "\n")
    (tmp_path / "listed.yaml").write_text(
        f"train: {drawn.parent / 'images/train'}\nval: {tmp_path / 'val.txt'}\nnames: [box, disc]\n"
    )
    assert len(read_dataset(tmp_path / "listed.yaml").images["val"]) == 3


def test_a_final_set_must_be_unseen_and_of_the_same_classes(drawn, draw, tmp_path):
    trained = read_dataset(drawn)
    with pytest.raises(ValueError, match="got 4 that are also in drawn"):
        require_unseen(trained, "val", trained)
    fresh = read_dataset(draw(tmp_path / "fresh", seed=77))
    require_unseen(fresh, "val", trained)
    with pytest.raises(ValueError, match="expected a 'test' split"):
        require_unseen(fresh, "test", trained)
    yaml = tmp_path / "fresh" / "data.yaml"
    yaml.write_text(yaml.read_text().replace("disc", "ring"))
    with pytest.raises(ValueError, match="expected the classes of drawn"):
        require_unseen(read_dataset(yaml), "val", trained)


def test_hidden_files_are_no_images_as_in_the_host(draw, tmp_path):
    data = draw(tmp_path / "cells")
    (tmp_path / "cells/images/val/._val0.png").write_bytes(b"of a Mac")
    assert len(read_dataset(data).images["val"]) == 4


def test_val_images_that_are_in_train_too_are_counted(drawn, tmp_path):
    assert seen_in_training(read_dataset(drawn)) == ""
    images = drawn.parent / "images"
    (tmp_path / "leak.yaml").write_text(f"train: {images}\nval: {images / 'val'}\nnames: [box, disc]\n")
    assert seen_in_training(read_dataset(tmp_path / "leak.yaml")).startswith(
        "leak: 4 of 4 val images are also in train"
    )
