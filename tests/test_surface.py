"The fast α/β surface is the loop over whole rows, and its bound bounds what it should"
import itertools
from unittest.mock import patch
import numpy as np
import pandas as pd
import torch
import dho_nb.evaluation.interpolation as made
from dho_nb.evaluation.interpolation import ALPHAS, BETAS, AlphaBetaGrid
from dho_nb.evaluation.outputs import HeadOutputs
from dho_nb.core.errors import DhoError

def loop(outputs, alphas=ALPHAS, betas=BETAS):
    "The former `surface`: every cell from all classes"
    ce, cells = outputs.ce.softmax(-1), {}
    for beta in betas:
        kd = (outputs.kd/beta).softmax(-1)
        for alpha in alphas:
            p = alpha*ce + (1 - alpha)*kd
            right = p[torch.arange(len(p)), outputs.labels].double().clamp_min(1e-12)
            cells[alpha, beta] = (p.argmax(-1) == outputs.labels).double().mean().item(), -right.log().mean().item()
    sides = dict(index=pd.Index(alphas, name="α"), columns=pd.Index(betas, name="β"))
    grid = lambda i: pd.DataFrame([[cells[a, b][i] for b in betas] for a in alphas], **sides)
    return AlphaBetaGrid(grid(0), grid(1))

def heads(kind, n, c, seed=0):
    "Logits of one `kind`, and labels"
    g = torch.Generator().manual_seed(seed)
    ce, kd, labels = torch.randn(n, c, generator=g), torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)
    shift = torch.zeros(n, c); shift[torch.arange(n), labels] = 3.
    both, low = lambda f: (f(ce), f(kd)), -torch.inf
    kinds = dict(
        random=(4*ce, kd), agree=(3*(ce + shift), kd + shift), one_head=both(lambda z: 2*ce + shift),
        opposite=(3*ce, -3*ce), rounded=((3*(ce + shift)).bfloat16().float(), (kd + shift).bfloat16().float()),
        tied=(ce.round(), (2*kd).round()), binary=both(lambda z: (z > 0).float()), zeros=both(torch.zeros_like),
        same=both(lambda z: z[:1].expand(n, c)), extreme=both(lambda z: 100*z.sign()), huge=both(lambda z: 100*z),
        flat=both(lambda z: 1e-4*z), swamped=(ce*1e30, kd*1e-30), some_infinite=both(lambda z: z.where(z > z.mean(1, keepdim=True), low)))
    return HeadOutputs(*(z.contiguous() for z in kinds[kind]), labels, torch.arange(n))

KINDS = ("random agree rounded tied binary zeros same extreme huge one_head opposite flat swamped "
         "some_infinite").split()

def check(outputs, alphas=ALPHAS, betas=BETAS):
    "Accuracy to the last bit, negative log-likelihood but for the order of its sum; the share of cells that needed all classes"
    with patch.object(made, "interpolate", wraps=made.interpolate) as full: ours = made.alpha_beta_grid(outputs, alphas, betas)
    theirs = loop(outputs, alphas, betas)
    pd.testing.assert_frame_equal(ours.accuracy, theirs.accuracy, check_exact=True)
    pd.testing.assert_frame_equal(ours.nll, theirs.nll, rtol=1e-12, atol=1e-300)
    return sum(len(call.args[0]) for call in full.call_args_list)/(len(outputs)*len(alphas)*len(betas))

def test_equal():
    for kind, c, n in itertools.product(KINDS, (2, 3, 10, 1000), (1, 7, 1200)):
        few = dict(alphas=(0., .05, .5, .95, 1.), betas=(.1, 1., 4.)) if n*c > 1e6 else {}
        check(heads(kind, n, c, seed=n + c), **few)

def test_grids_and_blocks():
    o = heads("tied", 1300, 40)
    grids = ((.3,), (1,)), ([0, 1], [.01, 100.]), (np.linspace(0, 1, 7), np.geomspace(.05, 20, 5)), ((1.,), (2.,))
    for alphas, betas in grids: check(o, alphas, betas)
    for rows, first in itertools.product((1, 7, 1299, 1300, 5000), (1, 2, 4, 16, 64)):
        with patch.object(made, "_ROWS", rows), patch.object(made, "_FIRST", first):
            check(heads("tied", 1300, 40, rows), ALPHAS[::5], BETAS[::4])
    check(heads("random", 30, 1))
    o, found, before = heads("agree", 3000, 500), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        check(o, ALPHAS[::4], BETAS[::3])
        found.append(made.alpha_beta_grid(o))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for other in found[1:]: assert found[0].accuracy.equals(other.accuracy) and found[0].nll.equals(other.nll)

def test_full_path():
    assert check(heads("zeros", 600, 10)) == 1
    assert 0 < check(heads("rounded", 5000, 100)) < .1
    o, shares = heads("agree", 5000, 100), []
    for first in (1, 4, 100):
        with patch.object(made, "_FIRST", first): shares.append(check(o))
    assert shares[0] > shares[1] > shares[2] and shares[0] > .001, shares
    with patch.object(made, "_SLACK", 1e30): assert check(heads("agree", 600, 10)) > .5

def test_bound():
    "No class outside the rivals is above the bound, even without its slack; every verdict is that of whole rows"
    weights = torch.tensor([[a, 1 - a] for a in ALPHAS]).T[..., None, None]
    for kind, c, first in itertools.product(KINDS, (3, 10, 300), (1, 2, 4)):
        with patch.object(made, "_FIRST", first):
            o = heads(kind, 200, c, first)
            ce, at = o.ce.softmax(-1), made._rivals(o.ce, o.kd, o.labels)
            for beta in BETAS:
                kd = (o.kd/beta).softmax(-1)
                both = ce.T.gather(0, at[0]), kd.T.gather(0, at[1])
                p, seen = weights[0]*ce + weights[1]*kd, torch.zeros(200, c, dtype=bool).scatter_(1, at[0][:-1].T, True)
                own, right, unsure = made._count_correct(*both, weights)
                assert torch.equal(own, p[:, torch.arange(200), o.labels]) or kind == "some_infinite"
                bound = (weights[0]*both[0] + weights[1]*both[1])[:, -1]
                assert not (p.masked_fill(seen, -1).amax(-1) > bound).any(), (kind, c, beta)
                assert (right == (p.argmax(-1) == o.labels))[~unsure].all(), (kind, c, beta)

def test_errors():
    o = heads("random", 4, 3)
    bad = [(o.only(slice(0, 0)), ALPHAS, BETAS), (HeadOutputs(o.ce, o.kd, o.labels - 5, o.rows), ALPHAS, BETAS),
           (o, (1.2,), BETAS), (o, (-.1, .5), BETAS), (o, ALPHAS, (0., 1.)), (o, (1.,), (-1.,)), (o, (float("nan"),), BETAS)]
    for arguments in bad:
        try: made.alpha_beta_grid(*arguments)
        except DhoError: pass
        else: raise AssertionError(arguments[1:])
