"A vision-only embedding of the pool: computed once, by the right weights"
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from conftest import fails
from dho_nb.core.errors import DhoError
from dho_nb.runs import pool_features as module
from dho_nb.runs.config import preset
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.pool_features import load_pool_encoder, pool_features, principal_components
from dho_nb.runs.run import distill
from dho_nb.teachers.pool_heads import neighbors, pool_head_logits


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache")); monkeypatch.setenv("DHO_DEVICE", "cpu"); monkeypatch.setenv("DHO_PROGRESS", "none")
    config = preset("digits")
    return config, open_dataset(config)


def weights_file(place, seed):
    torch.manual_seed(seed)
    from dho_nb.students.backbones import build_backbone
    save_file({k: v.contiguous() for k, v in build_backbone("tiny").module.state_dict().items()}, place)
    return str(place)


def test_features_are_computed_once_and_are_the_backbones(digits, monkeypatch):
    config, data = digits
    state = torch.random.get_rng_state()
    first = pool_features(config, data)
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's random numbers change"
    monkeypatch.setattr(module, "load_pool_encoder", lambda *a, **k: pytest.fail("all features are stored"))
    assert torch.equal(pool_features(config, data), first) and torch.equal(pool_features(config, data, "student"), first)
    from dho_nb.data.loaders import ImageLoader, load_views
    encoder = load_pool_encoder(config.student, config.student_weights, config.size, config.student_args)
    own = encoder.encode_images(load_views(ImageLoader(data.manifest, data.root), data.train[:9], [encoder.preprocess])[0])
    assert torch.allclose(own, first[:9].float(), atol=2e-3)


def test_other_weights_are_another_store(digits, tmp_path):
    config, data = digits
    one, other = (replace(config, student_weights=weights_file(tmp_path/f"{seed}.safetensors", seed)) for seed in (1, 2))
    assert not torch.equal(pool_features(one, data), pool_features(other, data))
    weights_file(tmp_path/"1.safetensors", 2)
    assert torch.equal(pool_features(one, data), pool_features(other, data)), "the content counts, not the name"
    assert len([*(tmp_path/"cache"/"stores").glob("digits-features-*")]) == 2


def test_an_encoder_of_timm_sees_what_is_alike(digits):
    config, data = digits
    config = replace(config, student="timm:mobilenetv3_small_050", student_weights="", size=32)
    components = principal_components(pool_features(config, data), 32)
    labels = torch.from_numpy(data.manifest.table["label"].to_numpy(np.int64, copy=True))[data.train]
    nearest = neighbors(torch.nn.functional.normalize(components, dim=1), 1)[1][:, 0]
    assert (labels[nearest] == labels).float().mean() > .5, "untrained features already find the same digit"


def test_an_image_of_which_the_network_sees_nothing_has_features(digits, monkeypatch):
    "A network that ends in ReLU returns zeros alone for smooth images, and a store takes zeros for missing"
    class Blind(torch.nn.Module):
        def forward(self, x): return torch.relu(x.mean((2, 3)) - 10)
    blind = module.BackboneEncoder("tiny", "")
    monkeypatch.setattr(blind, "module", Blind())
    features = torch.nn.functional.normalize(blind.encode_images(torch.zeros(2, 3, 8, 8)), dim=1)
    assert torch.allclose(features, torch.full_like(features, 3**-.5))


@pytest.mark.parametrize("size, weights, side", [(0, "pretrained", 0), (32, "pretrained", 112), (160, "pretrained", 160), (32, "", 32)])
def test_a_pretrained_backbone_sees_images_that_are_large_enough(size, weights, side):
    assert module._pool_source(preset("digits", size=size, student_weights=weights), "student")[2] == side


def test_what_cannot_be_loaded_is_said(digits):
    config, data = digits
    with pytest.raises(DhoError, match="no pretrained weights"): pool_features(config, data, "tiny")
    with pytest.raises(DhoError): pool_features(config, data, "timm:no_such_network")
    with pytest.raises(DhoError, match="encodes no texts"): load_pool_encoder("tiny", "").encode_texts(["a digit"])


