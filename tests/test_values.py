"""Durations and lists of calls, by hand."""

import dataclasses
import errno
import json

import pytest

from trainer.values import (
    CONTRACT_SHAPE,
    Call,
    Contract,
    Duration,
    UsageError,
    close_names,
    failure_in_words,
    in_words,
    parse_calls,
    told_by_tensorflow,
)


@pytest.mark.parametrize(
    ("text", "amount", "unit", "shown"),
    [
        ("10epochs", 10, "epochs", "10epochs"),
        ("1epoch", 1, "epochs", "1epochs"),
        ("0.5epochs", 0.5, "epochs", "0.5epochs"),
        (" 500 steps ", 500, "steps", "500steps"),
        ("20000examples", 20000, "examples", "20000examples"),
        ("10%", 10, "%", "10%"),
        ("0steps", 0, "steps", "0steps"),
    ],
)
def test_duration_parse(text, amount, unit, shown):
    duration = Duration.parse(text)
    assert (duration.amount, duration.unit, str(duration)) == (amount, unit, shown)


@pytest.mark.parametrize(
    "text",
    ["", "10", "epochs", "-1steps", "1e3steps", "10 minutes", "10%s", ".5epochs", "1,000steps", "nan%"],
)
def test_duration_refused(text):
    wanted = f"{text}: a length needs a number and a unit: 10epochs, 500steps, 20000examples or 10%"
    with pytest.raises(UsageError) as error:
        Duration.parse(text)
    assert str(error.value) == wanted
    with pytest.raises(UsageError) as error:
        Duration.parse(text, flag="--warmup")
    assert str(error.value) == f"--warmup={wanted}"


@pytest.mark.parametrize(
    ("text", "num_examples", "batch_size", "total_steps", "steps"),
    [
        ("3epochs", 100, 32, None, 12),  # 4 batches an epoch, the last one padded.
        ("3epochs", 96, 32, None, 9),
        ("1epochs", 1, 32, None, 1),
        ("0.5epochs", 100, 32, None, 2),
        ("0.1epochs", 100, 32, None, 1),  # 0.4, but never less than one update.
        ("7steps", 100, 32, None, 7),
        ("2.5steps", 100, 32, None, 3),
        ("2.4steps", 100, 32, None, 2),
        ("320examples", 100, 32, None, 10),
        ("336examples", 100, 32, None, 11),  # 10.5
        ("335examples", 100, 32, None, 10),
        ("1examples", 100, 32, None, 1),
        ("10%", 100, 32, 200, 20),
        ("50%", 100, 32, 3, 2),
        ("0steps", 100, 32, None, 0),
        ("0epochs", 100, 32, None, 0),
        ("0%", 100, 32, 200, 0),
        ("0.1%", 100, 32, 10, 1),
    ],
)
def test_duration_to_steps(text, num_examples, batch_size, total_steps, steps):
    duration = Duration.parse(text)
    got = duration.to_steps(num_examples=num_examples, batch_size=batch_size, total_steps=total_steps)
    assert got == steps


def test_a_percentage_of_nothing_is_refused():
    with pytest.raises(UsageError, match="10% is a share of nothing here: use epochs, steps or examples"):
        Duration.parse("10%").to_steps(num_examples=10, batch_size=2)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("", []),
        ("  ", []),
        ("linear", [Call("linear")]),
        ("flip,crop(0.6)", [Call("flip"), Call("crop", (0.6,))]),
        (" mlp( 1024 , 512 ) ", [Call("mlp", (1024, 512))]),
        ("flip,", [Call("flip")]),
        ("a(-1,'b')", [Call("a", (-1, "b"))]),
        ("a()", [Call("a")]),
    ],
)
def test_parse_calls(text, calls):
    assert list(parse_calls(text)) == calls


@pytest.mark.parametrize(
    "text",
    ["flip crop", "crop(", "crop(0.6", "5", "'flip'", "crop(x)", "crop(**a)", "a.b", "a(b(1))",
     "x for x in y", "] + [flip", "flip] + [", "crop({[1]})", "*a", "lambda: 1", "a\0b"],
)  # fmt: skip
def test_parse_calls_refused(text):
    with pytest.raises(UsageError) as error:
        parse_calls(text)
    assert str(error.value) == f"{text!r} is not a list of names with arguments, such as flip,crop(0.6)"


def test_a_call_prints_as_it_was_written():
    assert [str(call) for call in parse_calls("flip,mlp(1024,512)")] == ["flip", "mlp(1024,512)"]


