"open_clip's pretrained models by family: the table of the page on teachers, checked against a fresh run of its quick part"
import importlib.util
import socket
from types import SimpleNamespace

import open_clip
import pandas as pd
import pytest

import families
from dho_nb.core.errors import DhoError
from dho_nb.teachers.clip import _address, clip_preprocess_from_config, clip_resize_mode, load_teacher, resolve_teacher
from dho_nb.teachers.encoders import _processor_preprocess, TransformersEncoder

PAIRS = open_clip.list_pretrained()
QUICK = ("CLIP ViT (OpenAI, LAION, DataComp, CommonPool)", "CLIP ResNet", "CoCa", "MobileCLIP 2", "CLIPA", "NLLB-CLIP", "CLIP with a RoBERTa text encoder")


@pytest.fixture(scope="module")
def record(): return pd.read_csv(families.RECORD, keep_default_na=False).set_index("family")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    "No network, and a cache of its own"
    def refuse(*args, **kwargs): raise OSError("this test has no network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache")); monkeypatch.setenv("DHO_DEVICE", "cpu"); monkeypatch.setenv("DHO_PROGRESS", "none")


def has_transformers(family):
    "Skip a family whose tokenizer is one of the transformers library, where that is missing"
    if family.tokens and importlib.util.find_spec("transformers") is None: pytest.skip("the extra siglip is not installed")


def test_every_pretrained_pair_is_in_the_table_by_family(record):
    for model, tag in PAIRS:
        fits = [f for f in families.FAMILIES if f is families.family_of(model, tag)]
        assert len(fits) == 1, (model, tag)
    assert record["pairs"].sum() == len(PAIRS) == sum(len(families.pairs(f)) for f in families.FAMILIES)
    assert {f.name for f in families.FAMILIES} | {*families.UNSUPPORTED} == {*record.index}
    for name in families.UNSUPPORTED: assert record.loc[name, "why_not"] and not record.loc[name, [*families.CHECKS]].any()


@pytest.mark.parametrize("name", QUICK)
def test_the_table_is_what_a_fresh_run_finds(name, record, alone, tmp_path):
    family = next(f for f in families.FAMILIES if f.name == name)
    has_transformers(family)
    fresh = families.row(family, families.check(family, tmp_path))
    assert {k: str(v) for k, v in fresh.items() if k != "family"} == {k: str(v) for k, v in record.loc[name].items()}
    assert all(fresh[c] for c in families.CHECKS)


@pytest.mark.parametrize("model, tag", PAIRS)
def test_a_pair_resolves_and_its_pictures_can_be_made(model, tag):
    spec, known = f"{model}/{tag}", open_clip.get_pretrained_cfg(model, tag) or {}
    assert resolve_teacher(spec) == (model, tag)
    assert clip_resize_mode(spec) == (known.get("resize_mode") or "shortest")
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    made = clip_preprocess_from_config({**families.published_preprocess(model, tag), "size": size,
                                        **{k: known.get(k) or (.5, .5, .5) for k in ("mean", "std")}})
    assert made.size == size and made.resize_mode == clip_resize_mode(spec)


@pytest.mark.parametrize("model, tag", [families.pairs(f)[0] for f in families.FAMILIES])
def test_the_message_lists_the_files_of_an_offline_folder(model, tag):
    family, (address, files) = families.family_of(model, tag), _address(model, tag)
    assert address.startswith("https://huggingface.co/") and ("give that folder as teacher" in files or f"give it as {model}/FILE" in files)
    texts = open_clip.get_model_config(model)["text_cfg"]
    assert (f"tokenizer.json and tokenizer_config.json from https://huggingface.co/{texts.get('hf_tokenizer_name')}" in files) == bool(family.tokens)
    assert (f"config.json from https://huggingface.co/{texts.get('hf_model_name')}" in files) == bool(family.encoder)


@pytest.mark.parametrize("lacks", ["tokenizer", "tokenizer.json", "config.json"])
def test_a_folder_that_lacks_a_file_says_which(lacks, alone, tmp_path):
    family = next(f for f in families.FAMILIES if f.encoder == "roberta")
    has_transformers(family)
    folder = families.write_folder(family, tmp_path/"teacher")
    for file in folder.glob(f"{lacks}*"): file.unlink()
    with pytest.raises(DhoError, match="its folder lacks .*from https://huggingface.co/roberta-base") as caught: load_teacher(str(folder))
    assert ("tokenizer.json" in str(caught.value)) == lacks.startswith("tokenizer") and "internet" not in str(caught.value)


def test_pictures_of_their_own_aspect_are_refused():
    with pytest.raises(DhoError, match="NaFlex.*only squares"): _processor_preprocess(SimpleNamespace(max_num_patches=256, patch_size=16))


def test_an_encoder_of_sounds_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra siglip is not installed")
    if not hasattr(transformers, "ClapModel"): pytest.skip("another test put an empty transformers in its place")
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, projection_dim=16)
    config = transformers.ClapConfig(text_config=dict(small, vocab_size=64), projection_dim=16,
                                     audio_config=dict(small, depths=[1, 1], num_attention_heads=[2, 2], patch_embeds_hidden_size=16, spec_size=64,
                                                       num_mel_bins=16, window_size=2))
    transformers.ClapModel(config).save_pretrained(tmp_path/"clap")
    with pytest.raises(DhoError, match="ClapModel, which has no encoder of images"): TransformersEncoder(str(tmp_path/"clap"))
