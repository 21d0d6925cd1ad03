"""kerashub: through the door: killed and gone on, on several devices, exported for those without Keras 3."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import call_main, make_flower_folder
from tests.helpers.continuations import Killed, told_faults
from tests.helpers.presets import saved
from tests.helpers.processes import run_program

keras_hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.extra

SETTINGS = (
    "--splits=10,4,4", "--batch_size=4", "--head=mlp(6)", "--dropout=0.3", "--log_every=2steps",
    "--evaluate_every=3steps", "--save_every=3steps", "--precision=float32", "--progress=plain",
    "--accumulate=2", "--figures_every=", "--embeddings=0",
)  # fmt: skip
PHASES = (
    "--phase=name=a; for=4steps; train=head; lr=0.05",
    "--phase=name=b; for=4steps; train=from_layer=encoder/layers_1; lr=0.01",
    "--phase=name=c; for=5steps; train=all; lr=0.01; bn=batch; augment=flip,mixup(0.5); average=ema(0.5)",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three phases, which has been observed: features kept, features of a block kept, drop path."""
    root = tmp_path_factory.mktemp("kerashub")
    pictures = make_flower_folder(root / "pictures")
    for path in pictures.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    place, _ = saved(keras_hub, "DINOV2Backbone", root)
    options = (
        f"--source=folder:{pictures}",
        f"--backbone=kerashub:{place}",
        "--features=cls+mean",
        *SETTINGS,
    )
    return Killed((*options, *PHASES), root / "killed", warm=True)


def test_killed_it_goes_on_to_the_same_bits(run):
    """Four places in the middle of it, and its end."""
    count = len(run.kills)
    told_faults(run, [*run.kills[count // 5 : -1 : count // 4], run.kills[-1]])


def test_what_is_kept(run):
    facts = json.loads((run.workdir / "run.json").read_text())
    assert facts["contract"]["feature_width"] == 32
    assert facts["versions"]["keras-hub"] == keras_hub.__version__
    assert (facts["contract"]["resize"], facts["contract"]["fit"]) == ("bicubic", "crop")
    kept = "".join(path.read_text() for path in run.cache.rglob("*.json"))
    assert '"features"' in kept
    assert '"encoder/layers_0"' in kept


WITHOUT = """
import json, sys

missing = ("keras", "keras_hub", "tf_keras", "trainer")
sys.modules.update(dict.fromkeys(missing))  # To import one fails.
import numpy as np
images = np.load(sys.argv[2])
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1] + "/saved_model")
found = {"saved_model": np.asarray(model.signatures["images"](images=tf.constant(images))["probabilities"])}
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1] + "/float32.tflite")
runner = interpreter.get_signature_runner()
rows = [runner(images=images[i : i + 1])["probabilities"] for i in range(len(images))]
found["tflite"] = np.concatenate(rows)
assert not any(map(sys.modules.get, missing))
print(json.dumps({name: values.tolist() for name, values in found.items()}))
"""


def test_exported_it_needs_no_keras_3(run, tmp_path):
    """In a process that cannot import it, nor keras-hub; the probabilities are those of the run."""
    out = tmp_path / "export"
    workdir = f"--workdir={run.workdir}"
    assert call_main("export", workdir, f"--export_dir={out}", "--formats=saved_model,float32") == 0
    images = np.random.default_rng(0).uniform(size=[3, 32, 32, 3]).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", WITHOUT, str(out), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(np.sum(found["saved_model"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found["saved_model"], found["tflite"], atol=1e-5)
    parity = json.loads((out / "export.json").read_text())
    assert parity["contract"]["resize"] == "bicubic"


@pytest.mark.slow
def test_on_two_devices(tmp_path):
    """Killed, with statistics of the batch that move, and kept features; as `test_mirrored` has it."""
    place, _ = saved(keras_hub, "MobileNetBackbone", tmp_path)
    arguments = [2, tmp_path / "runs", f"kerashub:{place}"]
    done = run_program(arguments, module="tests.helpers.mirrored_program")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [found[name][0] for name in ("whole", "killed", "uncached")] == [0, 0, 0]
    assert found["rows"]["killed"] == found["rows"]["whole"]
    assert found["weights"]["killed"] == found["weights"]["whole"]
