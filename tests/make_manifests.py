"""Makes data_manifests/ anew from the published lists: python tests/make_manifests.py SHARED_DATA [FOLDER]

SHARED_DATA holds coop_splits.tar.xz, imagenet_lists.tar.xz and eurosat.tar. What comes out is the same on every machine."""
import gzip
import re
import sys
import tarfile
import tempfile
from pathlib import Path

from dho_nb.data.datasets import DATASETS, check_dataset_counts, manifests_page
from dho_nb.data.manifests import Manifest, content_keys, digits_manifest, manifest_from_coop, write_manifest
from dho_nb.core.files import read_json, write_json

COOP = {"flowers102": "oxford_flowers"}                 # our name to that of the few-shot lists
WORDNET = {744: "projectile", 836: "sunglass"}          # where CLIP has one name for two classes
PACK = 1_000_000                                        # bytes above which a CSV is compressed


def unpack(archive, folder):
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def pack(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def few_shot(folder, name):
    "CoOp's lists of a dataset as {(shots, seed): entries}"
    files = sorted((folder/"coop"/"fewshot_indices"/COOP.get(name, name)).glob("shot_*-seed_[123].json"))
    return {tuple(map(int, re.findall(r"\d+", f.stem))): read_json(f)["train"]["data"] for f in files}


def facts(info, classes, **more):
    return dict(classes=classes, templates=list(info.templates), source=info.source, license=info.license,
                counts=list(info.counts), **more)


def clean(manifest):
    "Spaces for the underscores of CoOp's class names: the CSV is for reading, the prompts are the same"
    return Manifest(manifest.name, manifest.table, [c.replace("_", " ") for c in manifest.classes], manifest.templates)


def make(shared, out):
    shared, out = Path(shared), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        for archive in ("coop_splits.tar.xz", "imagenet_lists.tar.xz", "eurosat.tar"): unpack(shared/archive, temporary)
        meta = read_json(temporary/"imagenet"/"imagenet_meta.json")
        write_manifest(digits_manifest(), out,
                       source="scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits, test part)",
                       license="CC BY 4.0")
        named = [WORDNET.get(i, c) for i, c in enumerate(meta["openai_clip_classnames"])]
        for name, info in DATASETS.items():
            lists = few_shot(temporary, name)
            if not info.builder:
                manifest = check_dataset_counts(clean(manifest_from_coop(temporary/"coop"/"splits"/info.split, name, info.prefix,
                                                        info.templates)))
                rows = facts(info, list(manifest.classes)); rows.pop("classes"); rows.pop("templates")
                file = write_manifest(manifest, out, **rows)
                if file.stat().st_size > PACK: file.unlink(); write_manifest(manifest, out, compress=True, **rows)
                train = manifest.table.query("split == 'train'").set_index("path")["label"]
            elif name.startswith("imagenet"):
                wnids = meta.get(f"{name}_wnids", meta["wnids"])
                classes = [named[meta["wnids"].index(w)] for w in wnids]
                write_json(out/f"{name}.json", facts(info, classes, wnids=wnids))
            else:
                found = {e["label"]: e["classname"].replace("_", " ") for e in lists[16, 1]}
                write_json(out/f"{name}.json", facts(info, [found[i] for i in range(info.classes)]))
            if not lists: continue
            member = {}
            for (shots, seed), entries in sorted(lists.items()):
                assert len(entries) == shots*info.classes
                for entry in entries:
                    path = entry["impath"].split("/", 3)[3]
                    if not info.builder: assert train[path] == entry["label"]
                    member.setdefault(path.rsplit("/", 1)[1] if name == "imagenet" else path,
                                      []).append(f"coop-{shots}-{seed}")
            if name == "imagenet":
                for percent in (1, 10):
                    for line in (temporary/"imagenet"/f"{percent}percent.txt").read_text().split():
                        member.setdefault(line, []).append(f"simclr-{percent}")
            pack(out/"subsets"/f"{name}.csv.gz",
                 "path,lists\n" + "".join(f"{p},{' '.join(l)}\n" for p, l in sorted(member.items())))
        eurosat = manifest_from_coop(temporary/"coop"/"splits"/DATASETS["eurosat"].split, "eurosat", "2750")
        table = eurosat.table.assign(key=[k[:8] for k in content_keys(eurosat, temporary/"eurosat")])
        pack(out/"hashes"/"eurosat.txt.gz", "\n".join(table.sort_values("path")["key"]) + "\n")
    (out/"README.md").write_text(manifests_page(out), encoding="utf-8")


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent.parent/"data_manifests")
