"One color per method and per head in every figure"
import numpy as np

from dho_nb.core.plotting import HEAD_COLORS, METHOD_COLORS, part_style
from dho_nb.evaluation.diagnostics import AGREEMENT, plot_agreement, plot_conflict
from dho_nb.losses.methods import METHODS
from dho_nb.reports import figures
from dho_nb.training.trainer import plot_training_history


def colors(axis): return {line.get_label(): line.get_color() for line in axis.get_lines()}

def test_every_method_of_the_library_has_its_own_color():
    assert {*METHODS} == {*METHOD_COLORS} and len({*METHOD_COLORS.values()}) == len(METHOD_COLORS)

def test_methods_keep_their_color_in_tables_figures_and_in_the_picture_of_the_conflict():
    styles = figures._line_styles(["own", *METHOD_COLORS])
    assert {n: styles[n]["color"] for n in METHOD_COLORS} == METHOD_COLORS
    drawn = colors(plot_conflict({n: np.zeros((3, 3)) for n in ("dho", "sho")}).axes[0])
    assert {n: drawn[n] for n in ("dho", "sho")} == {n: METHOD_COLORS[n] for n in ("dho", "sho")}

def test_heads_and_their_losses_have_one_color():
    drawn = plot_training_history([dict(epoch=e, loss=2., ce=1., kd_labeled=1., kd_unlabeled=1., **{"CE head accuracy": .5, "KD head accuracy": .5}) for e in (1, 2)])
    losses, heads = map(colors, drawn.axes)
    assert losses["ce"] == heads["CE head"] == HEAD_COLORS["CE head"] == AGREEMENT["only the CE head"][1]
    assert losses["kd labeled"] == losses["kd unlabeled"] == heads["KD head"] == AGREEMENT["only the KD head"][1]
    shares = dict(both_right=.5, ce_only=.2, kd_only=.2, both_wrong=.1, same_prediction=.5, ce_only_left=.1)
    assert plot_agreement(shares).axes[0].patches[2].get_facecolor()[:3] == plot_agreement(shares).axes[0].patches[3].get_facecolor()[:3]
    assert part_style("loss")["color"] == HEAD_COLORS["both"] == METHOD_COLORS["dho"]
