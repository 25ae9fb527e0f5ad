"""Dual-Head Optimization: distil CLIP into a small image classifier from a handful of labels.

The names below are loaded on first use, so that `import dho_nb` takes no time. Everything else is in the rooms:
`core`, `data`, `losses`, `teachers`, `students`, `training`, `evaluation`, `runs`, `sweeps`, `deploy`, `reports`, `cli`.
"""
__version__ = "0.1.0"

from importlib import import_module as _import

_PLACES = {
    "DhoError": "core.errors",
    "labeled_subset": "data.label_subsets",
    "SemiSupervisedBatches": "data.loaders",
    "Manifest": "data.manifests",
    "manifest_from_folder": "data.manifests",
    "manifest_from_labels": "data.label_files",
    "open_manifest": "data.manifests",
    "dho_loss": "losses.losses",
    "METHODS": "losses.methods",
    "load_teacher": "teachers.clip",
    "zero_shot_head": "teachers.clip",
    "open_embedding_store": "teachers.embedding_store",
    "import_embeddings": "teachers.import_embeddings",
    "DualHead": "students.dual_head",
    "build_student": "students.dual_head",
    "TrainConfig": "training.trainer",
    "Trainer": "training.trainer",
    "alpha_beta_grid": "evaluation.interpolation",
    "interpolation_scores": "evaluation.interpolation",
    "interpolate": "evaluation.interpolation",
    "Config": "runs.config",
    "preset": "runs.config",
    "cross_fit": "runs.cross_fit",
    "Labeler": "runs.labeler",
    "Run": "runs.run",
    "distill": "runs.run",
    "Sweep": "sweeps.sweep",
    "CheckpointEvaluation": "deploy.evaluate",
    "export": "deploy.export",
    "Predictor": "deploy.predictor",
    "results_table": "reports.tables",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name):
    "Load a name of `__all__` from its room"
    if name not in _PLACES: raise AttributeError(f"module 'dho_nb' has no attribute {name!r}")
    value = globals()[name] = getattr(_import(f"dho_nb.{_PLACES[name]}"), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})