def test_a_second_embedding_helps_where_the_first_mixes_classes_up():
    "Two encoders, each of which maps two classes to almost the same place; together they tell all four apart"
    draw = torch.Generator().manual_seed(0)
    truth = torch.arange(400) % 4
    spread = lambda groups: F.normalize(F.one_hot(groups, 8) + .2*F.one_hot(truth + 4, 8) + .15*torch.randn(400, 8, generator=draw), dim=1)
    first, second = spread(truth//2), spread(truth % 2 + 2*(truth == 3))
    labeled, text = torch.arange(8), F.normalize(torch.ones(4, 8), dim=1)
    right = lambda head, **more: (pool_head_logits(first, text, .1, labeled, truth[labeled], head, **more).argmax(1) == truth)[8:].float().mean()
    features = (second, neighbors(second))
    for head in ("mixture", "combined"): assert right(head) < .7 and right(head, second=features) > right(head) + .2
    assert right("open-set", second=features) > .9


def test_the_open_set_head_is_seldom_sure_of_classes_that_nobody_named():
    "Strangers lie near a named class for CLIP, and apart from it for the second encoder"
    draw = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 3  # 2 is the strangers'
    spread = lambda groups: F.normalize(F.one_hot(groups, 8).float() + .1*torch.randn(300, 8, generator=draw), dim=1)
    first, second = spread(truth.clamp(max=1)), spread(truth)
    labeled, strange = torch.tensor([0, 1, 3, 4]), truth == 2
    sure = lambda head: pool_head_logits(first, torch.eye(2, 8), .1, labeled, truth[labeled], head,
                                         second=(second, neighbors(second))).softmax(1).amax(1) >= .9
    assert sure("combined")[strange].float().mean() > .5 > 2*sure("open-set")[strange].float().mean()


@pytest.mark.parametrize("options, said", [
    (dict(method="dho", pool_features="student"), "pool_features belongs to methods"),
    (dict(method="dho-plus", pool_head="linear", pool_features="student"), "uses no pool_features"),
    (dict(method="dho-plus", pool_head="open-set"), "add pool_features='student'")])
def test_options_that_contradict_each_other_are_refused(options, said): fails(lambda: preset("digits", **options), said)


def test_a_run_learns_from_both_and_is_another_run(digits, tmp_path):
    config, _ = digits
    config = replace(config, method="dho-plus", epochs=1, fraction=0., shots=2)
    one, two = (distill(replace(config, pool_features=f), tmp_path/f"run{f}", "none") for f in ("", "student"))
    assert one.identity != two.identity and two.result["pool_features"] == "student" and "pool_features" not in one.result
    assert (tmp_path/"run"/"model.safetensors").read_bytes() != (tmp_path/"runstudent"/"model.safetensors").read_bytes()


def test_images_that_the_open_set_head_doubts_do_not_teach_the_student(digits, monkeypatch):
    from dho_nb.runs.identity import run_identity
    from dho_nb.runs.run import Run
    config = replace(digits[0], method="dho-plus", pool_features="student", pool_head="open-set", epochs=1)
    pool = {}
    for head in ("open-set", "combined"):
        run = Run(replace(config, pool_head=head), mode="none")
        pool[head] = run.training._pool_probabilities(run.inputs.method)[run.inputs.data.train]
        run.release()
    silent = (pool["open-set"] == 0).all(1)
    assert .05 < silent.float().mean() < .95 and pool["open-set"][~silent].amax(1).min() >= .7
    assert torch.allclose(pool["combined"].sum(1), torch.ones(len(silent)), atol=1e-4)
    same = lambda: run_identity(config, digits[1].manifest)
    before = same()
    monkeypatch.setattr("dho_nb.runs.identity.LEAST_KNOWN", .6)
    assert same() != before, "another threshold is another run"
