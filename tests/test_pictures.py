"Pictures as people have them: orientation, broken files, many bits and bands"
import numpy as np
import pytest
from PIL import Image

from conftest import OPTIONS, fails, picture
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.config import make_config
from dho_nb.core.errors import DhoError
from dho_nb.data.transforms import read_image

RAMP = np.linspace(0, 4095, 64*64).reshape(64, 64).astype(np.uint16)


def grey(file, values, tags=None, sbit=0):
    "A grey picture of 16 bits, with TIFF tags or an sBIT chunk"
    made = Image.fromarray(values)
    if file.suffix == ".tif": made.save(file, tiffinfo=tags or {})
    else:
        from PIL.PngImagePlugin import PngInfo
        chunks = PngInfo()
        if sbit: chunks.add(b"sBIT", bytes([sbit]))
        made.save(file, pnginfo=chunks)
    return file


def bands(file, count, bits=8, head="<"):
    "A small TIFF of any number of bands, written by hand"
    import struct
    data = bytes(4*4*count*bits//8)
    tags = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0),
            (277, 3, 1, count), (278, 4, 1, 4), (279, 4, 1, len(data))]
    at = 8 + 2 + 12*len(tags) + 4
    tags = [(t, k, n, at if t == 273 else v) for t, k, n, v in tags]
    pack = lambda form, *v: struct.pack(head + form, *v)
    entry = lambda t, k, n, v: pack("HHI", t, k, n) + (pack("HH", v, 0) if k == 3 else pack("I", v))
    file.write_bytes((b"II" if head == "<" else b"MM") + pack("HI", 42, 8) + pack("H", len(tags))
                     + b"".join(entry(*t) for t in tags) + pack("I", 0) + data)
    return file


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_a_turned_picture_is_turned_once_whatever_its_kind(tmp_path, kind):
    turned = Image.Exif()
    turned[0x0112] = 6
    seen = read_image(picture(tmp_path/f"a.{kind}", 1, (100, 40), exif=turned))
    assert seen.size == seen.info["whole"] == (40, 100)


def test_a_picture_whose_exif_is_broken_is_read_all_the_same(tmp_path):
    turned = Image.Exif()
    for kind in ("jpg", "png", "webp"):
        assert read_image(picture(tmp_path/f"junk.{kind}", 1, (100, 40), exif=b"Exif\0\0no tags")).size == (100, 40)
    turned[0x0112], turned[0x010F] = 6, "a maker"
    data = bytearray(picture(tmp_path/"a.jpg", 1, (100, 40), exif=turned).read_bytes())
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(300):
        worse = data.copy()
        for at in rng.integers(20, 90, 2): worse[at] = rng.integers(256)
        (tmp_path/"b.jpg").write_bytes(worse)
        try: sizes.add(read_image(tmp_path/"b.jpg").size)
        except DhoError: sizes.add("named")
    assert {(40, 100), (100, 40)} <= sizes <= {(40, 100), (100, 40), "named"}


def test_sixteen_bits_are_one_scale_for_all_pictures(tmp_path):
    for most in (200, 300): Image.fromarray(np.array([[200, most]], np.uint16)).save(tmp_path/f"{most}.png")
    assert [np.asarray(read_image(tmp_path/f"{most}.png"))[0, 0, 0] for most in (200, 300)] == [1, 1]


def test_an_avif_that_is_broken_in_the_middle_is_a_broken_image(tmp_path):
    file = picture(tmp_path/"a.avif", 1, (64, 48))
    data = bytearray(file.read_bytes())
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(60):
        worse = data.copy()
        for at in rng.integers(20, len(data), 6): worse[at] ^= 0xFF
        file.write_bytes(worse)
        try: read_image(file)
        except DhoError as e: kinds.add("cannot be decoded" in str(e))
    assert kinds == {True}


