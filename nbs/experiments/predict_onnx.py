"What an exported model says: python predict_onnx.py model.onnx [--unknown 0.95] photo.jpg … (needs onnxruntime, numpy and pillow, not dho_nb)"
import json, sys, numpy, onnxruntime, PIL.Image, PIL.ImageOps
try: import pillow_heif; pillow_heif.register_heif_opener()  # HEIC, where it is installed
except ImportError: pass
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["dho_nb"])
PHOTOS = "JPEG MPO PNG WEBP TIFF BMP GIF PPM AVIF JPEG2000 HEIF".split()  # Pillow would start another program for EPS, whatever the file is called
PIL.Image.init()
side, how = about["preprocess"]["size"], PIL.Image.Resampling[about["preprocess"]["interpolation"].upper()]
mode, fill = about["preprocess"].get("resize_mode", "shortest"), about["preprocess"].get("fill", 0)
files, threshold = sys.argv[2:], None
if "--unknown" in files:  # the share of known photos to answer; a less confident photo gets no class
    at = files.index("--unknown")
    share, coverage = float(files[at + 1]), about.get("coverage") or dict(images=0, rows=[])
    threshold = next((t for c, t, *_ in coverage["rows"] if .5 <= share <= c + 1e-9), None)
    del files[at:at + 2]
    if threshold is None: sys.exit(f"--unknown {share:g}: give 0.5 to {max([.5, *(c for c, *_ in coverage['rows'])]):g}; this model was measured on {coverage['images']} held-out photos")

def certainty(answers):  # 1 for certain heads, 0 for a guess: what the threshold is about
    heads, alpha = answers[1:] or answers, about.get("alpha", .5)
    weights = (alpha, 1 - alpha) if len(heads) > 1 else (1,)
    entropies = [-(p.astype(float)*numpy.log(numpy.maximum(p, 1e-300, dtype=float))).sum() for p in heads]
    return 1 - sum(w*h for w, h in zip(weights, entropies))/numpy.log(max(len(heads[0]), 2))

def eight_bits(picture):
    values = numpy.asarray(picture, float)
    if picture.mode[0] == "F" or values.min() < 0 or values.max() > 65535: raise ValueError("has neither 8 nor 16 bits per channel: convert it first")
    most = 255 if picture.mode == "I" and values.max() <= 255 else 65535
    return PIL.Image.fromarray(numpy.uint8(values/most*255 + .5))

def entire(picture):
    inner = (side, side) if mode == "squash" else tuple(max(round(v/(max(picture.size)/side)), 1) for v in picture.size)
    view = PIL.Image.new("RGB", (side, side), tuple(fill) if isinstance(fill, list) else (fill,)*3)
    view.paste(picture.resize(inner, how), tuple((side - v)//2 for v in inner))
    return numpy.asarray(view)

def square(file):
    with PIL.Image.open(file, formats=[f for f in PHOTOS if f in PIL.Image.OPEN]) as picture:
        whole = picture.size
        if mode == "shortest": picture.draft(None, (2*side, 2*side))
        picture.load()
        if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8): whole = whole[::-1]
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF": picture = eight_bits(picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or picture.mode != "RGB" and "transparency" in picture.info:
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    if mode != "shortest": return entire(picture.convert("RGB"))
    (w, h), across, down = picture.size, min(1, whole[1]/whole[0]), min(1, whole[0]/whole[1])
    box = ((1 - across)/2*w, (1 - down)/2*h, (1 + across)/2*w, (1 + down)/2*h)
    return numpy.asarray(picture.convert("RGB").resize((side, side), how, box=box))

wrong = 0
for file in files:
    try: pixels = square(file)
    except Exception as e: wrong += 1; print(f"{file} cannot be read: {e}", file=sys.stderr); continue
    p, *heads = [a[0] for a in session.run(None, {"pixels": pixels[None]})]
    unknown = threshold is not None and bool(certainty([p, *heads]) < threshold)
    print(file, "" if unknown else about["classes"][p.argmax()], f"{p.max():.6f}", *([] if threshold is None else [unknown]), sep="\t")
if wrong: sys.exit(1)
