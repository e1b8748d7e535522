"""The curves of the classification loss: what is read of a results.csv, what is refused, what is only left out."""

from __future__ import annotations

import pytest

from tscode_yolo.align import main
from tscode_yolo.align.curves import Run, measured, plot_curves, read_results

CSV = "epoch, train/cls_loss, val/cls_loss\n1,2.0,2.5\n2,1.0,1.5\n"


def test_epochs_without_validation_are_no_points_of_the_curve():
    assert measured([1, 2, 3, 4, 5, 6], [0.0, 0.0, 3.0, 3.0, 2.0, 2.5]) == ([3, 5, 6], [3.0, 2.0, 2.5])
    assert measured([1, 2], [0.0, 0.0]) == ([], [])


def test_curves_read_padded_names_and_refuse_other_files(tmp_path):
    (tmp_path / "results.csv").write_text(CSV)
    run = read_results(tmp_path)
    assert run == Run("cls_loss", epoch=[1, 2], train=[2, 1], val=[2.5, 1.5])
    lines = plot_curves({"a": run, "b": run}).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[2, 1], [2.5, 1.5]] * 2
    for content, message in (
        (CSV.replace("1.5", ""), r"results\.csv:3: expected a number in val/cls_loss, got 'nothing'"),
        (CSV.replace("1.5", "x"), r"results\.csv:3: expected a number in val/cls_loss, got 'x'"),
        (CSV.replace(",1.5", ""), r"results\.csv:3: expected a number in val/cls_loss"),
        ("", "at least one epoch"),
        ("\0\0", r"results\.csv"),
    ):
        (tmp_path / "results.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_results(tmp_path)
    (tmp_path / "results.csv").write_bytes(b"epoch,\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"results\.csv, which is no CSV text"):
        read_results(tmp_path)
    (tmp_path / "results.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"losses as train/\.\.\., got .*, which begins with epoch, loss"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"results\.csv"):
        read_results(tmp_path / "none")


def test_curves_of_recipes_without_cls_loss_are_the_sum_of_its_halves(tmp_path):
    """autoassign and dw write pos_loss and neg_loss; the legend says that the sum is drawn."""
    file = tmp_path / "results.csv"
    file.write_text("epoch,train/pos_loss,train/neg_loss,train/ctr_loss,val/pos_loss,val/neg_loss\n1,2,0.5,9,3,1\n")
    run = read_results(file)
    assert run == Run("pos_loss + neg_loss", epoch=[1], train=[2.5], val=[4])
    labels = [line.get_label() for line in plot_curves({"a": run}).axes[0].lines]
    assert labels == ["a: training (pos_loss + neg_loss)", "a: validation (pos_loss + neg_loss)"]
    file.write_text("epoch,train/box_loss,train/cls_loss\n1,2,3\n")
    assert [line.get_label() for line in plot_curves({"a": read_results(file)}).axes[0].lines] == ["a: training"]


def test_a_training_without_a_classification_loss_costs_only_its_curve(tmp_path, checkpoint, dataset, caplog):
    (tmp_path / "results.csv").write_text("epoch,train/loss,metrics/accuracy_top1\n1,2,3\n")
    args = {"model": checkpoint, "data": str(dataset), "imgsz": 96, "resamples": 0, "examples": 0, "cam": 0}
    out = tmp_path / "out"
    assert main({**args, "results": str(tmp_path), "out": str(out), "verbose": False}) == 0
    assert "has no classification loss (cls_loss, or pos_loss and neg_loss), only train/loss" in caplog.text
    assert "Classification loss" not in (out / "report.html").read_text()
