"The paper's experiments by name: every row is a configuration, every set-up can be rehearsed without data, weights or GPU"
import pytest

from dho_nb.runs.config import preset
from dho_nb.runs.presets import ALL
from dho_nb.runs.dry_run import dry_run

SETUPS = [n for n in ALL if n.count("/") <= 1]


def test_every_row_of_the_tables_is_a_configuration():
    made = {name: preset(name) for name in ALL}
    shown = {f"table{k}" for k in (1, 2, 3, 5, 6, 13, 14, 15, 17, 18, 19)} | {f"figure{k}" for k in (3, 6, 9, 13)}
    assert shown <= {n.split("/")[1] for n in ALL if "/" in n}
    assert {c.method for c in made.values()} == {"ce", "ce-kd-feature", "dhkd", "dho", "dho-f", "dkd", "dkd-dho", "kd", "pcgrad",
                                                 "sho", "sskd", "wkd", "wkd-dho"}, "the methods of the paper's tables"
    assert made["paper/table1/imagenet-fewshot-resnet18/dho-f"].teacher_head == "tip-adapter-f"
    assert made["paper/table2/imagenet-linear-vitb16-from-vitl14/dho-labeled-only"].unlabeled is False


@pytest.mark.parametrize("name", SETUPS)
def test_set_ups_can_be_rehearsed(name):
    told = dry_run(preset(name))
    counts = {"paper/imagenet-lowshot-vitb16-from-vith14": "87,217,640", "paper/fewshot-resnet18": "11,279,112"}
    assert told["parameters"].startswith(counts.get(name, "")) and float(told["loss of a step on noise"]) > 0
    if name == "paper/imagenet-linear-vitb16-from-vitl14":
        assert told["parameters"].endswith("of which 1,025,000 learn")


def test_from_the_command_line(dho):
    code, out, _ = dho("presets", "table17")
    assert code == 0 and out.count("\n") >= 3 and "80 h" in out
    code, out, err = dho("run", "paper/table14/imagenet-fewshot-resnet18/dkd-dho", "--dry", "--shots", "16")
    assert code == 0 and "16,000" in out and "teacher's store" in out, err
    code, _, err = dho("run", "paper/tabel14/imagenet-fewshot-resnet18/dkd-dho", "--dry")
    assert code == 2 and "did you mean" in err
    code, _, err = dho("run", "paper/table13/fewshot-resnet18/dho", "--dataset", "dtd")
    assert code == 2 and "dtd" in err and "data get" in err
