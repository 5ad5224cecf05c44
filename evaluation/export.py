"""A trained run for other programs: an ONNX file, or a state dict with the names of torchvision or timm.

    python -m evaluation.export RUN --to onnx           RUN.onnx, for onnxruntime and others; the batch size is free
    python -m evaluation.export RUN --to torchvision    RUN.pth, for the same network of torchvision.models
    python -m evaluation.export RUN --to timm           RUN.pth, for timm.create_model of the same name

All take normalized images, float32 (N, 3, S, S).  The metadata of the ONNX file say how to prepare them, and name the
classes.  A state dict has the classifier only where the networks there have the same one: a single linear layer on the
last stage.  ONNX needs the packages of the optional extra `export`.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch

from data.files import expanded, write_atomically
from evaluation.checkpoints import TrainedRun
from evaluation.embed import check_target
from evaluation.publish import load_run
from runs import run_command

try:
    import onnx
    import onnxruntime
except Exception as error:  # missing, or broken: `to_onnx` says so, and the other formats need neither
    onnx = onnxruntime = None
    NOT_IMPORTED = f"{type(error).__name__}: {error}"

SUFFIX = {"onnx": ".onnx", "torchvision": ".pth", "timm": ".pth"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra
TIMM_STEM = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.8.0": "conv_head", "features.8.1": "bn2"}
TIMM_BLOCKS = (  # torchvision's name in a block: timm's in the first stage, whose blocks do not expand, and elsewhere
    {
        "0.0": "conv_dw",
        "0.1": "bn1",
        "1.fc1": "se.conv_reduce",
        "1.fc2": "se.conv_expand",
        "2.0": "conv_pw",
        "2.1": "bn2",
    },
    {
        **{"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"},
        **{"2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand", "3.0": "conv_pwl", "3.1": "bn3"},
    },
)
TOLERANCE = 1e-4  # of logits, relative to the largest


def to_onnx(run: TrainedRun, path: Path) -> float:
    """Write an ONNX file with input "images" and output "logits"; returns how much onnxruntime's logits differ at most.

    Raises ValueError if a package is missing, and FloatingPointError if onnxruntime's logits are not those of the run.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--to onnx needs {' and '.join(missing)}: pip install -e '.[export]'")
    if onnx is None:
        raise ValueError(f"--to onnx needs packages that cannot be imported here ({NOT_IMPORTED})")
    model = run.folded().model.to(memory_format=torch.contiguous_format).requires_grad_(False)
    size = run.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    shapes = {"images": {0: torch.export.Dim("batch")}}
    names = {"input_names": ["images"], "output_names": ["logits"]}
    with torch.no_grad():
        program = torch.onnx.export(model, (images[:2],), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        expected = model(images).numpy()
    written = program.model_proto
    onnx.helper.set_model_props(written, metadata(run))
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise FloatingPointError(f"{run.name}: onnxruntime's logits differ by {difference:.2g}; nothing was written")
    write_atomically(path, lambda temporary: onnx.save(written, temporary))
    return difference


def metadata(run: TrainedRun) -> dict[str, str]:
    """What a program must know of a run to use it, as JSON by key."""
    about = {
        "name": run.name,
        "class_names": run.class_names,
        "image_size": run.image_size,
        "resize": run.resize,
        "mean": run.mean,
        "std": run.std,
    }
    return {key: json.dumps(value) for key, value in about.items()}


def torchvision_state(run: TrainedRun) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of a run under torchvision's names, and the name of the network there.

    The classifier is among them if torchvision's network has the same one, and gives it the same features: not where
    those of the image and its horizontal flip are averaged.
    """
    state = run.model.state_dict()
    resnet = "features.stem.conv1.weight" in state
    blocks = len(run.model.features.layer3) if resnet else 0
    network = {0: "efficientnet_b0", 2: "resnet18", 6: "resnet34"}[blocks]
    last_alone = run.model.stages == {len(run.model.features) - 1}
    head = {name for name in state if not _is_feature(name)}
    same_head = last_alone and head == {"classifier.1.weight", "classifier.1.bias"}
    if run.model.flip_tta or not same_head:
        state = {name: tensor for name, tensor in state.items() if _is_feature(name)}
    if resnet:
        state = {_resnet_name(name): tensor for name, tensor in state.items()}
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}, network


def timm_state(run: TrainedRun) -> tuple[dict[str, torch.Tensor], str]:
    """As `torchvision_state`, under timm's names: for a ResNet these are torchvision's."""
    state, network = torchvision_state(run)
    if network == "efficientnet_b0":
        state = {_timm_name(name): tensor for name, tensor in state.items()}
    return state, network


def _timm_name(name: str) -> str:
    """The name in timm's EfficientNet of a tensor in torchvision's."""
    module, _, tensor = name.rpartition(".")
    if module in TIMM_STEM:
        return f"{TIMM_STEM[module]}.{tensor}"
    if module == "classifier.1":
        return f"classifier.{tensor}"
    _, stage, block, _, part = module.split(".", 4)
    return f"blocks.{int(stage) - 1}.{block}.{TIMM_BLOCKS[stage != '1'][part]}.{tensor}"


def _resnet_name(name: str) -> str:
    return name.removeprefix("features.").removeprefix("stem.").replace("classifier.1.", "fc.")


def main(arguments=None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.export", description="Write a run for other programs")
    parser.add_argument("run", metavar="RUN", help="name of a trained run or released model, or path of its file")
    parser.add_argument("--to", required=True, choices=tuple(SUFFIX))
    parser.add_argument("--output", type=expanded, metavar="FILE", help="default: RUN.onnx or RUN.pth, here")
    options = parser.parse_args(arguments)
    return run_command(lambda: _export(options))


def _export(options):
    suffix = SUFFIX[options.to]
    run = load_run(options.run)
    path = options.output or Path(f"{run.name}{suffix}")
    check_target(path, "--output", (suffix,))
    if path.exists() and run.file is not None and path.samefile(run.file):
        raise ValueError(f"{path} is the file that is exported; --output names another one")
    if options.to == "onnx":
        difference = to_onnx(run, path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; onnxruntime's logits differ by at most {difference:.1g}")
        return
    state, network = torchvision_state(run) if options.to == "torchvision" else timm_state(run)
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    kept = "with its classifier" if any(not _is_feature(name) for name in state) else "without a classifier"
    print(f"{path}: {network} of {options.to}, {kept}")


def _is_feature(name: str) -> bool:
    return not name.startswith(("classifier.", "fc."))


if __name__ == "__main__":
    sys.exit(main())
