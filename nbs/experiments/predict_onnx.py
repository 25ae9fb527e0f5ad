"""Predict the classes of photos with a model that dho_nb exported.

It needs onnxruntime, numpy and pillow, and neither dho_nb nor PyTorch. HEIC needs pillow-heif as well.

On the command line:

    python predict_onnx.py model.onnx photo.jpg another.png --top 3

In Python:

    import predict_onnx
    model = predict_onnx.load("model.onnx")
    for row in model.predict(["photo.jpg", "another.png"], top=3):
        print(row["file"], row["prediction"], row["probability"], row["top"])
"""
import argparse
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import PIL.Image

# Formats of photographs alone: Pillow would start another program for EPS, whatever the file is called
PHOTOS = "JPEG MPO PNG WEBP TIFF BMP GIF PPM AVIF JPEG2000 HEIF".split()


# ---------------------------------------------------------------------------------------------- the model

def load(file):
    "Open an exported model. Raises ValueError for a file that is damaged, or was not exported by dho_nb."
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # errors are raised, so they need not be logged as well
    try:
        session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get("dho_nb")
    except Exception as error:  # onnxruntime has a class for each of a dozen reasons
        raise ValueError(f"{file} cannot be read by onnxruntime ({first_line(error)})") from None
    if not text: raise ValueError(f"{file} was not exported by dho_nb: it does not name its classes")
    try: return Model(session, json.loads(text))
    except RecursionError: raise ValueError(f"{file} is damaged: its metadata is nested too deeply") from None
    except ValueError as error: raise ValueError(f"{file} is damaged: {error}") from None


