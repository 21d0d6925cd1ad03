"""The command line is Config's fields, one to one; flagfiles go there and back; --help is light."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from trainer import register
from trainer.cli import flags, usual_words
from trainer.cli.config import Config
from trainer.cli.declare import RECOMMENDED
from trainer.cli.help import NAMED, help_text
from trainer.runtime import start_tensorflow
from trainer.values import UsageError

FIELDS = {f.name: f for section in dataclasses.fields(Config) for f in dataclasses.fields(section.default)}


def parse(*argv):
    return flags.parse(["trainer", *argv])


def refusal(*argv):
    with pytest.raises(UsageError) as error:
        parse(*argv)
    assert error.value.exit_status == 2
    return str(error.value)


def test_flags_are_the_fields_of_config_one_to_one():
    values = flags.make_flags()
    assert list(values) == list(FIELDS)
    types = {"str": "string", "int": "int", "float": "float", "bool": "bool", "tuple": "multi string"}
    for name, field in FIELDS.items():
        flag, choices = values[name], field.metadata["choices"]
        assert field.metadata["help"] in flag.help  # absl puts the choices before it.
        assert flag.flag_type() == ("string enum" if choices else types[type(field.default).__name__])
        assert tuple(getattr(flag.parser, "enum_values", ())) == choices
        default = tuple(flag.default) if isinstance(field.default, tuple) else flag.default
        assert (type(default), default) == (type(field.default), field.default)
        assert flag.short_name is None


def test_no_arguments_give_the_defaults():
    line = parse()
    assert (line.command, line.config, line.given) == ("train", Config(), {})


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["--batch_size=8"], {"batch_size": 8}),
        (["--batch_size", "8"], {"batch_size": 8}),
        (["-batch_size=8"], {"batch_size": 8}),
        (["--batch_size=8", "--batch_size=9"], {"batch_size": 9}),
        (["--frozen_learning_rate=1"], {"frozen_learning_rate": 1.0}),
        (["--dropout=.25"], {"dropout": 0.25}),
        (["--image_size=224x224"], {"image_size": 224}),
        (["--image_size=96"], {"image_size": 96}),
        (["--finetune_for=3 epochs"], {"finetune_for": "3 epochs"}),
        (["--source=tfds:x", "--data_dir=photos"], {"source": "tfds:x", "data_dir": "photos"}),
        (["--drop_duplicates"], {"drop_duplicates": True}),
        (["--nodrop_duplicates"], {"drop_duplicates": False}),
        (["--drop_duplicates=true"], {"drop_duplicates": True}),
        (["--source="], {"source": ""}),
        (["--source=folder:a b=c;d#e"], {"source": "folder:a b=c;d#e"}),
        (["--bn=batch", "--seed=0"], {"bn": "batch", "seed": 0}),
        (
            ["--phase=for=1steps; train=head", "--phase=for=2steps; train=all"],
            {"phase": ["for=1steps; train=head", "for=2steps; train=all"]},
        ),
    ],
)
def test_given_holds_what_was_set_and_only_that(argv, given):
    line = parse(*argv)
    assert line.given == given
    assert line.config == Config().replace(**given).with_given(given)


@pytest.mark.parametrize("command", flags.COMMANDS)
def test_the_command_may_stand_anywhere(command):
    wanted = flags.CommandLine(command, Config().replace(seed=3, workdir="w"), {"seed": 3, "workdir": "w"})
    assert parse(command, "--seed=3", "--workdir=w") == wanted
    assert parse("--seed=3", command, "--workdir=w") == wanted
    assert parse("--seed=3", "--workdir=w", command) == wanted


def test_only_some_commands_take_paths():
    line = parse("--seed=3", "predict", "a.jpg", "--workdir=w", "-", "train", "--", "--seed=4", "-x.jpg")
    assert (line.command, line.given) == ("predict", {"seed": 3, "workdir": "w"})
    assert line.paths == ("a.jpg", "-", "train", "--seed=4", "-x.jpg")
    assert parse("predict").paths == ()
    for command in set(flags.COMMANDS) - {"predict", "explain", "compare", "recipes", "completion"}:
        message = f"unexpected argument 'a.jpg' after {command!r}; options start with --"
        assert refusal(command, "a.jpg") == message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--work_dir=x"], "Unknown command line flag 'work_dir'. Did you mean: workdir ?"),
        (["--batchsize=3"], "Unknown command line flag 'batchsize'. Did you mean: batch_size ?"),
        (
            ["--epocs=3"],
            "Unknown command line flag 'epocs'. Write --frozen_for=3epochs (the head) and "
            "--finetune_for=3epochs (all of it)",
        ),
        (["--batch-size=3"], "Unknown command line flag 'batch-size'. Did you mean: batch_size ?"),
        (["--output-dir=x"], "Unknown command line flag 'output-dir'. Did you mean: workdir ?"),
        (["--colour=red"], "Unknown command line flag 'colour'"),
        (["--data=my photos"], "Unknown command line flag 'data'. Write --source=folder:my photos"),
        (["--imgsz", "640"], "Unknown command line flag 'imgsz'. Write --image_size=640"),
        (["--input-shape=160,160,3"], "Unknown command line flag 'input-shape'. Write --image_size=160"),
        (["-b", "8", "train"], "Unknown command line flag 'b'. Write --batch_size=8"),
        (
            ["--epochs=3"],
            "Unknown command line flag 'epochs'. Write --frozen_for=3epochs (the head) and "
            "--finetune_for=3epochs (all of it)",
        ),
        (
            ["train", "--lr"],
            "Unknown command line flag 'lr'. Write --frozen_learning_rate=1e-3 (the head) and "
            "--finetune_learning_rate=1e-3 (all of it)",
        ),
        (
            ["--device=cuda"],
            "Unknown command line flag 'device'. Leave it out: all GPUs are used; --strategy=one takes one "
            "of those that CUDA_VISIBLE_DEVICES names",
        ),
        (
            ["predict", "--images=a.jpg"],
            "Unknown command line flag 'images'. Write the pictures alone, behind the options: predict "
            "--workdir=runs/mine a.jpg",
        ),
        (
            ["evaluate", "--model_path=runs/a"],
            "Unknown command line flag 'model_path'. Write --workdir=runs/a, the folder of a run",
        ),
        (
            ["--model=resnet50"],
            "--model=resnet50 is an exported model, for predict. The network to train is --backbone, such as "
            "--backbone=keras:MobileNetV2 (--help=backbone lists what there is)",
        ),
        (
            ["--data_dir=photos"],
            "--data_dir=photos is the folder of tfds data sets. For pictures of your own write "
            "--source=folder:photos; of tfds, --source=tfds:NAME, too",
        ),
        (
            ["--finetune_for=3"],
            "--finetune_for=3: a length needs a number and a unit: 10epochs, 500steps, 20000examples or 10%",
        ),
        (
            ["--finetune_for=3", "epochs"],
            "a length is one word: --finetune_for=3epochs, not --finetune_for=3 epochs",
        ),
        (["train", "--frozen_for", "3", "epochs"], "a length is one word: 3epochs, not 3 epochs"),
        (
            ["--image_size=224x160"],
            "flag --image_size=224x160: the network sees squares: it must be one side, such as 224",
        ),
        (["--bn=off"], "flag --bn=off: value should be one of <frozen|batch>"),
        (["--seed=x"], "flag --seed=x: it must be a whole number, in digits from 0 to 9"),
        (
            ["--batch_size=2.5"],
            "flag --batch_size=2.5: it must be a whole number, in digits from 0 to 9",
        ),
        (["--dropout=x"], "flag --dropout=x: it must be a number, such as 0.5 or 1e-3"),
        (["--seed"], "Missing value for flag --seed"),
        (
            ["trian"],
            f"'trian' is no command; there are {', '.join(flags.COMMANDS)} (see --help): is it train?",
        ),
        (["train", "x"], "unexpected argument 'x' after 'train'; options start with --"),
        (
            ["--seed=1", "train", "evaluate"],
            "unexpected argument 'evaluate' after 'train'; options start with --",
        ),
        (["--batch_size=0"], "--batch_size=0 must be 1 or more"),
        (["--source=folder:\udfff"], r"half of a character (\udfff) is in the value of an option"),
    ],
)
def test_wrong_command_lines(argv, message):
    assert refusal(*argv) == message


def test_a_path_that_was_cut_at_its_blanks_is_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My Photos of 2026").mkdir()
    quoted = "a path with blanks stands in quotes: --source='folder:My Photos of 2026'"
    assert refusal("--source=folder:My", "Photos", "of", "2026") == quoted
    assert refusal("train", "--source=folder:My", "Photos", "of", "2026", "--seed=1") == quoted
    workdir = "a path with blanks stands in quotes: --workdir='My Photos of 2026'"
    assert refusal("inspect", "--workdir=My", "Photos", "of", "2026") == workdir
    # Nothing is there that is called so, or it is there without the rest.
    assert refusal("--source=folder:My", "Pictures").startswith("'Pictures' is no command; there are")
    (tmp_path / "My").mkdir()
    assert refusal("--source=folder:My", "Photos").startswith("'Photos' is no command; there are")


def test_blanks_around_an_equals_sign():
    told = "an option is written without blanks around =, as in --workdir=runs/mine"
    assert refusal("--source", "=", "folder:x") != ""
    assert refusal("train", "--seed=1", "=", "folder:x") == told
    assert refusal("train", "--source=", "folder:x") == told


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["explain", "--explain_dir=x"], "output"),
        (["--explain_dir=x", "explain"], "output"),
        (["predict", "--output_dir=x"], "output"),
        (["predict", "--exportdir=x"], "output"),
        (["evaluate", "--out=x"], "report_dir"),
        (["evaluate", "--report-dir=x"], "report_dir"),
        (["export", "--output_dir=x"], "export_dir"),
        (["train", "--output_dir=x"], "workdir"),
        (["train", "--log_dir=x"], "workdir"),
        (["find_lr", "--finder_range=x"], "find_lr_range"),
        (["train", "--explain_clas=x"], None),
        (["train", "--frozen=x"], "frozen_for"),
        (["train", "--flagfiles=x"], "flagfile"),
        (["serve", "--output_dir=x"], None),
    ],
)
def test_what_may_be_meant_is_an_option_of_the_command(argv, meant):
    name = next(word for word in argv if word.startswith("--")).removeprefix("--").removesuffix("=x")
    told = f". Did you mean: {meant} ?" if meant else ""
    assert refusal(*argv) == f"Unknown command line flag {name!r}{told}"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--dry_run", "--seed=3"], "inspect"),
        (["train", "--seed=3", "--dry-run"], "inspect"),
        (["inspect", "--seed=3", "--dry_run=true"], "inspect"),
        (["--seed=3", "--dry_run=false"], "train"),
        (["--dry_run", "--dry_run=False", "--seed=3"], "train"),
    ],
)
def test_a_dry_run_inspects(words, command):
    line = parse(*words)
    assert (line.command, line.given) == (command, {"seed": 3})
    assert line.config == parse("inspect", "--seed=3").config


@pytest.mark.parametrize(
    ("word", "verb"), [("test", "evaluate"), ("Infer", "predict"), ("lr-find", "find_lr"), ("trian", "train")]
)
def test_the_verbs_of_other_tools(word, verb):
    assert refusal(word, "--seed=3").endswith(f"(see --help): is it {verb}?")


def test_no_verb_of_others_is_one_of_ours():
    assert not set(usual_words.VERBS) & set(flags.COMMANDS)
    assert set(usual_words.VERBS.values()) < set(flags.COMMANDS)


def test_a_dry_run_is_of_train_alone(tmp_path):
    told = "--dry_run shows what train would do, and there is none of predict: leave it out"
    assert refusal("predict", "--dry_run", "a.jpg") == told
    assert parse("predict", "--workdir=x", "--", "--dry_run").paths == ("--dry_run",)
    (tmp_path / "dry.flags").write_text("--dry_run\n--seed=3\n")
    assert parse(f"--flagfile={tmp_path / 'dry.flags'}").command == "inspect"
    assert refusal("--dry_run=maybe").startswith(
        "Unknown command line flag 'dry_run'. Write --dry_run, which"
    )


def test_a_flagfile_with_comments_and_blank_lines(tmp_path):
    inner = tmp_path / "inner.flags"
    inner.write_text("--seed=7\n")
    path = tmp_path / "a file.flags"
    path.write_text(
        "# Purpose: a test; --seed=1 here is a comment\n\n// another\n   \n--batch_size=8\n"
        "  --source=folder:a b  \n--phase=for=1steps; train=head/.*kernel\n"
        f"--drop_duplicates\n--flagfile={inner}\n"
    )
    line = parse(f"--flagfile={path}", "--batch_size=16")
    assert line.given == {
        "seed": 7,
        "batch_size": 16,  # The command line comes later.
        "source": "folder:a b",
        "phase": ["for=1steps; train=head/.*kernel"],
        "drop_duplicates": True,
    }
    assert parse("--batch_size=16", f"--flagfile={path}").config.plan.batch_size == 8


# One value each, and two others, of the options that may be given several times.
SEVERAL = {
    "by_hand": ("warmup", ["optimizer", "average"]),
    "phase": ("for=1steps; train=head", ["for=2steps; train=head", "for=3steps; train=all"]),
    "lr_multiplier": ("backbone/=0.5", ["backbone/=0.1", "head/=2"]),
    "search": ("dropout=0,0.2", ["seed=1,2", "momentum=0.8,0.9"]),
}


@pytest.mark.parametrize("name", sorted(flags.REPEATED))
def test_of_an_option_given_several_times_what_stands_behind_a_flagfile_wins(name, tmp_path):
    of_file, behind = SEVERAL.get(name, ("mine.py", ["yours.py", "theirs.py"]))
    inner, path = tmp_path / "inner.flags", tmp_path / "mine.flags"
    inner.write_text(f"--{name}={of_file}\n--seed=7\n")
    path.write_text(f"--flagfile={inner}\n")
    # A plugin is loaded beside those of the flagfile.
    wanted = [of_file, *behind] if name == "plugin" else behind
    for words in ([f"--{name}={one}" for one in behind], [f"--{name}", behind[0], f"-{name}", behind[1]]):
        assert parse(f"--flagfile={path}", *words).given == {name: wanted, "seed": 7}
        # They are one value, at the place of the last.
        around = parse(*words[: len(words) // 2], "--flagfile", path, *words[len(words) // 2 :]).given[name]
        assert around == ([behind[0], of_file, behind[1]] if name == "plugin" else behind)
        before = parse(*words, f"--flagfile={path}").given[name]
        assert before == ([*behind, of_file] if name == "plugin" else [of_file])
    path.write_text(f"--flagfile={inner}\n--{name}={behind[0]}\n")
    wanted = [of_file, behind[0]] if name == "plugin" else behind[:1]
    assert parse(f"--flagfile={path}").given[name] == wanted
    assert refusal(f"--flagfile={path}", f"--{name}") == f"Missing value for flag --{name}"


def test_sources_behind_a_flagfile_take_the_place_of_its_own(tmp_path):
    path = tmp_path / "mine.flags"
    path.write_text("--source=folder:a\n--source=folder:b\n")
    assert parse(f"--flagfile={path}").given == {"source": 'joined:["folder:a", "folder:b"]'}
    assert parse(f"--flagfile={path}", "--source", "folder:c").given == {"source": "folder:c"}
    found = parse("--source=folder:c", f"--flagfile={path}", "--source", "folder:d").given
    assert found == {"source": 'joined:["folder:c", "folder:d"]'}


def test_flagfiles_that_cannot_be_read(tmp_path):
    missing = tmp_path / "no.flags"
    assert refusal(f"--flagfile={missing}") == f"--flagfile={missing}: No such file or directory"
    assert refusal("--flagfile", missing) == f"--flagfile={missing}: No such file or directory"
    assert refusal(f"--flagfile={tmp_path}") == f"--flagfile={tmp_path}: Is a directory"
    assert refusal("--flagfile") == "--flagfile with no argument"
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    assert refusal(f"--flagfile={picture}") == f"--flagfile={picture}: it is no text in UTF-8"
    # One of several.
    outer = tmp_path / "outer.flags"
    outer.write_text(f"--seed=3\n--flagfile={picture}\n")
    assert refusal(f"--flagfile={outer}") == f"--flagfile={picture}: it is no text in UTF-8"
    outer.write_text(f"--flagfile={outer}\n")
    assert refusal(f"--flagfile={outer}") == f"--flagfile={outer}: it leads back to itself"
    typo = tmp_path / "typo.flags"
    typo.write_text("--backbonne=x\n")
    assert refusal(f"--flagfile={typo}") == "Unknown command line flag 'backbonne'. Did you mean: backbone ?"


ROUND_TRIPS = [
    {},
    {
        **{name: not FIELDS[name].default for name in FIELDS if isinstance(FIELDS[name].default, bool)},
        "optimizer": "sgd",
    },
    {"lr_multiplier": ["head/=2", "backbone/a=b/.*=0.1"]},
    {
        "phase": [
            "for=1steps; train=head; augment=flip,crop(0.5)",
            "for=2epochs; train=.*conv",
        ]
    },
    {"phase": ["for=1steps; train=head"]},
    {"source": "", "backbone": "", "workdir": ""},
    {
        "source": "folder:my photos/a;b # c",
        "workdir": "/tmp/a b/ü",
        "finetune_train": "not:.*/(gamma|beta)$ all",
    },
    {"source": "folder:--seed=5", "workdir": "'quoted \"twice\"'", "output": "back\\slash=1"},
    {"frozen_learning_rate": 1e-7, "finetune_learning_rate": 1 / 3, "momentum": 0.1 + 0.2, "seed": 2**40},
    {"optimizer": "adamw", "weight_decay": 1e-300},
    *({name: choice} for name, field in FIELDS.items() for choice in field.metadata["choices"]),
]


@pytest.mark.parametrize("values", ROUND_TRIPS, ids=lambda values: ",".join(values) or "defaults")
def test_a_flagfile_gives_its_configuration(values, tmp_path):
    config = Config().replace(**values)
    path = tmp_path / "run.flags"
    path.write_text(config.flagfile())
    assert parse(f"--flagfile={path}").config == config
    # Every option is in it, so that later defaults change nothing.
    names = {
        line.removeprefix("--").removeprefix("no").split("=")[0] for line in path.read_text().splitlines()
    }
    # But what a rule chooses, and which options it does not: those that are there.
    wanted = set(FIELDS) - {"by_hand"}
    if config.is_recommended:
        wanted -= {*RECOMMENDED} - {*config.plan.by_hand}
    # What may be given several times is left out where it is not given.
    empty = {name for name in wanted if config.flat()[name] == () and isinstance(FIELDS[name].default, tuple)}
    assert names == wanted - empty


def test_what_auto_decides_is_refused_where_it_was_set(tmp_path):
    path = tmp_path / "mine.flags"
    # Also where it is the default.
    path.write_text("--optimizer=adam\n--batch_size=8\n")
    message = refusal(f"--flagfile={path}", "--schedule=auto", "--warmup=5steps")
    assert message == (
        "--warmup, --optimizer: --schedule=auto decides this by the number and size of the pictures; leave "
        "it away, or use another --schedule or --phase"
    )
    config = parse("--schedule=auto", "--batch_size=8", "--average=ema(0.5)").config
    # The flagfile of a run does without them.
    path.write_text(config.flagfile())
    assert parse(f"--flagfile={path}").config == config
    assert "--phase=" not in path.read_text()
    assert "--optimizer" not in path.read_text()
    # One that names the phases decides them itself.
    parse("--schedule=auto", "--phase=for=1steps; train=head", "--optimizer=sgd")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff--seed=7\r\n--batch_size=8\r\n",
        "\ufeff# a comment\n--seed=7\n--batch_size=8\n",
        "\ufeff\n--seed=7\n--batch_size=8\n",
        "\ufeff--flagfile=INNER\n--batch_size=8\n",
    ],
)
def test_a_flagfile_that_begins_with_a_byte_order_mark(text, tmp_path):
    inner, path = tmp_path / "inner.flags", tmp_path / "mine.flags"
    inner.write_bytes("\ufeff--seed=7".encode())
    path.write_bytes(text.replace("INNER", str(inner)).encode())
    assert parse(f"--flagfile={path}").given == {"seed": 7, "batch_size": 8}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_a_flagfile_in_another_encoding_is_one_line(encoding, tmp_path):
    path = tmp_path / "mine.flags"
    path.write_bytes("--seed=7\n--batch_size=8\n".encode(encoding))
    assert refusal(f"--flagfile={path}") == f"--flagfile={path}: it is no text in UTF-8"


def test_a_flagfile_whose_name_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.flags")
    assert refusal(f"--flagfile={path}") == f"--flagfile={path}: No such file or directory"
    with open(path, "w") as file:
        file.write("--seed=7\n")
    assert parse(f"--flagfile={path}").given == {"seed": 7}


def test_help_is_short_and_helpfull_complete():
    short, full = help_text(full=False), help_text(full=True)
    for name, field in FIELDS.items():
        assert f"\n  --{name}\n" in full
        assert (f"\n  --{name}\n" in short) == field.metadata["short"]
    for text in (short, full):
        assert text.startswith("Transfer-learning image classification")
        assert max(map(len, text.splitlines())) <= 100
        assert all(f"\n  {command} " in text for command in flags.COMMANDS)
    assert "--helpfull shows all options" in short
    assert "\n      constant, cosine to zero" not in short
    assert "One of frozen, batch. [frozen]" in full
    # What the default schedule chooses: the default beside it holds for all other schedules.
    assert "over all devices. [by --schedule=recommended; else 32]" in " ".join(full.split())


def test_help_loads_nothing_heavy():
    flag = "--help"
    code = (
        "import json, sys; from trainer.main import main; status = main(['', '--seed=1', sys.argv[1]]); "
        "heavy = {'tensorflow', 'numpy', 'tf_keras', 'tensorflow_hub', 'PIL'} & set(sys.modules); "
        "print(json.dumps([status, sorted(heavy)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [0, []]
    assert done.stdout == help_text(full=False)


@pytest.mark.parametrize(
    "argv", [["--help"], ["-h"], ["evaluate", "--helpshort"], ["--helpfull", "--colour=red"]]
)
def test_help_through_the_door(argv, run_main):
    full = "--helpfull" in argv
    if full:
        start_tensorflow()  # Which says something of its own, the first time.
    status, out, err = run_main(*argv)
    assert (status, err) == (0, "")
    assert out.startswith(help_text(full=full))
    if full:
        # What is registered, which needs TensorFlow.
        assert "\nloss (--loss):\n  cross_entropy\n" in out
        assert "\n  focal(gamma=2.0)\n      Cross-entropy that counts less where the network is sure" in out
    else:
        assert out == help_text(full=False)


def test_help_of_the_module_as_a_program():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainer.main", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, help_text(full=False))
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "trainer.cli.config" in loaded
    assert not {name for name in loaded if name.split(".")[0] in ("tensorflow", "numpy", "tf_keras")}


def test_what_is_proposed_for_the_words_of_others_can_be_written():
    for word in usual_words.WORDS:
        assert word not in FIELDS or word in ("model", "checkpoint")
        for command in ("train", "predict"):
            proposed = re.findall(r"--(\w+)", usual_words.written_here(word, "3", command=command))
            assert proposed or word in usual_words.WORDS
            assert not set(proposed) - {*FIELDS, "help", "flagfile", "dry_run"}
    assert usual_words.written_here("colour") == ""


@pytest.mark.parametrize(
    ("argv", "shown", "not_shown"),
    [
        (
            ["predict", "--help"],
            ["top_k", "threshold", "output", "workdir"],
            ["frozen_for", "repeats", "formats"],
        ),
        (["--help", "compare"], ["output", "eval_split"], ["workdir", "top_k"]),
        (["help", "export"], ["formats", "export_dir", "workdir", "checkpoint"], ["top_k", "source"]),
        (["--help=train"], ["source", "frozen_for", "workdir"], ["top_k", "repeats"]),
        (["find_lr", "-h"], ["source", "find_lr_steps"], ["top_k"]),
        (["--help=seed"], ["seed"], ["split_seed", "workdir"]),
        (["--workdir=x", "predict", "photos", "--help"], ["top_k"], ["frozen_for"]),
    ],
)
def test_help_about_a_command_or_an_option(argv, shown, not_shown, run_main):
    status, out, err = run_main(*argv)
    assert (status, err) == (0, "")
    assert [name for name in shown if f"\n  --{name}\n" not in f"\n{out}"] == []
    assert [name for name in not_shown if f"\n  --{name}\n" in f"\n{out}"] == []


def test_help_about_an_option_lists_what_is_registered(run_main):
    status, out, _ = run_main("--help=augment")
    assert status == 0
    assert out.startswith("  --augment\n      Random changes of training pictures")
    assert "\naugmentation (--augment):\n" in out
    assert "\n  mixup(" in out
    assert "--loss" not in out
    assert {registry.flag.removeprefix("--") for registry in register.registries().values()} == set(NAMED)
    told = "trainer: --help={}: there is no command and no option of that name"
    assert run_main("--help=augmnt") == (2, "", f"{told.format('augmnt')}; close: augment (see --help)\n")
    assert run_main("--help=bs") == (2, "", f"{told.format('bs')}. Write --batch_size=32\n")
