"What an exported model says: python predict_onnx.py model.onnx photo.jpg … (needs onnxruntime, numpy and pillow, not dho_nb)"
import json, sys, numpy, onnxruntime, PIL.Image, PIL.ImageOps
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["dho_nb"])
side, how = about["preprocess"]["size"], PIL.Image.Resampling[about["preprocess"]["interpolation"].upper()]
def square(file):
    picture = PIL.Image.open(file)
    picture.draft("RGB", (2*side, 2*side))
    return numpy.asarray(PIL.ImageOps.fit(PIL.ImageOps.exif_transpose(picture).convert("RGB"), (side, side), how))
answers = session.run(["probabilities"], {"pixels": numpy.stack([square(file) for file in sys.argv[2:]])})[0]
for file, p in zip(sys.argv[2:], answers): print(file, about["classes"][p.argmax()], f"{p.max():.6f}", sep="\t")