class Model:
    "An exported model: its `classes`, and `predict`"

    def __init__(self, session, about):
        preprocess = entry(about, "preprocess", lambda v: isinstance(v, dict))
        self.classes = entry(about, "classes", lambda v: v and isinstance(v, list) and all(isinstance(c, str) for c in v))
        self.side = entry(preprocess, "size", lambda v: type(v) is int and 1 <= v <= 2**14)
        self.resize_mode = entry(preprocess, "resize_mode", lambda v: v in ("shortest", "squash", "longest"), "shortest")
        self.fill = entry(preprocess, "fill", is_color, 0)
        interpolation = entry(preprocess, "interpolation", lambda v: v in ("bicubic", "bilinear", "lanczos", "nearest"))
        self.resampling = PIL.Image.Resampling[interpolation.upper()]
        self.alpha = entry(about, "alpha", lambda v: is_number(v) and 0 <= v <= 1, .5)  # weight of the CE head
        self.coverage = entry(about, "coverage", is_coverage_curve)                     # thresholds for unknown photos
        self.session = session
        shape = [size for model_input in session.get_inputs() for size in model_input.shape]
        self.fixed_batch = shape[0] if shape and isinstance(shape[0], int) else None    # None: any number of photos
        register_formats()

    def predict(self, files, batch=16, top=5, unknown=None):
        """Yield a dict for each file, in order, with the names and values of the columns of `dho predict`:

        file, prediction, probability
        unknown      only if `unknown` gives the share of known photos to answer, 0.5 to 0.99:
                     True for a less confident photo, whose prediction is None
        top          the likeliest classes, each with its probability
        problem      why a file cannot be read, and all but `file` is None; "" for the others

        `batch` photos are computed together. Raises ValueError for numbers below 1, and for a share without a threshold."""
        if batch < 1 or top < 1: raise ValueError(f"batch and top are 1 or more, not {batch} and {top}")
        threshold = None if unknown is None else self.threshold(unknown)
        files, batch = [files] if isinstance(files, (str, Path)) else list(files), self.fixed_batch or batch
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), batch):
                part = files[start:start + batch]
                loaded = list(pool.map(self.try_pixels, part))
                pixels = [p for p in loaded if not isinstance(p, str)]
                predictions = iter(self.predict_pixels(np.stack(pixels), top, threshold) if pixels else [])
                for file, item in zip(part, loaded):
                    if not isinstance(item, str): yield dict(file=str(file), **next(predictions), problem="")
                    else: yield dict(file=str(file), **dict.fromkeys(columns(threshold)), problem=item)

    def predict_pixels(self, pixels, top, threshold):
        "Return a dict for each photo of [N, side, side, 3] uint8, without its file"
        both, *heads = self.probabilities(pixels)
        rows = []
        for p, certain in zip(both, certainty(heads or [both], self.alpha)):
            unknown = threshold is not None and bool(certain < threshold)
            likely = {self.classes[i]: round(float(p[i]), 6) for i in np.argsort(-p, kind="stable")[:top]}
            values = dict(prediction=None if unknown else self.classes[p.argmax()], probability=round(float(p.max()), 6),
                          unknown=unknown, top=likely)
            rows.append({name: values[name] for name in columns(threshold)})
        return rows

    def probabilities(self, pixels):
        "Return arrays [N, classes]: of both heads together, of the CE head, of the KD head; of a single head one"
        count, size = len(pixels), self.fixed_batch or len(pixels)
        filled = pixels[np.arange(size) % count]  # a model for a fixed number of photos gets some of them again
        try: answers = self.session.run(None, {"pixels": filled})
        except Exception as error: raise ValueError(f"the model cannot classify photos ({first_line(error)})") from None
        if len(answers) not in (1, 3) or any(np.shape(a) != (size, len(self.classes)) for a in answers):
            raise ValueError(f"the model is damaged: it names {len(self.classes)} classes, and its graph has others")
        return [a[:count] for a in answers]

    def threshold(self, share):
        "Return the certainty that this share of known photos reaches. Raises ValueError where it was not measured."
        if not self.coverage or not self.coverage["rows"]:
            raise ValueError("this model has no threshold for unknown photos: nothing was held out from its training")
        for coverage, threshold, *_ in self.coverage["rows"]:
            if .5 <= share <= coverage + 1e-9: return threshold
        raise ValueError(f"unknown: {share:g} is out of range: give 0.5 to {coverage:g}; "
                         f"this model was measured on {self.coverage['images']} held-out photos")

    def try_pixels(self, file):
        "Return the pixels of a photo, or in words why it cannot be read"
        try: return self.pixels(file)
        except Exception as error: return first_line(error)  # decoders of a dozen formats fail in as many ways

    def pixels(self, file):
        "Return a photo as training saw it, [side, side, 3] uint8"
        if self.resize_mode == "shortest": return self.centered_square(*read_photo(file, at_least=2*self.side))
        return self.entire(read_photo(file)[0])

    def centered_square(self, photo, size):
        "Return the pixels of the centered square, after a resize that makes the shorter side `side` and the longer one whole pixels"
        resized = [int(self.side*length/min(size)) for length in size]
        start = [round((length - self.side)/2) for length in resized]
        low, high = ([(s + more)/r*length for s, r, length in zip(start, resized, photo.size)] for more in (0, self.side))
        return np.asarray(photo.resize((self.side, self.side), self.resampling, box=(*low, *high)))

    def entire(self, photo):
        "Return the pixels of the whole photo: squeezed, or with a border that makes it square"
        shrink = max(photo.size)/self.side
        inner = [self.side if self.resize_mode == "squash" else max(round(side/shrink), 1) for side in photo.size]
        square = PIL.Image.new("RGB", (self.side, self.side), tuple(self.fill) if isinstance(self.fill, list) else (self.fill,)*3)
        square.paste(photo.resize(inner, self.resampling), tuple((self.side - side)//2 for side in inner))
        return np.asarray(square)


def columns(threshold):
    "Return the names of what is predicted for a photo"
    return ["prediction", "probability", "top"] if threshold is None else ["prediction", "probability", "unknown", "top"]


def certainty(heads, alpha):
    "Return one minus the heads' mean entropy, over that of a guess: [N] from 0 to 1, which thresholds are about"
    weights = (alpha, 1 - alpha) if len(heads) == 2 else (1,)
    entropies = [-(p*np.log(np.maximum(p, 1e-300))).sum(-1) for p in np.asarray(heads, float)]
    return 1 - sum(w*h for w, h in zip(weights, entropies))/np.log(max(heads[0].shape[-1], 2))


# ---------------------------------------------------------------------------- its metadata, which may be anybody's

def entry(entries, name, is_valid, usual=None):
    "Return an entry of the metadata, `usual` if there is none. Raises ValueError for one that is not valid."
    value = entries.get(name, usual) if isinstance(entries, dict) else None
    if not is_valid(value): raise ValueError(f"its metadata has no valid {name}")
    return value


def is_number(value):
    return type(value) in (int, float) and abs(value) < 1e9  # nor infinite, nor NaN


def is_color(value):
    return all(type(v) is int and 0 <= v <= 255 for v in (value if isinstance(value, list) and len(value) == 3 else [value]))


def is_coverage_curve(value):
    "Tell whether a value is None, or the number of held-out images with rows of coverage, threshold and two counts"
    if value is None: return True
    if not isinstance(value, dict) or type(value.get("images")) is not int: return False
    rows = value.get("rows")
    return isinstance(rows, list) and all(isinstance(r, list) and len(r) == 4 and all(map(is_number, r)) for r in rows)


# ---------------------------------------------------------------------------------------------- photos

# How to turn a photo upright, by the orientation in its EXIF data
TURNS = dict(zip(range(2, 9), map(PIL.Image.Transpose.__getitem__, (
    "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"))))


def register_formats():
    "Register Pillow's formats, and HEIC where pillow-heif is installed"
    PIL.Image.init()
    try: import pillow_heif
    except ImportError: return
    pillow_heif.register_heif_opener()


def read_photo(file, at_least=0):
    """Return a photo upright in RGB, and width and height as they are in the file.

    Both sides of a large JPEG are reduced while it is decoded, to no less than `at_least`."""
    with PIL.Image.open(file, formats=[f for f in PHOTOS if f in PIL.Image.OPEN]) as photo:
        width, height = photo.size
        if at_least: photo.draft(None, (at_least, at_least))
        photo.load()
        try: orientation = photo.getexif().get(0x0112, 1)
        except Exception: orientation = 1  # EXIF that cannot be read
        upright, white = photo.transpose(TURNS[orientation]) if orientation in TURNS else photo.copy(), white_value(photo)
    return to_rgb(upright, white), (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def to_rgb(photo, white=65535):
    "Return a photo as RGB of 8 bits; what is transparent becomes white"
    if photo.mode == "RGB": return photo
    if photo.mode[0] in "IF": photo = to_eight_bits(photo, white)
    if photo.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in photo.info:
        photo = PIL.Image.alpha_composite(PIL.Image.new("RGBA", photo.size, "white"), photo.convert("RGBA"))
    return photo.convert("RGB")


def to_eight_bits(photo, white):
    "Return a grey photo of more than 8 bits with 8: on the scale from 0 to white, or to its own range where it leaves that scale"
    values = np.nan_to_num(np.asarray(photo, float), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    top = 1 if photo.mode == "F" else 255 if photo.mode == "I" and high <= 255 else white
    if low >= 0 and high <= (1 if photo.mode == "F" else 65535): low, high = 0, top
    return PIL.Image.fromarray(np.uint8(np.clip((values - low)/max(high - low, 1e-12), 0, 1)*255 + .5))


def white_value(photo):
    "Return the value of white in a photo of 16 bits: less than 65,535 where its file says that it uses fewer bits"
    if not photo.mode.startswith("I;16"): return 65535
    tags, values = getattr(photo, "tag_v2", {}), np.asarray(photo)
    bits, largest = (int(np.max(tags.get(tag, usual))) for tag, usual in ((258, 16), (281, 0)))  # BitsPerSample, MaxSampleValue
    if bits >= 16: bits = largest.bit_length() if 255 < largest < 65535 and not largest & (largest + 1) else png_bits(photo)
    if not 8 < bits < 16 or values.max() >= 2**bits: return 65535
    is_scaled = not tags and not (values % 2**(16 - bits)).any()  # a PNG whose values fill 16 bits already
    return 65535 if is_scaled else 2**bits - 1


def png_bits(photo):
    "Return how many bits of its values a PNG uses, from its chunk sBIT; 0 without one"
    try:
        with open(photo.filename, "rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n": return 0
            while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
                if head[4:] == b"sBIT": return file.read(1)[0]
                file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    except (AttributeError, OSError, IndexError, TypeError): pass
    return 0


# ---------------------------------------------------------------------------------------------- the command line

def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def one_line(value):
    "Return a value as text; tabs, line breaks and codes that control a terminal by their escapes"
    text = (f"{value:.6f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False) if isinstance(value, dict)
            else "" if value is None else str(value))
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
                  lambda c: c[0].encode("unicode_escape").decode(), text)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Predict the classes of photos with a model that dho_nb exported.",
        epilog="Prints a line for each photo, separated by tabs: file, class and probability; unknown (True or False) with "
               "--unknown; the likeliest classes as JSON with --top. A photo that cannot be read is named on stderr, and the "
               "exit code is 1.")
    parser.add_argument("model", help="the exported model, e.g. model.onnx")
    parser.add_argument("photos", nargs="+", metavar="photo", help="files: JPEG, PNG, WebP, TIFF …; HEIC needs pillow-heif")
    parser.add_argument("--top", type=int, metavar="K", help="also print the K likeliest classes with their probabilities")
    parser.add_argument("--unknown", type=float, metavar="SHARE",
                        help="give no class to photos less confident than this share of known ones, 0.5 to 0.99")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="photos that are computed together (default: 16)")
    return parser.parse_intermixed_args(arguments)


def main(arguments=None):
    "Print predictions; return 1 if a photo cannot be read"
    options, unreadable = parse_arguments(arguments), 0
    shown = ["file", "prediction", "probability", *["unknown"]*(options.unknown is not None), *["top"]*(options.top is not None)]
    try:
        top = 1 if options.top is None else options.top
        for row in load(options.model).predict(options.photos, options.batch, top, options.unknown):
            if row["problem"]:
                unreadable = 1
                print(one_line(f"{row['file']} cannot be read: {row['problem']}"), file=sys.stderr)
            else: print(*(one_line(row[name]) for name in shown), sep="\t")
    except (ValueError, MemoryError) as error: sys.exit(one_line(str(error)))
    return unreadable


if __name__ == "__main__": sys.exit(main())
