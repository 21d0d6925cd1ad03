"""ONNX: the network from pixels to probabilities, by the ONNX project's converter, where there is one."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from trainer.export.fresh_process import python_starts
from trainer.export.metadata import LABELS_NAME, NAME, About
from trainer.export.saved_model import save
from trainer.values import TrainerError, UsageError

OPSET = 18
_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")


def require_converter() -> None:
    """Checks that there is what ONNX needs: no part of this project needs it otherwise.

    Raises:
      UsageError: something is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--formats=onnx needs {' and '.join(missing)}, not installed here: "
            f"pip install {' '.join(missing)}"
        )


def write_onnx(file: Path, network: Callable[[tf.Tensor], tf.Tensor], *, about: About) -> None:
    """Writes an ONNX file: images [N, H, W, 3] float32 in [0, 1] -> probabilities [N, K] float32.

    Its metadata hold what the other models hold as files: export.json and labels.txt.

    Args:
      file: in a folder that is there.
      network: what is to be computed, without variables.
      about: of the model.

    Raises:
      TrainerError: the network cannot be had as ONNX.
      OSError: it cannot be written.
    """
    spec = tf.TensorSpec([None, *about.contract.image_shape], tf.float32, name="images")
    served = tf.function(lambda images: {"probabilities": network(images)}, autograph=False)
    with tempfile.TemporaryDirectory(prefix="trainer-onnx-", dir=file.parent) as folder:
        model = Path(folder) / "model"
        save(tf.Module(), model, signatures={"images": served.get_concrete_function(spec)})
        # A process of its own: it changes how TensorFlow behaves, and says much.
        command = [sys.executable, "-I", "-m", "tf2onnx.convert", "--saved-model", str(model)]
        command += [
            "--signature_def",
            "images",
            "--opset",
            str(OPSET),
            "--output",
            str(Path(folder) / "onnx"),
        ]
        with python_starts():
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise TrainerError(
                f"--formats=onnx: tf2onnx cannot convert this network: {said[-1][:300]}; leave onnx out"
            )
        import onnx  # Only who asks for this format has it.

        made = onnx.load(Path(folder) / "onnx")
        onnx.helper.set_model_props(made, {NAME: about.to_json(), LABELS_NAME: about.labels()})
        onnx.checker.check_model(made)
        onnx.save(made, file)
