"""The families of open_clip's pretrained models: which they are, and a folder of each as one would copy it to a machine without internet.

`python tests/families.py` writes `nbs/explain/families.csv`, which the page on teachers shows."""
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT/"nbs"/"explain"/"families.csv"
CHECKS = ("loads", "pixels", "zero_shot", "stored", "offline_folder")


@dataclass(frozen=True)
class Family:
    "Models that share their code"
    name:str       # As people call it
    models:str     # Regular expression of open_clip's names
    tested:str     # The smallest of them
    tags:str=""    # Regular expression of pretrained tags, where the name alone does not tell
    tokens:str=""  # How its tokenizer ends a text, where that is one of the transformers library
    encoder:str="" # Model type of its text encoder in the transformers library


FAMILIES = (
    Family("MetaCLIP 2", r"ViT-.*-worldwide.*", "ViT-H-14-worldwide", tokens="<s> $A </s>"),
    Family("DFN", r"ViT-.*", "ViT-B-16", tags="dfn.*"),
    Family("MetaCLIP", r"ViT-(?!.*worldwide).*", "ViT-B-32", tags="metaclip.*"),
    Family("SigLIP 2", r"ViT-.*SigLIP2.*", "ViT-B-32-SigLIP2-256", tokens="$A <eos>"),
    Family("SigLIP", r"ViT-.*SigLIP(?!2).*", "ViT-B-16-SigLIP", tokens="$A </s>"),
    Family("CLIPA", r"ViT-.*CLIPA.*", "ViT-L-14-CLIPA", tokens="[CLS] $A [SEP]"),
    Family("CLIP ViT (OpenAI, LAION, DataComp, CommonPool)", r"ViT-(B|L|H|g|bigG)-\d+(-336|-378|-256|-plus-240)?(-quickgelu)?", "ViT-B-32"),
    Family("CLIP ResNet", r"RN\d+(x\d+)?(-quickgelu)?", "RN50"),
    Family("CLIP with a RoBERTa text encoder", r"(xlm-)?roberta-.*", "roberta-ViT-B-32", tokens="<s> $A </s>", encoder="roberta"),
    Family("NLLB-CLIP", r"nllb-clip-.*", "nllb-clip-base", tokens="$A </s>", encoder="m2m_100"),
    Family("CLIP ConvNeXt", r"convnext_.*", "convnext_base"),
    Family("CoCa", r"coca_.*", "coca_ViT-B-32"),
    Family("EVA-CLIP", r"EVA0\d.*", "EVA02-B-16"),
    Family("MobileCLIP", r"MobileCLIP-.*", "MobileCLIP-S1"),
    Family("MobileCLIP 2", r"MobileCLIP2-.*", "MobileCLIP2-S0"),
    Family("ViTamin", r"ViTamin-.*", "ViTamin-S"),
    Family("Perception Encoder (PE-Core)", r"PE-Core-.*", "PE-Core-T-16-384"))

UNSUPPORTED = {
    "SigLIP 2 NaFlex": "keeps a picture's own aspect, and views here are squares of one size; the versions of one size work",
    "CLAP": "encodes sounds, not images"}


def family_of(model, tag):
    "The family of a pretrained pair"
    fits = [f for f in FAMILIES if re.fullmatch(f.models, model) and re.fullmatch(f.tags or ".*", tag)]
    return fits[0] if fits else None


def pairs(family):
    "A family's pretrained pairs"
    return [(m, t) for m, t in open_clip.list_pretrained() if family_of(m, t) is family]


def published_preprocess(model, tag):
    "What a pair's pictures are made into, as open_clip lists it"
    known = open_clip.get_pretrained_cfg(model, tag) or {}
    return {k: known[k] for k in ("mean", "std", "interpolation", "resize_mode") if known.get(k) is not None}


def small_config(family):
    "The tested model's configuration with two layers of open_clip's own towers; towers of timm stay as they are"
    config = open_clip.get_model_config(family.tested)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" not in vision: vision["layers"] = [1, 1, 1, 1] if isinstance(vision["layers"], list) else 2
    if "hf_model_name" not in text: text["layers"] = 2
    if family.tokens: text["vocab_size"] = 512
    if family.encoder: text.pop("vocab_size")
    if "multimodal_cfg" in config: config["multimodal_cfg"]["layers"] = 1
    return config


def write_tokenizer(folder, ends):
    "A tokenizer of characters, with a family's special tokens, as the transformers library saves it"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    special = [t for t in ends.split() if t != "$A"]
    words = {w: i for i, w in enumerate(dict.fromkeys(["<pad>", "<unk>", *special, *map(chr, range(32, 127))]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single=ends, special_tokens=[(t, words[t]) for t in special])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=special[-1], sep_token=special[-1],
                            cls_token=special[0]).save_pretrained(folder)


def write_encoder(folder, kind):
    "The shape of a small text encoder, as the transformers library saves it"
    from transformers import AutoConfig
    small = dict(roberta=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=512),
                 m2m_100=dict(d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
                              encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=512))[kind]
    AutoConfig.for_model(kind, **small).save_pretrained(folder)


