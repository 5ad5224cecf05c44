import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evaluation import scores as module
from evaluation.scores import class_scores, ends_of_ranking, save_scores


def test_scores_are_reproduced_from_the_weights_to_1e_5_in_other_batches_and_after_training_mode(
    small_network, tmp_path
):
    images, labels = torch.rand(10, 3, 16, 16), torch.arange(10) % 3
    small_network(images)  # moves BatchNorm's statistics, so that training and eval mode differ
    scores = class_scores(small_network, DataLoader(TensorDataset(images, labels), 4))
    save_scores(tmp_path / "new" / "scores.npy", scores)
    torch.save(small_network.state_dict(), tmp_path / "weights.pt")

    again = type(small_network)().train()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    kept = np.load(tmp_path / "new" / "scores.npy")
    assert kept.shape == (10, 3) and kept.dtype == np.float32
    assert kept.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert np.abs(class_scores(again, DataLoader(TensorDataset(images, labels), 10)) - kept).max() < 1e-5
    with torch.no_grad():
        nn.init.normal_(again.classifier[1].weight)
    assert np.abs(class_scores(again, DataLoader(TensorDataset(images, labels), 10)) - kept).max() > 1e-5


def test_a_full_disk_leaves_the_scores_that_were_there(tmp_path, monkeypatch):
    save_scores(tmp_path / "scores.npy", np.ones((2, 2), dtype=np.float32))

    def full(file, scores):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(OSError):
        save_scores(tmp_path / "scores.npy", np.zeros((2, 2), dtype=np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npy"]
    assert np.load(tmp_path / "scores.npy").all()


def test_the_ends_of_a_ranking_are_the_highest_from_the_top_and_the_lowest_from_the_bottom():
    of_class = np.array([0.3, 0.9, 0.1, 0.9, 0.2])
    highest, lowest = ends_of_ranking(np.stack([1 - of_class, of_class], axis=1), 1, count=3)
    assert highest.tolist() == [1, 3, 0]
    assert lowest.tolist() == [2, 4, 0]
