"""Lines that matter are broken one at a time, in a copy of the project: a fast test must notice each."""

import subprocess

import pytest

from data.files import CODE
from tests.project_copy import copy_project

DATA, MODELS, EVALUATION = "tests/data/test_", "tests/supervised/test_", "tests/evaluation/test_"
MUTATIONS = {  # what breaks: file, line as it is, as it is broken, test that must notice
    "frozen stages leave eval mode in training": (
        "supervised/models.py",
        "        self.features[: self.frozen_stages].eval()\n",
        "",
        f"{MODELS}models.py::test_of_partly_frozen_features_the_first_stages_are_bit_identical_and_the_others_are_not",
    ),
    "validation images are augmented": (
        "supervised/dataloader.py",
        "split: SceneDataset(scenes, experiment.resize) for",
        "split: SceneDataset(scenes, experiment.resize, AUGMENTATIONS.get(experiment.augmentation)) for",
        f"{MODELS}dataloader.py::test_validation_and_test_images_are_never_augmented",
    ),
    "val and test share their images": (
        "data/image_cache.py",
        "scenes.subset(np.flatnonzero(~in_val))",
        "scenes.subset(np.flatnonzero(in_val))",
        f"{DATA}image_cache.py::test_one_folder_besides_train_is_divided_into_val_and_test",
    ),
    "a changed image is read from the cache": (
        "data/image_cache.py",
        "{self.skip_bad_images}|{self.images.fingerprint()}",
        "{self.skip_bad_images}|{self.images.names}",
        f"{DATA}image_cache.py::test_a_changed_file_is_noticed_and_the_old_images_are_removed",
    ),
    "an archive may write outside its folder": (
        "data/download.py",
        'if path.anchor or ".." in path.parts:',
        "if path.anchor:",
        f"{DATA}download.py::test_an_archive_that_leads_outside_is_refused_before_anything_is_written",
    ),
    "a failed write leaves a partial file": (
        "data/files.py",
        "        temporary.unlink(missing_ok=True)\n",
        "        pass\n",
        f"{DATA}files.py::test_a_write_that_fails_leaves_the_old_file_and_nothing_else",
    ),
    "a checkpoint may run code": (
        "data/files.py",
        "weights_only=True)",
        "weights_only=False)",
        "tests/test_runs.py::test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run",
    ),
    "a mistake has the exit code of a defect": (
        "data/files.py",
        "        return 2\n",
        "        return 1\n",
        "tests/faults/test_bad_input.py::test_a_folder_that_is_no_data_set",
    ),
    "a loss is the mean of the means of batches": (
        "helper_functions.py",
        'loss = nn.functional.cross_entropy(logits, labels, reduction="sum")',
        "loss = nn.functional.cross_entropy(logits, labels) * 16",
        "tests/test_helper_functions.py::"
        "test_the_train_loss_is_plain_cross_entropy_over_all_images_whatever_is_minimized",
    ),
    "a continued training shuffles anew": (
        "helper_functions.py",
        "        set_generators(self.sampler_generator, state",
        "        set_generators(None, state",
        "tests/test_runs.py::test_an_interrupted_run_ends_with_the_history_and_weights_of_an_uninterrupted_one",
    ),
    "the epoch is chosen on the test images": (
        "runs.py",
        '    epoch = history.epochs if keep == "last" else history.best_epoch\n',
        "    epoch = earlier_epoch\n",
        "tests/test_runs.py::test_the_epoch_is_chosen_on_val_and_under_the_earlier_protocol_on_all_images",
    ),
    "a finished run is read back whatever its settings": (
        "runs.py",
        "    if difference is None:\n        job.model",
        "    if True:\n        job.model",
        "tests/test_runs.py::test_a_run_of_other_settings_is_refused_by_the_field_and_replaced_with_overwrite",
    ),
    "two commands train the same run": (
        "runs.py",
        "with locked(files.lock, timeout=-1 if job.wait else 0):",
        "with locked(files.lock.with_name(str(os.getpid()))):",
        "tests/test_runs.py::test_a_run_that_another_process_trains_is_refused_with_the_process",
    ),
    "rotations are clockwise": (
        "self_supervised/dataloader.py",
        "torch.rot90(images[chosen], turns, dims=(-2, -1))",
        "torch.rot90(images[chosen], -turns, dims=(-2, -1))",
        "tests/self_supervised/test_dataloader.py::test_rotations_are_counter_clockwise",
    ),
    "the white square is not white": (
        "self_supervised/dataloader.py",
        "= 255 * label",
        "= 250 * label",
        "tests/self_supervised/test_dataloader.py::test_a_perturbation_changes_exactly_the_pixels_of_its_square_to_black_or_white",
    ),
    "the trial of a killed worker is lost": (
        "hyperparameter_search.py",
        "            RetryHeartbeatStaleTrialCallback()(study, trial)\n",
        "            pass\n",
        "tests/test_hyperparameter_search.py::test_a_worker_killed_before_it_sets_parameters_loses_no_trial",
    ),
    "Score-CAM masks nothing": (
        "evaluation/scorecam.py",
        "masked = self.images[images] * masks[:, None]",
        "masked = self.images[images] * (0 * masks[:, None] + 1)",
        f"{EVALUATION}scorecam.py::test_the_map_highlights_the_half_that_determines_the_class",
    ),
    "the gradient of an inverted image is not clipped": (
        "evaluation/model_inversion.py",
        "parameters.grad = clip_gradient(gradient, settings.gradient_clip)",
        "parameters.grad = gradient",
        f"{EVALUATION}model_inversion.py::test_every_regulariser_changes_the_image",
    ),
    "a comparison leaves out seed variance": (
        "evaluation/statistics.py",
        "if len(side) > 1 and not fixed]",
        "if False]",
        f"{EVALUATION}statistics.py::test_the_interval_covers_the_true_difference_over_random_images_and_three_random_seeds",
    ),
    "p is not corrected for the family": (
        "evaluation/statistics.py",
        "min(1.0, 2 * comparisons *",
        "min(1.0, 2 *",
        f"{EVALUATION}statistics.py::test_a_family_divides_the_level_and_multiplies_p",
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, and how to run pytest in it."""
    folder = tmp_path_factory.mktemp("project")
    environment = copy_project(folder)

    def run(*tests: str) -> subprocess.CompletedProcess:
        command = ["python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return folder, run


@pytest.mark.parametrize(("file", "line", "_", "test"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_line_to_break_is_there_once_and_so_is_its_test(file, line, _, test):
    assert (CODE / file).read_text().count(line) == 1
    path, _, name = test.partition("::")
    assert (CODE / path).read_text().count(f"\ndef {name.partition('[')[0]}(") == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_line_is_noticed(project, case):
    file, line, broken, test = case
    folder, run = project
    whole = (folder / file).read_text()
    (folder / file).write_text(whole.replace(line, broken))
    try:
        done = run(test)
    finally:
        (folder / file).write_text(whole)
    assert done.returncode == 1, done.stdout + done.stderr  # 1: a test failed; others: it could not be run
    assert " failed" in done.stdout and "error" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_nothing_is_noticed_where_no_line_is_broken(project):
    _, run = project
    done = run(*(test for *_, test in MUTATIONS.values()))
    assert done.returncode == 0, done.stdout + done.stderr
