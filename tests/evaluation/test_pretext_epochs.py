from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from evaluation import pretext_epochs
from evaluation.pretext_epochs import collect
from evaluation.representation import linear_cka, neighbour_purity, rank_me
from run_files import files_of
from tests.tiny_views import TINY_VIEWS, tiny_features

PRETEXT = replace(TINY_VIEWS, seed=3, save_epochs=(1, "last"))  # of two epochs
IMAGES, LABELS = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3


def features_from(seed):
    torch.manual_seed(seed)
    return tiny_features()


@pytest.fixture
def saved(monkeypatch):
    """The features of a pretext by saved epoch: their seed, which is their digest too.  They replace those of a run."""
    epochs = {1: 11, "best": 12}

    def load_weights(experiment, profile, epoch="best", *_):
        return features_from(epochs[epoch]).state_dict(), {"sha256": f"digest {epochs[epoch]}", "data": {}}

    def build_model(*_):
        return nn.ModuleDict({"features": tiny_features()}), {}

    loaders = SimpleNamespace(test=[(IMAGES, LABELS)], data={})
    monkeypatch.setattr(pretext_epochs, "loaders_of_run", lambda *_: loaders)
    monkeypatch.setattr(pretext_epochs, "build_model", build_model)
    monkeypatch.setattr(pretext_epochs, "load_weights", load_weights)
    monkeypatch.setattr(pretext_epochs, "weights_here", lambda *_: f"digest {epochs['best']}")
    return epochs


@torch.inference_mode()
def last_stage(seed):
    return features_from(seed).eval()(IMAGES).mean(dim=(2, 3)).numpy()


def test_each_epoch_is_measured_on_its_last_stage_and_compared_with_the_weights_the_run_began_with(root, saved):
    files_of(PRETEXT, "quick").checkpoint.parent.mkdir(parents=True)
    files_of(PRETEXT, "quick").checkpoint.touch()
    table = collect([PRETEXT], "quick", compute=True)[PRETEXT.name]
    assert table["epoch"].tolist() == [0, 1, 2] and table["weights"].tolist() == ["", "digest 11", "digest 12"]
    first, *others = found = [last_stage(seed) for seed in (PRETEXT.seed, 11, 12)]
    assert table["rank_me"].tolist() == pytest.approx([rank_me(each) for each in found], rel=1e-4)
    assert table["neighbour_purity"].tolist() == [neighbour_purity(each, LABELS) for each in found]
    assert table["cka"].tolist() == pytest.approx([1, *(linear_cka(first, each) for each in others)], rel=1e-4)


def test_tables_of_epochs_are_cached_and_computed_again_for_other_weights(root, saved):
    checkpoint = files_of(PRETEXT, "quick").checkpoint
    checkpoint.parent.mkdir(parents=True)
    assert collect([PRETEXT], "quick", compute=True) == {}  # it has not been run
    checkpoint.touch()
    assert collect([PRETEXT], "quick") == {}
    first = collect([PRETEXT], "quick", compute=True)[PRETEXT.name]
    saved[1] = 13  # what is cached is not computed again
    assert collect([PRETEXT], "quick", compute=True)[PRETEXT.name].equals(first)
    saved["best"] = 14
    again = collect([PRETEXT], "quick", compute=True)[PRETEXT.name]
    assert again["weights"].tolist() == ["", "digest 13", "digest 14"]
    assert (again["cka"] != first["cka"]).tolist() == [False, True, True]
    checkpoint.unlink()
    assert collect([PRETEXT], "quick", compute=True)[PRETEXT.name].equals(again)