def test_twelve_bits_in_sixteen_are_scaled_where_the_file_says_so(tmp_path):
    from dho_nb.deploy.predictor import load_pixels
    from dho_nb.data.transforms import Preprocess
    files = dict(said=grey(tmp_path/"said.tif", RAMP, {281: 4095}), unsaid=grey(tmp_path/"unsaid.tif", RAMP),
                 statistic=grey(tmp_path/"statistic.tif", RAMP, {281: 4000}),
                 wrong=grey(tmp_path/"wrong.tif", RAMP*8, {281: 4095}), whole=grey(tmp_path/"whole.tif", RAMP*16, {281: 65535}),
                 sbit=grey(tmp_path/"sbit.png", RAMP, sbit=12), scaled=grey(tmp_path/"scaled.png", RAMP*16, sbit=12),
                 dark=grey(tmp_path/"dark.png", RAMP//64*16, sbit=12), full=grey(tmp_path/"full.png", RAMP, sbit=16))
    top = {name: int(np.max(read_image(file))) for name, file in files.items()}
    assert top == dict(said=255, unsaid=16, statistic=16, wrong=127, whole=255, sbit=255, scaled=255, dark=4, full=16)
    preprocess = Preprocess(32)
    for file in files.values():
        with Image.open(file) as opened: assert (load_pixels(file, preprocess) == load_pixels(opened, preprocess)).all(), file


def test_pictures_of_twelve_bits_that_nothing_tells_of_are_named(tmp_path):
    from dho_nb.runs.config import config_data_warnings
    for name in ("cat", "dog"):
        (tmp_path/"t"/name).mkdir(parents=True)
        for i in range(3): grey(tmp_path/"t"/name/f"{i}.tif", RAMP//(i + 1)//(1 + (name == "dog")), {281: 4095} if i == 2 else {})
    Image.fromarray(RAMP*16).save(tmp_path/"t"/"cat"/"stack.tif", save_all=True, append_images=[Image.fromarray(RAMP)])
    picture(tmp_path/"t"/"dog"/"8bit.png")
    config = make_config(dict(OPTIONS, dataset=str(tmp_path/"t")))
    data = open_dataset(config)
    notes = config_data_warnings(config, data.manifest, data.root)
    assert notes["nearly black"].startswith("4 of 7 pictures of 16 bits") and "MaxSampleValue" in notes["nearly black"]
    assert notes["several pages"].startswith("1 of 8 pictures looked at hold several pages, e.g. cat/stack.tif")


@pytest.mark.parametrize("head", "<>")
@pytest.mark.parametrize("count, bits, said", [(5, 8, "5 bands of 8 bits"), (13, 16, "13 bands of 16 bits"),
                                               (2, 32, "2 bands of 32 bits"), (3, 64, "3 bands of 64 bits")])
def test_a_tiff_of_many_bands_is_called_so(tmp_path, count, bits, said, head):
    fails(lambda: read_image(bands(tmp_path/"a.tif", count, bits, head)), f"a TIFF of {said} is not read",
          "gdal_translate -b 1" if count != 3 else "save it so")


def test_what_begins_like_a_tiff_and_is_none_is_no_image(tmp_path):
    for i, rest in enumerate((b"", b"\xff"*60, bytes(60))):
        (tmp_path/f"{i}.tif").write_bytes(b"II*\0" + rest)
        fails(lambda i=i: read_image(tmp_path/f"{i}.tif"), "cannot be decoded (it is no image)")


# HEIC, the format of phones

def heic(file, size=(48, 32), **how):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heic (pillow-heif)")
    noise = np.kron(np.random.default_rng(0).integers(0, 255, (size[1]//8, size[0]//8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pillow_heif.from_pillow(Image.fromarray(noise)).save(file, quality=-1, **how)
    return noise


def test_a_heic_is_read_by_its_content_upright(tmp_path):
    for name in ("phone.heic", "phone.jpg"):  # phones send them under both
        pixels = heic(tmp_path/name)
        seen = read_image(tmp_path/name)
        assert seen.mode == "RGB" and np.abs(np.asarray(seen).astype(int) - pixels).max() <= 3
    turned = Image.Exif()
    turned[0x0112] = 6
    heic(tmp_path/"turned.heic", exif=turned.tobytes())
    seen = read_image(tmp_path/"turned.heic")
    assert seen.size == seen.info["whole"] == (32, 48)


def test_a_heic_is_predicted_on_the_command_line_and_by_the_exported_script(tmp_path, dho):
    from dho_nb.students.dual_head import build_student, save_student
    save_student(build_student("tiny", 2, 2, size=16), tmp_path/"model.safetensors", spec="tiny", args={}, classes=["a", "b"], alpha=.5, beta=.5,
                 method="dho")
    heic(tmp_path/"phone.heic")
    code, said, err = dho("predict", tmp_path/"model.safetensors", tmp_path/"phone.heic")
    assert code == 0 and "phone.heic" in said, err


WITHOUT = """
import sys; sys.modules["pillow_heif"] = None
from dho_nb.data.transforms import read_image
from dho_nb.data.manifests import open_image
for ask in (lambda: read_image(sys.argv[1]), lambda: open_image(open(sys.argv[1], "rb"))):
    try: ask()
    except ValueError as e: print(e)
"""


def test_without_the_extra_a_heic_names_the_way_out(tmp_path):
    import subprocess, sys
    (tmp_path/"phone.jpg").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(64))
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path/"phone.jpg")], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == 2 and all("pip install 'dho_nb[heic]'" in line for line in said), done
    assert f"image {tmp_path}/phone.jpg cannot be decoded" in said[0]


def test_a_broken_heic_is_a_problem_of_that_picture(tmp_path):
    heic(tmp_path/"whole.heic")
    (tmp_path/"half.heic").write_bytes((tmp_path/"whole.heic").read_bytes()[:200])
    fails(lambda: read_image(tmp_path/"half.heic"), "half.heic cannot be decoded", "skip_broken")
