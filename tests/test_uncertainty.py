"Counts with their intervals, wherever a person reads an accuracy"
import pandas as pd

from conftest import picture
from dho_nb.core.files import read_json
from dho_nb.deploy.model_card import _figures, quantization_text
from dho_nb.evaluation.metrics import count_text


def test_eight_of_eight_is_not_certainty():
    assert count_text(8, 8) == "8 of 8 (95 %: 68–100)" and count_text(0, 0) == "no images" and count_text(45123, 50000).startswith("45,123 of 50,000 (95 %: 90–91")


def test_a_cards_accuracy_has_its_interval():
    scores = pd.DataFrame(dict(accuracy=[1., .75], nll=[.1, .2], ece=[.1, .2]), index=["CE head", "both"])
    card = _figures({}, dict(tested=8, dataset="mine", teacher_accuracy=.5, teacher_nll=1.5, teacher_ece=.1), scores, None)
    assert "| 8 of 8 (95 %: 68–100) |" in card and "| 6 of 8 (95 %: 41–93) |" in card and "| 4 of 8 (95 %: 22–78) |" in card and "| 1 |" not in card


def test_what_int8_costs_is_counted_and_changed_answers_are_a_warning():
    facts = dict(calibrated=9, calibrated_on="train images", scored=200, on="test images", accuracy=.9, accuracy_before=.95, same=.93)
    said = quantization_text(facts)
    assert "It is right about 180 of 200 (95 %: 85–93). The model before was right about 190 of 200" in said and "**14 answers change.**" in said
    alone = quantization_text(dict(facts, accuracy=None, accuracy_before=None, same=1.))
    assert "right about" not in alone and "the same for 200 of 200" in alone and "change" not in alone


def test_the_table_of_a_run_and_its_labels_are_counts(tmp_path, monkeypatch, capsys):
    from dho_nb.cli.main import main
    for name in ("cat", "dog"):
        for i in range(6): picture(tmp_path/"tree"/name/f"{i}.png", seed=i + 9*(name == "dog"))
    picture(tmp_path/"tree"/"cow"/"0.png", seed=77), picture(tmp_path/"tree"/"cow"/"1.png", seed=78), picture(tmp_path/"tree"/"cow"/"2.png", seed=79)
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs")), monkeypatch.setenv("DHO_DEVICE", "cpu"), monkeypatch.setenv("DHO_PROGRESS", "none")
    small = ["--teacher", "digits", "--student", "tiny", "--student-weights", "", "--size", "16", "--epochs", "1", "--flip", "0"]
    assert main(["distill", "--images", str(tmp_path/"tree"), "--shots", "4", "--test", "3", *small, "--out", str(tmp_path/"run")]) == 0
    out, result = capsys.readouterr().out, read_json(tmp_path/"run"/"result.json")
    assert count_text(round(3*result["accuracy"]), 3) in out and "of 3 (95 %: " in out.split("teacher, zero-shot")[1]
    assert f"{result['labeled']} (up to 4 per class)" in out and result["labeled"] < 12
    assert main(["evaluate", str(tmp_path/"run"), "--dataset", str(tmp_path/"tree"), "--split", "train"]) in (0, None)
    out = capsys.readouterr().out
    assert out.count("of 15 (95 %: ") == 3 and "right" in out and " accuracy" not in out
