"Files that people give as weights: each loads, or the message says what it is and the way out."
import argparse, pickle, re, tarfile, zipfile
from collections import OrderedDict
from pathlib import Path
import numpy as np
import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from torch import nn
from dho_nb.core.errors import DhoError
from dho_nb.students.backbones import build_backbone
from dho_nb.students.weights import load_weights, read_weights

MOBILENET = Path(__file__).parents[2]/"shared"/"data"/"weights"/"mobilenetv2_imagenet_tf.npz"


def tiny():
    "A network with two layers of one shape"
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return tiny().state_dict()


def says(call, *words):
    with pytest.raises(DhoError) as caught: call()
    for word in words: assert word in str(caught.value), (word, str(caught.value))


@pytest.mark.parametrize("wrap", [
    lambda n: n, lambda n: dict(state_dict=n, args=argparse.Namespace(lr=.1, out=Path("runs")), epoch=3),
    lambda n: dict(state_dict=n, best=np.float64(.7), step=np.int64(3), seen=np.float32(1), ok=np.bool_(True)),
    lambda n: dict(model=n, optimizer=dict(state={}, param_groups=[])), lambda n: dict(model_ema=n, epoch=np.int32(1)),
    lambda n: dict(teacher=n), lambda n: {f"module.{k}": v for k, v in n.items()},
    lambda n: {f"_orig_mod.module.{k}": v for k, v in n.items()},
    lambda n: dict(state_dict={f"model.net.{k}": v for k, v in n.items()}, hyper_parameters=dict(lr=.1), loops={}),
    lambda n: {k: v.bfloat16() for k, v in n.items()}, lambda n: {k: v.half() for k, v in n.items()},
    lambda n: {k: v.numpy() for k, v in n.items()}, lambda n: {k: nn.Parameter(v) for k, v in n.items()},
], ids=["plain", "namespace", "numpy", "model", "ema", "teacher", "parallel", "compiled", "lightning", "bf16", "fp16",
        "arrays", "parameters"])
@pytest.mark.parametrize("name", ["w.pth.tar", "w.bin", "w.ckpt", "w.weights"])
def test_checkpoints_of_many_kinds_load(wrap, name, net, tmp_path):
    torch.save(wrap(net), tmp_path/name)
    made = load_weights(tiny(), tmp_path/name).state_dict()
    assert all(torch.allclose(made[k], v, atol=2e-3) for k, v in net.items())


def test_older_formats_and_content_before_endings(net, tmp_path):
    torch.save(net, tmp_path/"old.pth", _use_new_zipfile_serialization=False)
    save_file(net, tmp_path/"named.pth")
    np.savez(tmp_path/"w.npz", **{k: v.numpy() for k, v in net.items()})
    (tmp_path/"blob").write_bytes((tmp_path/"w.npz").read_bytes())
    for name in ("old.pth", "named.pth", "w.npz", "blob"):
        assert load_weights(tiny(), tmp_path/name)[2].weight.equal(net["2.weight"])


def test_shards(net, tmp_path):
    keys = [*net]
    save_file({k: net[k] for k in keys[:2]}, tmp_path/"model-00001-of-00002.safetensors")
    where = {k: f"model-0000{1 + (i > 1)}-of-00002.safetensors" for i, k in enumerate(keys)}
    index = tmp_path/"model.safetensors.index.json"
    index.write_text(__import__("json").dumps(dict(metadata={}, weight_map=where)))
    says(lambda: read_weights(index), "in 2 files", "model-00002-of-00002.safetensors is not beside it")
    save_file({k: net[k] for k in keys[2:]}, tmp_path/"model-00002-of-00002.safetensors")
    assert load_weights(tiny(), index)[2].weight.equal(net["2.weight"])
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    says(lambda: read_weights(index), "is not beside it")
    index.write_text("[]")
    says(lambda: read_weights(index), "no list of a model's files")