def write_folder(family, folder):
    "The folder of a family's tested model with random weights: all that a machine without internet needs"
    folder.mkdir(parents=True)
    if family.tokens: write_tokenizer(folder, family.tokens)
    if family.encoder: write_encoder(folder, family.encoder)
    model, tag = next((m, t) for m, t in pairs(family) if m == family.tested)
    config = dict(model_cfg=small_config(family), preprocess_cfg=published_preprocess(model, tag))
    (folder/"open_clip_config.json").write_text(json.dumps(config))
    text = dict(config["model_cfg"]["text_cfg"], hf_model_name=str(folder), hf_model_pretrained=False) if family.encoder else None
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **({"text_cfg": text} if text else {}))
    save_file({k: v.clone().contiguous() for k, v in made.state_dict().items()}, folder/"open_clip_model.safetensors")
    return folder


def pictures(folder, count=4):
    "Oblong pictures of two classes whose pixels vary slowly"
    for k in range(count):
        file = folder/("cat", "dog")[k % 2]/f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(k).integers(0, 255, (5, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize([(361, 187), (187, 361)][k//2 % 2], Image.Resampling.BICUBIC).save(file)
    return folder


def check(family, place):
    "Load, show pictures to, ask, store: a family's folder, without internet. Returns what of `CHECKS` holds"
    from dho_nb.data.transforms import center_boxes
    from dho_nb.deploy.checkpoints import zero_shot_checkpoint
    from dho_nb.runs.config import make_config
    from dho_nb.runs.dataset import open_dataset
    from dho_nb.runs.teacher_provider import fill_run_teacher_store, verify_run_teacher_store
    from dho_nb.teachers.clip import load_teacher, zero_shot_head
    folder, images = write_folder(family, place/"teacher"), pictures(place/"images")
    teacher, found = load_teacher(str(folder)), {"loads": True, "offline_folder": True}
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**teacher.model.visual.preprocess_cfg), is_train=False)
    mean, std = (torch.tensor(transform.transforms[-1].__dict__[k])[:, None, None] for k in ("mean", "std"))
    files = sorted(images.rglob("*.png"))
    opened = [Image.open(f).convert("RGB") for f in files]
    own = np.stack([((transform(p)*std + mean)*255).numpy() for p in opened])
    ours = np.stack([teacher.preprocess.render(p, center_boxes([p.size])[0]) for p in opened])
    away = np.abs(ours.astype(float) - own)
    found["pixels"] = bool(away.max() <= 2 and (away > 1).mean() < 1e-3)
    config = make_config(dict(dataset=str(images), teacher=str(folder), student="tiny", student_weights="", shots=1, views=1, epochs=1, size=16))
    manifest = open_dataset(config).manifest
    student, _ = zero_shot_checkpoint(str(folder), manifest)
    embeddings = teacher.encode_images(torch.from_numpy(ours))
    with torch.no_grad(): answered = student.model(student.preprocess.normalize(torch.from_numpy(ours)))[0]
    wanted = embeddings @ zero_shot_head(teacher, manifest.classes, manifest.templates).T/teacher.zeta
    found["zero_shot"] = bool(torch.allclose(answered, wanted, atol=1e-2) and wanted.isfinite().all() and wanted.std() > 0)
    fill_run_teacher_store(config, mode="none")
    found["stored"] = bool((verify_run_teacher_store(config, sample=4)["cosine"] > .999).all())
    return {name: found[name] for name in CHECKS}


def row(family, found):
    "A line of the table: a family and what of `CHECKS` holds"
    modes = sorted({published_preprocess(m, t).get("resize_mode", "shortest") for m, t in pairs(family)})
    towers = [*["timm's image tower as published"]*("timm_model_name" in open_clip.get_model_config(family.tested)["vision_cfg"]),
              "two layers of open_clip's towers" if not family.encoder else "two layers of open_clip's and transformers' towers"]
    files = [*["tokenizer.json, tokenizer_config.json"]*bool(family.tokens), *["config.json"]*bool(family.encoder)]
    return dict(family=family.name, pairs=len(pairs(family)), tested=family.tested, built="; ".join(towers), resize=" or ".join(modes), **found,
                files=", ".join(files), why_not="")


def record():
    "Check every family and write the table"
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as place: rows.append(row(family, check(family, Path(place))))
        print(rows[-1], file=sys.stderr, flush=True)
    rows += [dict(family=name, pairs=0, **dict.fromkeys(CHECKS, False), why_not=why) for name, why in UNSUPPORTED.items()]
    pd.DataFrame(rows).to_csv(RECORD, index=False, lineterminator="\n")


if __name__ == "__main__": record()
