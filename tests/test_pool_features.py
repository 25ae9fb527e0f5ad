"A vision-only embedding of the pool: computed once, by the right weights"
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dho_nb.core.errors import DhoError
from dho_nb.runs import pool_features as module
from dho_nb.runs.config import preset
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.pool_features import load_pool_encoder, pool_features, principal_components
from dho_nb.teachers.pool_heads import neighbors


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


def test_what_cannot_be_loaded_is_said(digits):
    config, data = digits
    with pytest.raises(DhoError, match="no pretrained weights"): pool_features(config, data, "tiny")
    with pytest.raises(DhoError): pool_features(config, data, "timm:no_such_network")
    with pytest.raises(DhoError, match="encodes no texts"): load_pool_encoder("tiny", "").encode_texts(["a digit"])