class Net(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(2, 2)
    def forward(self, x): return self.fc(x)


class Holder:
    def __init__(self): self.value = 1


def lfs(file): file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab"*32 + "\nsize 46807446\n")
def page(file): file.write_text("\n<!DOCTYPE html>\n<html><head><title>model.pth at main</title></head></html>")
def keras(file): file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
def garbage(file): file.write_bytes(bytes(range(7, 250))*8)
def zipped(file):
    with zipfile.ZipFile(file, "w") as z: z.writestr("model/weights.pth", b"1"), z.writestr("readme.txt", b"2")
def keras3(file):
    with zipfile.ZipFile(file, "w") as z: z.writestr("config.json", b"{}"), z.writestr("model.weights.h5", b"2")
def tarred(file):
    (file.parent/"a.txt").write_text("a")
    with tarfile.open(file, "w") as t: t.add(file.parent/"a.txt")
def gzipped(file):
    with tarfile.open(file, "w:gz") as t: t.add(__file__)
def script(file): torch.jit.script(Net()).save(file)
def model(file): torch.save(Net(), file)
def objects(file): torch.save(dict(state_dict={"a": torch.ones(1)}, config=Holder()), file)
def objects_old(file): torch.save(dict(state_dict={"a": torch.ones(1)}, config=Holder()), file, _use_new_zipfile_serialization=False)
def plain_pickle(file): file.write_bytes(pickle.dumps({"a": np.ones(2)}))
def two(file): torch.save(dict(student={"a": torch.ones(1)}, teacher={"a": torch.ones(1)}), file)
def no_tensors(file): torch.save(dict(epoch=3, name="x"), file)
def a_list(file): torch.save([torch.ones(2)], file)
def half_zip(file):
    torch.save(dict(a=torch.randn(1000)), file); file.write_bytes(file.read_bytes()[:2000])
def half_old(file):
    torch.save(dict(a=torch.randn(1000)), file, _use_new_zipfile_serialization=False); file.write_bytes(file.read_bytes()[:2000])
def half_safe(file): save_file(dict(a=torch.randn(1000)), file); file.write_bytes(file.read_bytes()[:2000])
def half_header(file): save_file({f"a{i}": torch.ones(1) for i in range(200)}, file); file.write_bytes(file.read_bytes()[:500])
def array(file):
    with open(file, "wb") as f: np.save(f, np.ones(3))
def objects_npz(file):
    with open(file, "wb") as f: np.savez(f, a=np.array([{}], dtype=object))


@pytest.mark.parametrize("make,words", [
    (lfs, ["Git LFS pointer", "git lfs pull"]), (page, ["web page", "/resolve/"]), (keras, ["HDF5", ".npz"]),
    (keras3, ["Keras"]), (garbage, ["neither a file of PyTorch's"]), (zipped, ["zip archive", "model/weights.pth", "unpack"]),
    (tarred, ["archive", "unpack"]), (gzipped, ["archive", "unpack"]),
    (script, ["TorchScript", "torch.jit.load(FILE).state_dict()"]),
    (model, ["whole pickled model", "Net", "weights_only=False).state_dict()"]),
    (objects, ["Python objects", "Holder", "weights_only=False)['state_dict']"]),
    (objects_old, ["Python objects", "Holder", "torch.save("]), (plain_pickle, ["pickle that PyTorch did not write"]),
    (two, ["several things (student, teacher)", "torch.load(FILE)['student']"]), (no_tensors, ["no tensors, but epoch, name"]),
    (a_list, ["a list, not a dictionary"]), (half_zip, ["cut short", "again"]), (half_old, ["cut short", "again"]),
    (half_safe, ["cut short", "2,000 of"]), (half_header, ["cut short"]), (array, ["one array"]),
    (objects_npz, ["cannot be read", "Object arrays"]), (lambda f: f.write_bytes(b""), ["is empty"]),
    (lambda f: f.mkdir(), ["a folder"]),
], ids=lambda v: getattr(v, "__name__", None))
@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".npz"])
def test_what_is_no_weights_file_is_called_by_its_name(make, words, ending, tmp_path):
    make(tmp_path/f"given{ending}")
    says(lambda: load_weights(tiny(), tmp_path/f"given{ending}"), *words)
    assert "Traceback" not in "".join(words)


