import pandas as pd
import pytest
import torch

from evaluation import inversion_search
from evaluation.checkpoints import load_trained
from evaluation.inversion_search import best_trials, inversion_loss, loss_curves, with_weight_decay
from evaluation.model_inversion import InversionSettings, filter_mean, invert
from hyperparameter_search import SPACES, Search, open_study, read_trials, work

HALF = (0.5, 0.5, 0.5)
SHORT = InversionSettings(image_size=32, steps=20, jitter=2)


@pytest.mark.parametrize(
    ("learning_rate", "weight_decay", "share"), [(0.01, 0.1, 0.000999), (1.0, 1.0, 0.5), (100.0, 100.0, 0.9999)]
)
def test_a_weight_decay_takes_a_share_of_a_pixel_however_high_it_is(learning_rate, weight_decay, share):
    settings = with_weight_decay(SHORT, learning_rate, weight_decay)
    assert settings.learning_rate == learning_rate
    assert settings.decay == pytest.approx(share, rel=1e-4)


def search(file, network, sampler="grid", trials=3):
    searched = Search(file, {"settings": {"name": "toy"}}, "inversion", sampler)
    study = open_study(searched, trials)
    objective = inversion_loss(network, filter_mean(network.features[2]), 1, SHORT, HALF, HALF)
    work(searched, study, objective, progress=False)
    return study


def test_a_trial_is_an_inversion_and_its_value_the_median_of_its_last_ten_losses(small_network, tmp_path):
    study = search(tmp_path / "toy.db", small_network)
    curves = loss_curves(study)
    assert curves.shape == (20, 3) and curves.index.tolist() == list(range(1, 21))
    for trial in study.trials:
        assert trial.value == pytest.approx(curves[trial.number].tail(10).median(), rel=1e-6)
        settings = with_weight_decay(SHORT, trial.params["learning_rate"], trial.params["weight_decay"])
        alone = invert(small_network, filter_mean(small_network.features[2]), [1], settings, HALF, HALF, progress=False)
        assert trial.value == pytest.approx(float(alone.final_losses[0]))
        assert trial.user_attrs["converged"] == bool(alone.converged[0])


def test_parameters_lie_in_the_reports_range_and_the_grid_has_the_cells_it_reports(small_network, tmp_path):
    study = search(tmp_path / "toy.db", small_network, "tpe", trials=4)
    for trial in study.trials:
        assert all(1e-6 <= value <= 1e2 for value in trial.params.values())
    for cell in ({"learning_rate": 0.1, "weight_decay": 1.0}, {"learning_rate": 100.0, "weight_decay": 0.1}):
        assert cell in SPACES["inversion"].cells


def stop_at_once(*_):
    raise KeyboardInterrupt


def test_an_interrupted_search_is_not_complete_and_one_of_other_weights_is_removed(tiny_run, tmp_path, monkeypatch):
    folder, name = tmp_path / "searches", "tiny"
    table = inversion_search.file_of(folder, name, "grid").with_suffix(".csv")
    interrupted = iter([None, KeyboardInterrupt])  # after the trials, in the first picture

    def search_again(checkpoint=tiny_run):
        return inversion_search.collect_inversions(name, checkpoint, folder, 1, 20, compute=True)

    invert = inversion_search.invert

    def stop(*arguments, **more):
        error = next(interrupted)
        if error is not None:
            raise error
        return invert(*arguments, **more)

    monkeypatch.setattr(inversion_search, "invert", stop)
    with pytest.raises(KeyboardInterrupt):
        search_again()
    monkeypatch.setattr(inversion_search, "invert", invert)
    assert table.exists() and not inversion_search._is_complete(table, 1)
    found = search_again()
    assert inversion_search.best_pictures(found) and inversion_search._is_complete(table, 1)
    monkeypatch.setattr(inversion_search, "work", stop_at_once)
    with pytest.raises(KeyboardInterrupt):  # more trials of the same search
        inversion_search.search_inversion(load_trained(str(tiny_run)), folder, "grid", 2, 20)
    monkeypatch.undo()
    assert not inversion_search._is_complete(table, 1)
    search_again()
    before = read_trials(table)
    saved = torch.load(tiny_run, weights_only=True)
    saved["model"]["classifier.1.bias"] += 1
    (tmp_path / "other").mkdir()
    torch.save(saved, tmp_path / "other" / "tiny.pt")
    search_again(tmp_path / "other" / "tiny.pt")
    after = read_trials(table)
    assert (len(before), len(after)) == (2, 1) and after["weights"][0] != before["weights"][0]


def test_the_best_trial_and_the_best_of_those_that_converged_are_two():
    trials = pd.DataFrame({"value": [-1.0, -9.0, -3.0], "converged": [True, False, True], "trial": [4, 5, 6]})
    assert {which: trial["trial"] for which, trial in best_trials(trials).items()} == {
        "lowest": 5,
        "lowest_converged": 6,
    }
    assert list(best_trials(trials.assign(converged=False))) == ["lowest"]


def test_the_command_leaves_trials_curves_and_images_and_goes_on_where_it_was(tiny_run, tmp_path, capsys):
    arguments = ["--model", str(tiny_run), "--steps", "20", "--output", str(tmp_path / "out")]
    assert inversion_search.main([*arguments, "--trials", "1"]) == 0
    assert inversion_search.main([*arguments, "--trials", "2"]) == 0
    stem = tmp_path / "out" / "inversion_tiny_filter70_grid_seed0"
    trials = read_trials(f"{stem}.csv")
    assert trials["trial"].tolist() == [0, 1] and trials["image_size"].tolist() == [32, 32]
    curves = pd.read_csv(f"{stem}.curves.csv", index_col="step")
    assert curves["1"].tail(10).median() == pytest.approx(trials["value"][1], rel=1e-3)
    assert (tmp_path / "out" / f"{stem.name}.lowest.png").stat().st_size > 0
    assert f"lowest: loss {trials['value'].min():.4g} with" in capsys.readouterr().out


def test_a_users_mistake_is_one_sentence_and_exit_code_2(tiny_run, tmp_path, capsys):
    arguments = ["--model", str(tiny_run), "--steps", "20", "--output", str(tmp_path / "out")]
    mistakes = {
        "there is no trained run nothing": [*arguments, "--model", "nothing"],
        "trials is 0; it must be at least 1": [*arguments, "--trials", "0"],
        "steps is 5; it must be at least 20": [*arguments, "--steps", "5"],
        "the layer has 0 to 1279": [*arguments, "--filter", "1280", "--trials", "1"],
    }
    for words, given in mistakes.items():
        assert inversion_search.main(given) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and words in error
    assert inversion_search.main([*arguments, "--trials", "1"]) == 0
    assert inversion_search.main([*arguments, "--trials", "1", "--steps", "21"]) == 2
    assert "is a search with settings.steps = 20, but 21 is asked for" in capsys.readouterr().err
