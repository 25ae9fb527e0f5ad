"""What the commands print, for their pages: `python docs/outputs.py` runs them on photographs of digits and writes outputs.json"""
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT/"docs"/"outputs.json"
LINES, WIDTH = 32, 130
PHOTOS = "--images photos --labels labels.csv"
TRAINED = f"{PHOTOS} --teacher digits --student tiny --student-weights '' --size 16 --epochs 30"

# In this order, each in the folder that the ones before it left
COMMANDS = {
    "check": f"check {TRAINED}",
    "distill": f"distill {TRAINED} --out runs/photos",
    "estimate": f"estimate {TRAINED} --out runs/estimate",
    "evaluate": "evaluate runs/photos --dataset digits",
    "suggest": "suggest runs/photos --count 4",
    "predict": "predict runs/photos new --top 2",
    "export": "export runs/photos --images photos --out model",
    "store fill": f"store fill {PHOTOS} --teacher digits --views 2",
    "store show": "store show cache/stores/photos-digits-*",
    "store verify": f"store verify {PHOTOS} --teacher digits --views 2",
    "sweep": "sweep first.toml",
    "status": "status runs/first",
    "table": "table runs/first",
    "report": "report runs/first --out first.html",
    "list": "list methods",
    "data list": "data list",
    "presets": "presets table17",
    "run": "run paper/table13/fewshot-resnet18/dho --dry",
}

GRID = """[base]
preset = "digits"
epochs = 3
[axes]
seed = [0, 1]
method = ["ce", "dho"]
"""

def lay_out(folder):
    "300 photographs of digits without labels, 40 labels for them, and 3 new ones"
    from dho_nb.data.manifests import digits_manifest, write_digits_images
    made, rows = write_digits_images(folder/"made"), digits_manifest().table.sample(303, random_state=0)
    for place in ("photos", "new"): (folder/place).mkdir()
    names = [f"IMG_{i:04d}.png" for i in range(len(rows))]
    for name, path in zip(names, rows["path"]): (made/path).rename(folder/("photos" if name < "IMG_0300" else "new")/name)
    few = rows.assign(name=names, label=[Path(path).parent.name for path in rows["path"]])[:300].groupby("label").head(4)
    (folder/"labels.csv").write_text("path,label\n" + "".join(f"{row.name},{row.label}\n" for row in few.itertuples(index=False)))
    (folder/"first.toml").write_text(GRID)

def shown(text, folder):
    "The text without the machine's paths, at most some lines of it"
    lines = [line.rstrip()[:WIDTH] for line in re.sub(rf"{folder}/|{ROOT}/", "", text).replace(str(folder), ".").splitlines()]
    return "\n".join(lines if len(lines) <= LINES else [*lines[:LINES], "…"])

def run_all():
    "Run every command, and return the verb's command and its output"
    printed = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        lay_out(folder)
        env = dict(os.environ, DHO_CACHE=f"{folder}/cache", DHO_RUNS=f"{folder}/runs", OMP_NUM_THREADS="1", COLUMNS=str(WIDTH))
        for verb, command in COMMANDS.items():
            for pattern in re.findall(r"\S+\*\S*", command):  # names have an identity in them
                command = command.replace(pattern, str(next(folder.glob(pattern)).relative_to(folder)))
            done = subprocess.run([sys.executable, "-m", "dho_nb.cli.main", *shlex.split(command)], cwd=folder, env=env,
                                  capture_output=True, text=True)
            if done.returncode: raise SystemExit(f"dho {command} ended with {done.returncode}: {done.stderr}")
            printed[verb] = dict(command=f"dho {command}", output=shown(done.stdout, folder))
            print(f"dho {command}", printed[verb]["output"], sep="\n", flush=True)
    return printed

if __name__ == "__main__":
    FILE.write_text(json.dumps(run_all(), indent=1, ensure_ascii=False) + "\n")