def test_missing_and_other_libraries(tmp_path):
    says(lambda: read_weights(tmp_path/"none.pth"), "do not exist")
    (tmp_path/"net.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(100))
    says(lambda: read_weights(tmp_path/"net.onnx"), "a graph for other programs")


def test_layers_of_one_shape_are_never_told_apart_by_their_order(net, tmp_path):
    "Three files with the right shapes in some order, under names of their own: none may fit"
    for order in ([0, 2], [2, 0]):
        found = {f"layer{i}.{part}": net[f"{k}.{part}"] for i, k in enumerate(order) for part in ("weight", "bias")}
        torch.save(found, tmp_path/"w.pt")
        np.savez(tmp_path/"w.npz", **{k: v.numpy() for k, v in found.items()})
        for name in ("w.pt", "w.npz"):
            says(lambda: load_weights(tiny(), tmp_path/name), "other names", "0.weight", "layer0.weight")


def test_mobilenetv2_of_torchvision_goes_into_timms_by_a_map_of_names(tmp_path):
    torch.manual_seed(0)
    source = torchvision.models.mobilenet_v2(width_mult=.35).eval()
    with torch.no_grad():
        for p in source.buffers(): p.copy_(torch.rand_like(p.float()) + .5)
    held = list(source.state_dict().items())
    torch.save(OrderedDict(reversed(held)), tmp_path/"w.pth")  # whatever the order
    torch.save(OrderedDict((f"module.{k}", v) for k, v in held), tmp_path/"prefixed.pth")
    picture = torch.randn(1, 3, 64, 64)
    wanted = torchvision.models.mobilenet_v2(width_mult=.35)
    wanted.load_state_dict(source.state_dict())
    wanted.classifier = nn.Identity()
    for name in ("w.pth", "prefixed.pth"):
        made = build_backbone("timm:mobilenetv2_035", tmp_path/name, 64).module.eval()
        assert torch.allclose(made(picture), wanted.eval()(picture), atol=1e-4)


def test_real_mobilenet_has_the_tensors_that_its_file_has():
    if not MOBILENET.exists(): pytest.skip("needs ../shared/data/weights/mobilenetv2_imagenet_tf.npz")
    held = np.load(MOBILENET)
    made = build_backbone("timm:mobilenetv2_100", MOBILENET, 64, dict(pad_type="same", bn_eps=1e-3)).module.state_dict()
    names = [k for k in made if "tracked" not in k]
    assert all(np.array_equal(made[k].numpy(), held[f]) for k, f in zip(names, held.files)) and len(names) == 260
    for name, file in (("conv_stem.weight", "features.0.0.weight"), ("blocks.0.0.conv_pw.weight", "features.1.conv.1.weight"),
                       ("blocks.6.0.bn3.running_var", "features.17.conv.3.running_var"), ("bn2.bias", "features.18.1.bias")):
        assert np.array_equal(made[name].numpy(), held[file])


def test_densenets_old_names(tmp_path):
    dense = torchvision.models.densenet121()
    old = OrderedDict((re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", k), v) for k, v in dense.state_dict().items())
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path/"dense.pth")
    for spec in ("torchvision:densenet121", "timm:densenet121"):
        made = build_backbone(spec, tmp_path/"dense.pth").module.state_dict()
        key = "features.denseblock2.denselayer3.conv2.weight"
        assert made[key].equal(dense.state_dict()[key])


def test_vits_of_another_image_size_are_resampled_as_their_libraries_do(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(vit.state_dict(), tmp_path/"vit.safetensors")
    made = build_backbone("vit_tiny_patch16_224", tmp_path/"vit.safetensors", 128).module
    from timm.layers import resample_abs_pos_embed
    assert made.pos_embed.equal(resample_abs_pos_embed(vit.pos_embed, (8, 8), num_prefix_tokens=1))
    assert made.blocks[3].mlp.fc1.weight.equal(vit.blocks[3].mlp.fc1.weight)
    theirs = torchvision.models.VisionTransformer(224, 32, 2, 2, 64, 64, num_classes=3)
    torch.save(theirs.state_dict(), tmp_path/"theirs.pth")
    smaller = torchvision.models.VisionTransformer(96, 32, 2, 2, 64, 64, num_classes=3)
    smaller.heads = nn.Identity()
    assert load_weights(smaller, tmp_path/"theirs.pth").encoder.pos_embedding.shape == (1, 10, 64)
    from open_clip.transformer import VisionTransformer
    tower = lambda size: VisionTransformer(size, 16, 64, 2, 2, 4., output_dim=32)
    torch.save({f"visual.{k}": v for k, v in tower(64).state_dict().items()}, tmp_path/"tower.pth")
    assert load_weights(tower(96), tmp_path/"tower.pth").positional_embedding.shape == (37, 64)
    torch.save(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path/"small.pth")
    says(lambda: build_backbone("vit_tiny_patch16_224", tmp_path/"small.pth", 128), "of another shape")


def test_quantized_weights_are_refused(net, tmp_path):
    torch.save({k: (v*100).to(torch.int8) for k, v in net.items()}, tmp_path/"int8.pth")
    says(lambda: load_weights(tiny(), tmp_path/"int8.pth"), "quantized", "torch.int8")


def test_a_cosine_head_has_no_bias():
    from dho_nb.students.heads import CosineHead, ReferenceHead
    with pytest.raises(TypeError, match="bias"): CosineHead(4, 2, bias=True)
    head, reference = CosineHead(4, 2), ReferenceHead(4, 2)
    assert head.bias is None and reference.bias.shape == (2,)
    with torch.no_grad(): reference.bias.fill_(1.0)
    x = torch.randn(3, 4)
    before = reference(x)
    with torch.no_grad(): reference.bias.fill_(2.0)
    assert torch.allclose(reference(x) - before, torch.full((3, 2), 1/reference.zeta))