# As TensorFlow 2.21 and tf_keras 2.21 write them.
GRAPH = "Graph execution error:\n\n"
DETECTED = "Detected at node while/Assert defined at (most recent call last):\n"
STACK = '  File "train.py", line 13, in <module>\n\n  File "train.py", line 11, in step\n\n'
NODE = "\n\t [[{{node while/Assert}}]] [Op:__inference_step_81]"
LAYER = "Exception encountered when calling layer 'a' (type KerasLayer).\n\n"
WRAPPED = "{{function_node __wrapped__IteratorGetNext_device_/job:localhost/device:CPU:0}} "
MAPPED = "Error in user-defined function passed to MapDataset:1 transformation with iterator: Iterator::Map: "


@pytest.mark.parametrize(
    ("before", "error", "after"),
    [
        (GRAPH + DETECTED + STACK, "assertion failed: [too bright] [5]", NODE),
        (GRAPH + DETECTED + "<stack traces unavailable>\n", "too bright", NODE),
        # On several devices, and of two operations at once.
        (
            f"{GRAPH}{DETECTED}{STACK}{DETECTED}{STACK}2 root error(s) found.\n  (0) INVALID_ARGUMENT:  ",
            "too bright",
            f"{NODE}\n  (1) CANCELLED:  Function was cancelled",
        ),
        ("{{function_node __inference_f_518}} ", "grad : Tensor had NaN values", NODE),
        (WRAPPED, "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]", " [Op:MatMul] name: "),
        (WRAPPED + MAPPED, "Unknown image file format.", NODE),
        (
            GRAPH + DETECTED + STACK + MAPPED,
            "ValueError: bad",
            "\nTraceback (most recent call last):\n",
        ),
        (
            LAYER,
            'Input 0 of layer "dense" is incompatible',
            "\n\nCall arguments received",
        ),
        (LAYER + GRAPH + DETECTED + STACK, "too bright", NODE),
        (f"in user code:\n\n{STACK}    ValueError: ", "Shapes differ", "\n"),
        ("", "ValueError", ""),
    ],
)
def test_what_tensorflow_says_is_the_error_itself(before, error, after):
    text = before + error + after if before else ""
    assert told_by_tensorflow(ValueError(text)) == error


def test_only_errors_of_operations_and_want_of_memory_are_put_in_words():
    assert failure_in_words(ValueError("too bright")) == ""
    assert failure_in_words(MemoryError()).startswith("out of memory: MemoryError. A smaller --batch_size ")


def test_a_contract_through_json():
    contract = Contract(4, 6, (-1.0, 1.0), 2, any_size=True, fit="crop", antialias=True, resizes_bytes=True)
    values = json.loads(json.dumps(dataclasses.asdict(contract)))
    assert {name.removesuffix("?") for name in CONTRACT_SHAPE} == set(values)
    assert Contract.from_json(values) == contract
    # Runs and models of before there was a choice.
    del values["fit"], values["antialias"], values["resizes_bytes"]
    assert Contract.from_json(values) == Contract(4, 6, (-1.0, 1.0), 2, any_size=True)
    with pytest.raises(ValueError, match=r"contract\.fit is 'fold', expected one of stretch, crop, pad"):
        Contract.from_json({**values, "fit": "fold"})


@pytest.mark.parametrize(
    ("name", "known", "wanted"),
    [
        ("AdamW", ["adam", "adamw"], ["adamw"]),
        ("mobilenet_v2", ["MobileNetV2", "MobileNet"], ["MobileNetV2"]),
        ("twophase", ["two_phase", "frozen"], ["two_phase"]),
        ("horizontal_flip", ["flip", "crop"], ["flip"]),
        ("epoch", ["epochs", "examples"], ["epochs"]),
        ("xyz", ["flip", "crop"], []),
        ("犬", ["猫", "horse"], []),
        ("Собака", ["собака", "кошка"], ["собака"]),
        ("--", ["flip"], []),
    ],
)
def test_names_that_may_be_meant(name, known, wanted):
    assert close_names(name, known) == wanted


def test_a_full_disk_says_what_to_do():
    with pytest.raises(OSError, match="No space") as full:
        raise OSError(errno.ENOSPC, "No space left on device", "/full/index.html")
    assert in_words(full.value) == (
        "No space left on device: /full/index.html. Make room there and run the same command again: what was "
        "saved before is kept"
    )
