"""What the code says of its names before TensorFlow is imported."""

import subprocess
import sys
import textwrap

import pytest
import tf_keras

from tests.helpers.plugins import forget_plugins
from trainer import register
from trainer.applications import application_names, known_application
from trainer.cli.flags import parse
from trainer.registry import Origin, registering, see
from trainer.stated import check_names, stated_registry
from trainer.values import UsageError

# A wrong value -> what is said of it.
WRONG = {
    "--backbone=mobilnetv2": "is it keras:MobileNetV2?",
    "--backbone=efficientnet": "is it efficientnet_lite0?",
    "--backbone=keras:MobilNetV2": "did you mean MobileNetV2",
    "--head=mpl(64)": "is it mlp?",
    "--optimizer=adamm": "adam, adamw, sgd, rmsprop, lion: is it adam or adamw?",
    "--augment=flipp": "is it flip?",
    "--augment=flip,rotate(20)": "max_turn=20 must be a number from 0 to 1",
    "--loss=focal(gama=2)": "is it gamma?",
    "--lr_schedule=cosin": "is it cosine?",
    "--average=emma": "is it ema?",
    "--task=multilabel": "is it multi_label?",
    "--metrics=acuracy": "is it accuracy?",
    "--gradient_rule=sam": "is not one of plain",
    "--objective=superviced": "is it supervised?",
    "--saliency=gradcam": "is it grad_cam?",
    "--callbacks=mine": "there is no callback but those that --plugin=FILE brings",
    "--formats=int9": "is it int8?",
    "--phase=for=1epochs;train=head;optimizer=adamm": "optimizer=adamm is not one of adam,",
}


@pytest.mark.parametrize("kind", register.KINDS)
def test_the_text_says_what_is_registered(kind):
    forget_plugins()
    stated, real = stated_registry(kind), register.registries()[kind]
    assert stated is not None
    assert type(stated) is type(real)
    assert (stated.what, stated.flag) == (real.what, real.flag)
    assert {stated.usage(name) for name in stated} == {real.usage(name) for name in real}
    for name in real:
        assert stated[name].parameters == real[name].parameters


def test_applications_are_those_of_keras(monkeypatch):
    # As where it is not imported.
    monkeypatch.delitem(sys.modules, "tf_keras.applications")
    found = vars(tf_keras.applications).items()
    names = sorted(name for name, value in found if name[0].isupper() and callable(value))
    assert list(application_names()) == names
    assert known_application("MOBILENETV2") == "MobileNetV2"
    with pytest.raises(UsageError, match=r"did you mean .*ResNet50"):
        known_application("resnet5O")


def test_who_mistypes_a_name_need_not_wait_for_tensorflow(tmp_path):
    program = f"""
        import sys
        from trainer.main import main
        for wrong in {list(WRONG)}:
            status = main(["x", "--source=synthetic:flowers", "--workdir=run", wrong])
            print(status, file=sys.stderr)
        assert "tensorflow" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *lines, _ = done.stderr.split("\n")
    assert lines[1::2] == ["2"] * len(WRONG)
    for line, (wrong, told) in zip(lines[::2], WRONG.items(), strict=True):
        assert line.startswith("trainer: "), line
        assert told in line, wrong
    assert not any(tmp_path.iterdir())


def test_what_a_notebook_has_registered_is_known():
    forget_plugins()
    line = parse(["x", "--source=synthetic:flowers", "--loss=of_a_notebook(2)"])
    with pytest.raises(UsageError, match="is not one of cross_entropy"):
        check_names(line.config, line.given)
    origin = Origin("a notebook")
    see(origin)
    with registering(origin):
        register.loss("of_a_notebook")(lambda: None)
    try:
        with pytest.raises(UsageError, match="of_a_notebook takes no arguments"):
            check_names(line.config, line.given)
    finally:
        register.registries()["loss"].forget(origin)
