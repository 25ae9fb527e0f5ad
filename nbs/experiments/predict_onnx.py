"What an exported model says: python predict_onnx.py model.onnx photo.jpg … (needs onnxruntime, numpy and pillow, not dho_nb)"
import json, sys, numpy, onnxruntime, PIL.Image, PIL.ImageOps
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["dho_nb"])
side, how = about["preprocess"]["size"], PIL.Image.Resampling[about["preprocess"]["interpolation"].upper()]
def square(file):
    picture = PIL.Image.open(file); picture.draft("RGB", (2*side, 2*side)); picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF": sys.exit(f"{file} has more than 8 bits per channel: convert it first")
    if "A" in picture.mode.upper() or "transparency" in picture.info: picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return numpy.asarray(PIL.ImageOps.fit(picture.convert("RGB"), (side, side), how))
for file in sys.argv[2:]: p = session.run(["probabilities"], {"pixels": square(file)[None]})[0][0]; print(file, about["classes"][p.argmax()], f"{p.max():.6f}", sep="\t")
