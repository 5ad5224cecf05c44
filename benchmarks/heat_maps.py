"""Which heat map to trust, and what it costs: Score-CAM beside Grad-CAM, LayerCAM and Recipro-CAM.

    python -m benchmarks.heat_maps [--models RUN ...] [--images 40] [--layer 8] [--clusters 64]

Grad-CAM (Selvaraju et al. 2017) and LayerCAM (Jiang et al. 2021) are those of the library grad-cam, which is in
requirements-dev.txt; Recipro-CAM (Byun and Lee 2022) is `evaluation.recipro_cam`.  All get the same network, images,
classes and layer, and are measured as in `evaluation.map_measures`; a map that is not finite is left out and counted.
Score-CAM is the default of `score_cam`; `evaluation.scorecam_defaults` compares it with other definitions.
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
from evaluation.checkpoints import TrainedRun
from evaluation.map_measures import FoundMaps, MapsOf, add_options, measure_runs, print_table, timed
from evaluation.mask_clusters import cluster_score_cam
from evaluation.recipro_cam import recipro_cam
from evaluation.scorecam import score_cam
from runs import run_command

GRADIENTS = {"Grad-CAM": pytorch_grad_cam.GradCAM, "LayerCAM": pytorch_grad_cam.LayerCAM}


def maps_at(layer_name: str, clusters: int | None = None) -> MapsOf:
    """The maps of every method at a layer; Score-CAM also with so many clusters of masks, if any."""

    def maps_of(run: TrainedRun, images: torch.Tensor, targets: Sequence[int]) -> dict[str, FoundMaps]:
        given = run.model, images, run.layer(layer_name), targets
        methods = {
            "Score-CAM": lambda: score_cam(*given),
            "Recipro-CAM": lambda: recipro_cam(*given),
        }
        if clusters is not None:
            name = f"Score-CAM, {clusters} clusters or exact"
            methods[name] = lambda: cluster_score_cam(*given, clusters=clusters)
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
    add_options(parser, implementations.data_set(), implementations.FOLDER / "heat_maps.csv")
    parser.add_argument("--layer", default="8", help="a stage, 0 to 8, or the name of a module")
    parser.add_argument("--clusters", type=int, help="measure Score-CAM with so many clusters of masks too")
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options))


def _measure(options):
    print_table(measure_runs(options, maps_at(options.layer, options.clusters)))
    print(implementations.machine())
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
