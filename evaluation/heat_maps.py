"""Which heat map to trust, and what it costs: Score-CAM beside Recipro-CAM, Grad-CAM and LayerCAM.

    python -m evaluation.heat_maps [--models RUN ...] [--images 40] [--split val] [--layer 8] [--clusters 64]

Recipro-CAM (Byun and Lee 2022) is `evaluation.recipro_cam`.  Grad-CAM (Selvaraju et al. 2017) and LayerCAM (Jiang et
al. 2021) are those of the library grad-cam, the optional extra `cam`.  All get the same network, images, classes and
layer, and are measured as in `evaluation.map_measures`; a map that is not finite is left out and counted.  Score-CAM is
the default of `score_cam`; `evaluation.scorecam_defaults` compares it with other definitions.  Seconds are the median
per image, alone, of the map only.  The table is written to heat_maps.csv, the rows of the images beside it, after each
image: an interrupted call continues.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from evaluation.checkpoints import TrainedRun
from evaluation.map_measures import FoundMaps, MapsOf, add_options, measure_runs, print_table, timed
from evaluation.mask_clusters import cluster_score_cam
from evaluation.recipro_cam import recipro_cam
from evaluation.scorecam import score_cam
from runs import run_command

try:
    from pytorch_grad_cam import GradCAM, LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    GRADIENTS, WITHOUT_GRADIENTS = {"Grad-CAM": GradCAM, "LayerCAM": LayerCAM}, ""
except Exception as error:  # missing, or broken
    GRADIENTS = {}
    WITHOUT_GRADIENTS = f"grad-cam is not here ({type(error).__name__}: {error}); pip install -e '.[cam]' installs it"


def maps_at(layer_name: str, clusters: int | None = None) -> MapsOf:
    """The maps of every method at a layer; Score-CAM also with so many clusters of masks, if any.

    Raises ValueError if the library is not here: rows that lack methods would look complete.
    """
    if not GRADIENTS:
        raise ValueError(WITHOUT_GRADIENTS)

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
            # Where no parameter needs a gradient, the image must, or there is nothing to differentiate.
            found = extractor(images.clone().requires_grad_(), [ClassifierOutputTarget(each) for each in targets])
        return torch.from_numpy(found).float()

    return maps


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.heat_maps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, "15scene", Path("heat_maps.csv"))
    parser.add_argument("--layer", default="8", help="a stage, 0 to 8, or the name of a module")
    parser.add_argument("--clusters", type=int, help="measure Score-CAM with so many clusters of masks too")
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure(options))


def _measure(options):
    print_table(measure_runs(options, maps_at(options.layer, options.clusters)))
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
