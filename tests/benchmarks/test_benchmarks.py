"""What the benchmarks make of their measurements, and what they compare with.  No test asserts a time."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms import functional

import benchmarks
from benchmarks import (  # noqa: F401
    augmentation,
    data,
    evaluation,
    frozen_classifier,
    gpu,
    implementations,
    inversion,
    profile,
    scorecam,
    scorecam_clusters,
    side_by_side,
    soak,
    training_step,
)
from benchmarks.chart import (
    NAMES,
    WORK,
    clusters_markdown,
    draw_ratios,
    duration,
    gpu_markdown,
    profile_markdown,
    ratios_markdown,
    read_tables,
    scaling_markdown,
    with_table,
)
from benchmarks.implementations import Comparison, Measurement, make_table
from benchmarks.inversion import NORMALIZATION, plain_picture
from evaluation.checkpoints import TrainedRun
from tests.small_runs import small_run

COMPARISON = Comparison("maps", {"slow": None, "fast": None, "ours": None}, peers=("slow", "fast"), reference="ours")


def measured(implementation, *seconds):
    return [
        {
            "what": "maps",
            "implementation": implementation,
            "seconds": each,
            "images": 2,
            "peak_mib": 7,
            "note": implementation,
        }
        for each in seconds
    ]


@pytest.fixture
def table():
    found = [*measured("slow", 8, 9, 30), *measured("fast", 4, 6, 5), *measured("ours", 2, 1, 1)]
    maps = np.array([[0.0, 1.0], [2.0, 4.0]])
    results = {("maps", "slow"): 1 - maps, ("maps", "fast"): maps + [[0, 0], [0, 0.5]], ("maps", "ours"): maps}
    return make_table([COMPARISON], found, results).set_index("implementation")


def test_seconds_are_medians_and_ratios_those_to_the_faster_peer(table):
    assert table["seconds"].tolist() == [9, 5, 1]
    assert table["spread"].tolist() == ["8 to 30", "4 to 6", "1 to 2"]
    assert table["ratio"].tolist() == pytest.approx([5 / 9, 1, 5], rel=1e-2)
    assert set(table["ratio_to"]) == {"fast"} and table["note"].tolist() == ["slow", "fast", "ours"]


def test_results_are_compared_with_the_references(table):
    assert table.loc["fast", "largest_difference"] == 0.5 and table.loc["slow", "largest_difference"] == 7
    assert table.loc["slow", "correlation"] == -1 and 0.9 < table.loc["fast", "correlation"] < 1
    assert pd.isna(table.loc["ours", "largest_difference"])


def test_a_process_prints_what_it_measured_and_keeps_the_result(tmp_path, capsys):
    implementation = Measurement(2.0, 3, np.arange(4), {"note": "one epoch, times 50"})
    comparisons = [Comparison(what, {"ours": lambda: implementation}, peers=("ours",)) for what in ("this", "that")]
    arguments = ["--what", "that", "--implementation", "ours", "--result", str(tmp_path / "result.npy")]
    assert implementations.main("any", "", comparisons, arguments=arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("peak_mib") > 0
    assert printed == {
        "what": "that",
        "implementation": "ours",
        "seconds": 2,
        "images": 3,
        "note": "one epoch, times 50",
    }
    assert np.load(tmp_path / "result.npy").tolist() == [0, 1, 2, 3]


def test_both_ways_to_read_an_epoch_give_the_same_images_to_compare(root, scene_folder, monkeypatch):
    monkeypatch.setattr(implementations, "data_set", lambda: str(scene_folder))
    monkeypatch.setattr(data, "BASE", replace(data.BASE, batch_size=2))
    plain, ours = (each().result for each in data.EPOCHS["basic"].values())
    assert len(plain) > 2 and plain.shape == ours.shape
    np.testing.assert_allclose(plain, ours, atol=1e-6)


def test_a_process_that_fails_is_named_with_its_last_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)nowhere, maps, slow failed:.*No module named benchmarks.nowhere"):
        implementations.measure_in_turn("nowhere", [COMPARISON], 1, tmp_path)


def test_ratios_and_the_chart_name_implementations_that_exist():
    comparisons = {name: getattr(benchmarks, name).COMPARISONS for name in NAMES}
    for each in (each for of_name in comparisons.values() for each in of_name):
        assert set(each.peers) <= set(each.implementations) and each.reference in (None, *each.implementations)
        assert not any(peer.startswith("ours") for peer in each.peers)
        assert any(implementation.startswith("ours") for implementation in each.implementations)
    for name, what, implementation in WORK.values():
        assert [
            each for each in comparisons[name] if what in (None, each.what) and implementation in each.implementations
        ]


def test_our_network_is_the_plain_one_and_its_logits_depend_on_the_image(monkeypatch):
    monkeypatch.delenv("WEIGHTS", raising=False)
    plain, images = implementations.plain_network(), implementations.draw_images(2, size=64)
    with torch.inference_mode():
        logits = plain(images)
        torch.testing.assert_close(implementations.our_network(plain)(images), logits, rtol=1e-3, atol=1e-3)
    assert (logits[0] - logits[1]).abs().max() > 0.1


def test_the_plain_recipe_raises_its_objective(small_network):
    small_network.eval().classifier[1].weight.data *= 100  # the recipe's bytes swallow small steps

    def logit(steps):
        images = functional.to_tensor(plain_picture(small_network, 1, steps, size=32))[None]
        with torch.no_grad():
            return small_network(functional.normalize(images, *NORMALIZATION))[0, 1].item()

    assert logit(20) > logit(0) + 1


def test_the_readmes_tables_come_from_the_benchmarks_tables(table):
    rows = table.reset_index().assign(rounds=2, machine="a machine")
    written = ratios_markdown({"scorecam": rows})
    assert "| maps | fast | 5 (4 to 6) | 1 | 7 | 0.5 |" in written
    assert "| maps | ours | 1 (1 to 2) | **5**, to fast | 7 |  |  | note ours |" in written
    assert written.endswith("\n\nscorecam: a machine.")
    once = ratios_markdown({"scorecam": rows.assign(rounds=1)})
    assert "| maps | ours | 1 (one round) | 5, to fast | 7 |" in once

    scaled = scaling_markdown({"training_step": rows})  # "ours" takes 0.5 s an image
    assert scaled.splitlines()[2:] == ["| a training epoch | 0.5 s | 8.3 min | 5.8 days | 579 days | 5.8 days |"]

    readme = "before <!-- scaling: written by python -m benchmarks.chart -->\nold\n<!-- end of scaling --> after"
    once = with_table(readme, "scaling", scaled)
    assert once.startswith("before ") and once.endswith(" after") and scaled in once and "old" not in once
    assert with_table(once, "scaling", scaled) == once
    with pytest.raises(ValueError, match="lacks the comments"):
        with_table(readme, "ratios", scaled)


def test_a_bar_for_each_of_our_implementations(table):
    (ax,) = draw_ratios({"scorecam": table.reset_index()}).axes
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(1, 4)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["maps: ours\nto fast"]


def test_durations_are_in_the_largest_unit_of_which_there_are_two():
    assert [duration(each) for each in (1.234, 119, 120, 7200, 86400, 200_000, 1e8)] == [
        "1.23 s",
        "119 s",
        "2.0 min",
        "2.0 h",
        "24 h",
        "2.3 days",
        "3.2 years",
    ]


def test_a_profile_has_a_column_of_shares_per_implementation_and_their_seconds_in_all():
    rows = [("step", "plain", "a", 1.0), ("step", "plain", "b", 2.0), ("step", "ours", "b", 0.5)]
    lines = profile_markdown(
        pd.DataFrame(rows, columns=["what", "implementation", "operations", "seconds"])
    ).splitlines()
    assert lines[0] == "| step: percent of the time | plain | ours |"
    assert lines[2:] == ["| b | 66.7 | 100.0 |", "| a | 33.3 | 0.0 |", "| **all, seconds** | 3.000 | 0.500 |"]


def test_operations_are_timed_by_kind():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.SiLU())
    found = profile.seconds_by_kind(lambda: network(torch.rand(2, 3, 16, 16)).sum().backward())
    kinds = ("BatchNorm", "SiLU", "BatchNorm, backward", "SiLU, backward", "all else")  # and convolutions
    assert all(0 < found[kind] < 1 for kind in kinds)


def test_maps_with_clusters_are_summarised_a_network_and_a_number_of_clusters():
    rows = pd.DataFrame({"run": "a", "weighting": "softmax", "clusters": 64, "correlation": [1.0, 0.9, float("nan")]})
    rows = rows.assign(passes=[128, 192, 1280], share_of_time=[0.1, 0.2, 0.6], exact=[False, False, True])
    assert clusters_markdown(rows).splitlines()[2] == "| a | 64 | 3 | 533 | 0.9000 | 0.0000 | 0.33 | 0.300 |"


def test_clusters_are_compared_with_every_mask_scored_once(monkeypatch, tmp_path):
    torch.manual_seed(0)
    network = implementations.our_network(implementations.plain_network())
    run = TrainedRun("any", network, ("a",) * 15, 64, "imagenet", "0")
    monkeypatch.setattr(scorecam_clusters, "CLUSTERS", (8, 640))
    image, path, passes = implementations.draw_images(1, size=64), tmp_path / "scores" / "0.npz", []
    handle = network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    few, all_of_them = scorecam_clusters.compare(run, image, path)
    assert sum(passes) == 1281 and few["passes"] < all_of_them["passes"] == 1280
    assert all_of_them["correlation"] == pytest.approx(1) and all_of_them["exact"]
    assert not (few["empty"] or few["fell_back"])
    besides = few["seconds_besides"] / few["exact_seconds"]
    assert few["share_of_time"] == pytest.approx(few["passes"] / 1280 + besides)
    again, _ = scorecam_clusters.compare(run, image, path, "probability")  # from the scores that were kept
    handle.remove()
    assert sum(passes) == 1282 and again["exact_seconds"] == few["exact_seconds"]


def test_the_gpu_script_measures_every_case_and_writes_after_each_line(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "explanations", lambda options: [])  # their parts are measured by benchmarks.scorecam
    monkeypatch.setattr(gpu.Options, "epochs", 2)
    path = tmp_path / "gpu.csv"
    tables, write = [], pd.DataFrame.to_csv
    monkeypatch.setattr(
        pd.DataFrame, "to_csv", lambda table, *given, **more: (tables.append(table), write(table, *given, **more))
    )
    size = ["--device", "cpu", "--batches", "8", "--size", "32", "--batches-per-epoch", "2", "--output", str(path)]
    assert gpu.main(size) == 0
    table = pd.read_csv(path)
    assert len(tables) == len(table) == 2 * len(gpu.CASES) + 1
    assert (
        set(table["size"]) == {32}
        and (table.images_per_second > 0).all()
        and set(table.case) == {*gpu.CASES, "evaluation"}
    )
    assert set(table.implementation) == {"step alone", "loop, eager", "ours"} and set(table.precision) == {"float32"}


@pytest.mark.parametrize(
    "command",
    [
        lambda: implementations.main("scorecam", "", scorecam.COMPARISONS, arguments=["--rounds", "0"]),
        lambda: soak.main(["--minutes", "0"]),
        lambda: scorecam_clusters.main(["--images", "0"]),
    ],
)
def test_nothing_to_measure_is_a_mistake_and_no_table_is_written(command, capsys, monkeypatch):
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: pytest.fail("a table was written"))
    try:
        code = command()
    except SystemExit as error:  # argparse's
        code = error.code
    assert code == 2 and "must be" in capsys.readouterr().err


def test_rows_of_earlier_weights_or_images_are_measured_again_and_weightings_are_told_apart(
    root, scene_folder, tmp_path, monkeypatch
):
    run, output = replace(small_run("tiny"), file=tmp_path / "tiny.pt"), tmp_path / "clusters.csv"
    monkeypatch.setattr(scorecam_clusters, "load_trained", lambda name: run)
    monkeypatch.setattr(scorecam_clusters, "CLUSTERS", (2,))
    monkeypatch.setattr(implementations, "data_set", lambda: str(scene_folder))
    monkeypatch.setattr(type(run), "layer", lambda self, _: self.model.features)
    monkeypatch.setattr(type(run), "folded", lambda self: self)
    arguments = ["tiny", "--output", str(output), "--images", "2"]
    assert scorecam_clusters.main(arguments) == 0
    first = pd.read_csv(output)
    assert scorecam_clusters.main([*arguments, "--weighting", "probability"]) == 0
    both = pd.read_csv(output)
    assert both[:2].equals(first) and len(both) == 4  # not measured again: the same seconds
    lines = clusters_markdown(both).splitlines()[2:]
    assert lines[0].startswith("| tiny, probability |") and lines[1].startswith("| tiny | 2 |")
    run = replace(run, weights="of another training")
    assert scorecam_clusters.main(arguments) == 0
    assert set(pd.read_csv(output)["weights"]) == {"of another training"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_says_where_there_is_none(tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path / "gpu.csv")]) == 2
    assert "no GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", augmentation.ONE_BY_ONE)
def test_both_ways_to_augment_give_network_input_of_the_same_statistics(name):
    batch = augmentation.images()[:8]
    one, other = (each(name, batch, 0) for each in (augmentation.one_by_one, augmentation.whole_batch))
    assert one.shape == other.shape == (8, 3, 224, 224)
    assert abs(one.mean() - other.mean()) < 0.3
    assert one.std().item() == pytest.approx(other.std().item(), rel=0.05)
    # Noise has larger steps between neighbors the less it is magnified.
    steps, other_steps = (images.diff().abs().mean().item() for images in (one, other))
    assert steps == pytest.approx(other_steps, rel=0.2)


def test_a_counted_training_counts_the_images_of_its_steps_and_ends_when_its_phase_is_over():
    images, phase = SimpleNamespace(value=0), SimpleNamespace(value=0)
    objective = side_by_side.Counted(images, phase, own=0)
    objective.after_step(None)
    objective.after_step(None)
    assert images.value == 2 * side_by_side.BATCH_SIZE
    phase.value = 1
    with pytest.raises(side_by_side.EndedError):
        objective.after_step(None)
    assert objective.recordable  # as the cross-entropy that it stands for


@pytest.mark.slow
def test_trainings_side_by_side_are_counted_together_and_lines_are_added(tmp_path):
    path = tmp_path / "side_by_side.csv"
    size = ["--device", "cpu", "--processes", "2", "--size", "32", "--seconds", "2", "--output", str(path)]
    assert side_by_side.main(size) == 0 and side_by_side.main(size) == 0
    table = pd.read_csv(path)
    assert table["step"].tolist() == ["eager", "eager"] and set(table["processes"]) == {2}
    assert (table["images_per_second"] > 0).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_trainings_side_by_side_need_a_gpu_or_a_number_of_processes(tmp_path, capsys):
    output = ["--output", str(tmp_path / "side_by_side.csv")]
    assert side_by_side.main(output) == 2 and "no GPU" in capsys.readouterr().err
    assert side_by_side.main([*output, "--device", "cpu", "--processes", "0"]) == 2
    assert "--processes is 0" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_table_of_a_gpu_has_shares_of_the_step_alone_of_the_same_case_and_batch():
    alone = pd.DataFrame(
        [
            ("plain", 32, "step alone", 1000.0),
            ("plain", 32, "loop, graph", 2500.0),
            ("plain", 256, "loop, graph", 4000.0),
        ],
        columns=["case", "batch_size", "implementation", "images_per_second"],
    ).assign(device="GPU", torch="2.11", precision="bfloat16")
    together = pd.DataFrame(
        [("graph", 14, False, 2600.0), ("graph", 14, True, 4400.0)],
        columns=["step", "processes", "mps", "images_per_second"],
    ).assign(device="GPU", torch="2.11", precision="bfloat16")
    lines = gpu_markdown(alone, together).splitlines()
    assert lines[2:5] == [
        "| plain | 32 | step alone | 1,000 |  |",
        "| plain | 32 | loop, graph | 2,500 | 2.50 |",
        "| plain | 256 | loop, graph | 4,000 |  |",
    ]
    assert lines[8:10] == ["| 14 | no | graph | 2,600 |", "| 14 | yes | graph | 4,400 |"]
    assert lines[-1] == "GPU, torch 2.11, bfloat16."


def test_the_committed_page_holds_the_committed_tables():
    page, tables = (implementations.FOLDER / "README.md").read_text(encoding="utf-8"), read_tables()
    of_file = {
        name: pd.read_csv(implementations.FOLDER / f"{name}.csv")
        for name in ("profile", "scorecam_clusters", "gpu", "side_by_side")
    }
    assert ratios_markdown(tables) in page and scaling_markdown(tables) in page
    assert profile_markdown(of_file["profile"]) in page and clusters_markdown(of_file["scorecam_clusters"]) in page
    assert gpu_markdown(of_file["gpu"], of_file["side_by_side"]) in page
