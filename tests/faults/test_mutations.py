"""Break load-bearing lines one at a time and see that a test fails: python tests/faults/mutations.py

Each is broken in a copy of the project, in a temporary folder.  Prints a table, and ends with 1 if a broken line went
unnoticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = (  # what breaks, file, line as it is, as it is broken, tests that must notice
    (
        "frozen features leave eval mode in training",
        "supervised/models.py",
        "        self.features[: self.frozen_stages].eval()",
        "        pass",
        "tests/supervised/test_models.py -k frozen",
    ),
    (
        "val and test share their images",
        "data/scenes.py",
        "scenes.subset(np.flatnonzero(~chosen))",
        "scenes.subset(np.flatnonzero(chosen))",
        "tests/data/test_scenes.py -k divided",
    ),
    (
        "a loss is the mean of the means of batches",
        "helper_functions.py",
        'loss_sum += nn.functional.cross_entropy(logits, labels, reduction="sum").item()',
        "loss_sum += nn.functional.cross_entropy(logits, labels).item() * 16",
        "tests/test_helper_functions.py -k train_loss",
    ),
    (
        "the epoch is chosen on the test images",
        "runs.py",
        "    epoch = history.best_epoch\n",
        "    epoch = earlier_protocol_epoch\n",
        "tests/test_runs.py -k chosen",
    ),
    (
        "turns go the other way round",
        "self_supervised/dataloader.py",
        "torch.rot90(image, label, dims=(-2, -1))",
        "torch.rot90(image, -label, dims=(-2, -1))",
        "tests/self_supervised/test_dataloader.py tests/test_properties.py -k turn",
    ),
    (
        "the white square is not white",
        "self_supervised/dataloader.py",
        "left : left + self.square] = 255 * label",
        "left : left + self.square] = 250 * label",
        "tests/self_supervised/test_dataloader.py -k square",
    ),
    (
        "validation images are augmented",
        "supervised/dataloader.py",
        "in_order={split: SceneDataset(scenes, experiment.resize) for",
        "in_order={split: SceneDataset(scenes, experiment.resize, augmentation) for",
        "tests/supervised/test_dataloader.py -k augmented",
    ),
    (
        "an archive may write outside its folder",
        "data/archives.py",
        'if path.anchor or ".." in path.parts:',
        "if path.anchor:",
        "tests/faults/test_bad_input.py -k climbs",
    ),
    (
        "a checkpoint may run code",
        "helper_functions.py",
        'torch.load(path, map_location="cpu", weights_only=True)',
        'torch.load(path, map_location="cpu", weights_only=False)',
        "tests/test_runs.py -k code",
    ),
    (
        "Score-CAM masks nothing",
        "evaluation/scorecam.py",
        "masked = images[image_numbers] * masks[:, None]",
        "masked = images[image_numbers] * (0 * masks[:, None] + 1)",
        "tests/evaluation/test_scorecam.py -k 'half or equal'",
    ),
    (
        "the gradient of the image is not clipped",
        "evaluation/model_inversion.py",
        "parameters.grad = clip_gradient(gradient, settings.gradient_clip)",
        "parameters.grad = gradient",
        "tests/evaluation/test_model_inversion.py -k clip",
    ),
    (
        "a killed worker's trial is lost",
        "hyperparameter_search.py",
        '                    _queue(study, trial.user_attrs["given"] | trial.params)\n',
        "",
        "tests/test_hyperparameter_search.py -k killed",
    ),
)


def notices(folder: Path, tests: str) -> bool:
    """Whether one of the tests fails in the folder."""
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}"
    environment = {**os.environ, "PYTHONPATH": str(folder)}  # processes that a test starts import the copy too
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the tests could not be run: {tests}\n{done.stdout}\n{done.stderr}")
    return done.returncode == 1


def main() -> int:
    """Break each line in turn."""
    unnoticed = 0
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in listed.stdout.splitlines():
            if not name.startswith("results/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for what, file, line, broken, tests in MUTATIONS:
            whole = (folder / file).read_text()
            if whole.count(line) != 1:
                raise ValueError(f"{file} does not have this line once: {line}")
            (folder / file).write_text(whole.replace(line, broken))
            noticed = notices(folder, tests)
            (folder / file).write_text(whole)
            unnoticed += not noticed
            print(f"{'noticed' if noticed else 'NOT NOTICED':12} {what} ({file})", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
