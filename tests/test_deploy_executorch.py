"Models for phones: programs of ExecuTorch, compared with PyTorch"
import json
import sys

import numpy as np
import pytest
import torch

from conftest import picture
from dho_nb.core.errors import DhoError
from dho_nb.deploy.checkpoints import load_checkpoint
from dho_nb.deploy.export import _reference_probabilities, export
from dho_nb.students.dual_head import build_student, save_student


def student(file, spec, size, heads=2):
    "A random student whose heads have opinions"
    made = build_student(spec, 3, heads, size=size)
    torch.manual_seed(1)
    for head in filter(None, (made.model.ce_head, made.model.kd_head)): torch.nn.init.normal_(head.weight, std=.3)
    save_student(made, file, spec=spec, classes=["cat", "dog", "größer"], alpha=.3, beta=.5)
    return file


def test_without_executorch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(DhoError, match=r"executorch is not installed: pip install 'dho_nb\[executorch\]'"):
        export(student(tmp_path/"s.safetensors", "tiny", 16), tmp_path/"out", "executorch", images=picture(tmp_path/"a.png"))
    assert not [*tmp_path.glob("out/model*")]


@pytest.mark.parametrize("spec, size, heads", [("tiny", 16, 2), ("tiny", 16, 1)])
def test_a_program_says_what_pytorch_says_and_carries_its_facts(tmp_path, spec, size, heads):
    pytest.importorskip("executorch", reason="needs pip install 'dho_nb[executorch]'")
    from executorch.runtime import Runtime
    files = [str(picture(tmp_path/f"{i}.png", i)) for i in range(5)]
    made = export(student(tmp_path/"s.safetensors", spec, size, heads), tmp_path/"out", "executorch", images=files)
    assert made.loc["model.pte", "checked"] == 5 and made.loc["model.pte", "largest_difference"] < 1e-4
    data = (tmp_path/"out"/"model.pte").read_bytes()
    program, (model, facts) = Runtime.get().load_program(data), load_checkpoint(tmp_path/"s.safetensors")
    about = json.loads(program.load_method("dho_nb").execute([])[0])
    assert about["classes"] == facts["classes"] and about["preprocess"]["size"] == size and str(tmp_path).encode() not in data
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    answers = program.load_method("forward").execute([torch.from_numpy(pixels)])
    assert len(answers) == 2*heads - 1
    for p, q in zip(answers, _reference_probabilities(model, facts, pixels)): np.testing.assert_allclose(p.numpy(), q, atol=1e-4)
