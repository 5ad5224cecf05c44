"""Which heat map to trust, and what it costs: Score-CAM beside Grad-CAM, LayerCAM and Recipro-CAM.

    python -m benchmarks.heat_maps [--models RUN ...] [--images 40] [--layer 8]

Grad-CAM (Selvaraju et al. 2017) and LayerCAM (Jiang et al. 2021) are those of the library grad-cam, which is in
requirements-dev.txt; Recipro-CAM (Byun and Lee 2022) is `evaluation.recipro_cam`.  All get the same network, images,
classes and layer, and are measured as in `evaluation.map_measures`; a map that is not finite is left out and counted.
Seconds are the median per image, alone, of the map only.  The table is benchmarks/heat_maps.csv; the rows of the images
lie beside it and are written after each image: an interrupted call continues.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from benchmarks import implementations
from data.files import expanded
from evaluation.checkpoints import TrainedRun
from evaluation.map_measures import FoundMaps, MapsOf, measure_runs, timed
from evaluation.mask_clusters import cluster_score_cam
from evaluation.recipro_cam import recipro_cam
from evaluation.scorecam import score_cam
from evaluation.scorecam_defaults import MODELS
from helper_functions import keep_freed_memory
from runs import run_command

CLUSTERS = 64
GRADIENTS = {"Grad-CAM": pytorch_grad_cam.GradCAM, "LayerCAM": pytorch_grad_cam.LayerCAM}


def maps_at(layer_name: str) -> MapsOf:
    """The maps of every method at a layer."""

    def maps_of(run: TrainedRun, images: torch.Tensor, targets: Sequence[int]) -> dict[str, FoundMaps]:
        given = run.model, images, run.layer(layer_name), targets
        methods = {
            "Score-CAM, softmax": lambda: score_cam(*given),
            "Score-CAM, probability": lambda: score_cam(*given, weighting="probability"),
            f"Score-CAM, {CLUSTERS} clusters or exact": lambda: cluster_score_cam(*given, clusters=CLUSTERS),
            "Recipro-CAM": lambda: recipro_cam(*given),
        }
        methods |= {name: _library_maps(method, *given) for name, method in GRADIENTS.items()}
        return {name: timed(method) for name, method in methods.items()}

    return maps_of


def _library_maps(method: type, model, images, layer, targets) -> Callable[[], torch.Tensor]:
    def maps() -> torch.Tensor:
        with torch.enable_grad(), method(model, [layer]) as extractor:
            found = extractor(images, [ClassifierOutputTarget(each) for each in targets])
        return torch.from_numpy(found).float()

    return maps


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heat_maps", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="RUN")
    parser.add_argument("--images", type=int, default=40, help="per network, evenly over the classes")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--layer", default="8", help="a stage, 0 to 8, or the name of a module")
    parser.add_argument("--data", default=implementations.data_set())
    parser.add_argument("--output", type=expanded, default=implementations.FOLDER / "heat_maps.csv")
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options))


def _measure(options):
    if options.images < 1:
        raise ValueError(f"--images is {options.images}; it must be at least 1")
    keep_freed_memory()
    rows = (options.models, maps_at(options.layer), options.data, options.split, options.images)
    table = measure_runs(*rows, options.output)
    print(table.drop(columns=[each for each in table if each.endswith(("_from", "_to"))]).to_string(index=False))
    print(implementations.machine())
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
