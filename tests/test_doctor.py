"""`doctor`: every fault it is to find is made, and what is whole is called so."""

import http.server
import json
import os
import platform
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.record.runs import make_run
from trainer.cli.config import Config
from trainer.doctor import hardware, probe, storage
from trainer.doctor import packages as installed
from trainer.doctor import storage as reach
from trainer.doctor import storage as run_folder
from trainer.doctor.findings import Finding, Section, as_json, shown, verdict
from trainer.doctor.hardware import check_precisions
from trainer.doctor.packages import imported_by_training
from trainer.doctor.storage import Address, Reach
from trainer.precision import Choice
from trainer.precision.choice import MEASUREMENT
from trainer.record.workdir import Workdir

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """The disk of whoever runs the tests may be as full as it is."""
    for limit in ("LITTLE_BYTES", "TOO_LITTLE_BYTES", "FEW_FILES"):
        monkeypatch.setattr(storage, limit, 0)


def marks(findings):
    return [finding.mark for finding in findings]


def about(findings, word):
    """Returns the one finding that has a word in its text."""
    [found] = [finding for finding in findings if word in finding.text]
    return found


def make_package(folder, name, version, *needs):
    """Makes a folder look like one that a package is installed in."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    return folder


def test_packages_that_fit():
    findings = installed.check_packages(["numpy>=1", "pillow", "flask; python_version < '3'"])
    assert set(marks(findings)) == {"ok"}
    assert platform.python_version() in findings[0].text
    assert not any("flask" in finding.text for finding in findings)


@pytest.mark.parametrize(
    ("requirement", "mark", "text", "advice"),
    [
        (
            "no-such-package>=1.5",
            "problem",
            "no-such-package is missing",
            "pip install 'no-such-package>=1.5'",
        ),
        ("numpy<1", "warning", "(wanted <1)", "pip install 'numpy<1'"),
    ],
)
def test_packages_that_do_not_fit(requirement, mark, text, advice):
    findings = installed.check_packages([requirement, "pillow>=1"])
    found = about(findings, text)
    assert found.mark == mark
    assert found.advice.endswith(advice)
    assert marks(findings).count("ok") == len(findings) - 1


def test_a_package_that_one_command_needs_does_not_stop_training(monkeypatch):
    monkeypatch.setitem(installed.NEEDED_ONLY_BY, "no-such-package", "serve")
    found = about(installed.check_packages(["no-such-package"]), "no-such-package")
    assert (found.mark, found.text) == ("warning", "no-such-package is missing: needed by serve")


def test_what_packages_need_of_each_other_is_looked_at(tmp_path, monkeypatch):
    needs = ("numpy<1", "no-such-package>2", "also-missing; extra == 'all'", "pillow>=1")
    make_package(tmp_path, "some-tool", "3.1", *needs)
    monkeypatch.syspath_prepend(tmp_path)
    findings = installed.check_packages(["some-tool"])
    assert "some-tool 3.1 wants <1" in about(findings, "numpy").text
    assert about(findings, "no-such-package").text == "no-such-package is missing: some-tool 3.1 wants >2"
    assert marks(findings).count("warning") == 2


def test_another_python_than_is_wanted(tmp_path, monkeypatch):
    folder = make_package(tmp_path, "hub-trainer", "9")
    metadata = next(folder.iterdir()) / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Python: <3.11\n")
    monkeypatch.syspath_prepend(folder)
    assert installed.check_packages()[0].mark == "problem"
    metadata.write_text(metadata.read_text().replace("<3.11", ">=3.11"))
    assert installed.check_packages()[0].mark == "ok"


def test_one_of_several_machines(monkeypatch):
    assert hardware.check_cluster() == []
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    [found] = hardware.check_cluster()
    assert found.mark == "problem"
    assert found.text.startswith("TF_CONFIG lists 2 workers, and its task null is none of them")
    task = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    monkeypatch.setenv("TF_CONFIG", task)
    [found] = hardware.check_cluster()
    assert (found.mark, found.text) == (
        "ok",
        "TF_CONFIG makes this worker 1 (b:1) of 2: train works with all",
    )


def test_places_that_are_no_folders_here(monkeypatch, tmp_path):
    monkeypatch.setenv("TFHUB_CACHE_DIR", "gs://bucket/modules")
    findings = storage.check_caches(data_dir="gs://bucket/data")
    assert about(findings, "$TFHUB_CACHE_DIR=gs://bucket/modules: expected a path").mark == "problem"
    assert about(findings, "in gs://bucket/data, which is not looked at").mark == "ok"


def test_encodings():
    code = "from trainer.doctor.packages import check_encodings as c; print(c()[0].mark)"
    plain = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "",
    }
    for environment, mark in ((plain, "warning"), ({**plain, "PYTHONUTF8": "1"}, "ok")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
        )
        assert (done.stdout, done.stderr) == (mark + "\n", "")


def test_what_a_container_may_use_is_seen(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    findings = hardware.check_processor(cgroup=tmp_path)
    cores, memory = about(findings, "the container may use 0.5 of"), about(findings, "memory")
    assert (cores.mark, "TF_NUM_INTRAOP_THREADS=1" in cores.advice) == ("warning", True)
    assert (memory.mark, "of which the container may use 2.0 GB" in memory.text) == ("warning", True)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert not any("of which" in f.text or "starts a thread" in f.text for f in findings[3:])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86")
@pytest.mark.parametrize(
    ("flags", "mark", "text"),
    [
        ({"sse4_2"}, "problem", "the processor has no AVX:"),
        ({"avx"}, "warning", "the processor has no AVX2"),
        ({"avx", "avx2", "amx_bf16"}, "ok", "instruction sets: avx2, amx_bf16"),
    ],
)
def test_instruction_sets(flags, mark, text, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "processor", lambda: ("A processor", flags))
    assert about(hardware.check_processor(cgroup=tmp_path), text).mark == mark


def test_settings_that_hold_the_processor_back(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    findings = hardware.check_processor(cgroup=tmp_path)
    assert about(findings, "TF_ENABLE_ONEDNN_OPTS=0").advice == "unset TF_ENABLE_ONEDNN_OPTS"
    assert about(findings, "ONEDNN_MAX_CPU_ISA=AVX2").mark == "warning"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    assert not any("TF_ENABLE" in finding.text for finding in hardware.check_processor(cgroup=tmp_path))


SEES_NONE = {"version": "2.21.0", "gpus": [], "is_built_with_cuda": True, "cuda_version": "12.5.1"}


@pytest.mark.parametrize(
    ("program", "devices", "hidden", "mark", "told"),
    [
        ("echo 'NVIDIA T4, 15360 MiB, 550.54'", {}, None, "warning", "tensorflow[and-cuda]==2.21.0"),
        (
            "echo 'NVIDIA T4, 15360 MiB, 550.54'",
            {"is_built_with_cuda": False},
            None,
            "warning",
            "without CUDA",
        ),
        ("echo 'NVIDIA T4, 15360 MiB, 550.54'", {}, "-1", "warning", "unset CUDA_VISIBLE_DEVICES"),
        ("echo 'NVIDIA T4, 15360 MiB, 550.54'", {"gpus": ["Tesla T4"]}, None, "ok", ""),
        ("echo 'no driver'; exit 9", {}, None, "warning", "restart the machine"),
        ("true", {}, None, "ok", ""),
    ],
)
def test_gpus(program, devices, hidden, mark, told, tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    [found] = hardware.check_gpus({"devices": {**SEES_NONE, **devices}})
    assert found.mark == mark
    assert told in found.advice
    if "T4" in program:
        assert "NVIDIA T4 (15360 MiB, driver 550.54)" in found.text
    if "exit" in program:
        assert "no driver" in found.text


def broken_tensorflow(folder, code):
    (folder / "tensorflow").mkdir(parents=True)
    (folder / "tensorflow" / "__init__.py").write_text(code + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "raise ImportError('libno.so: no such file')",
            "tensorflow cannot be imported: ImportError: libno.so",
        ),
        ("import os\nos.abort()", "TensorFlow fails, importing it: it is ended by SIGABRT"),
        ("import os\nos._exit(3)", "TensorFlow fails, importing it: it ends with status 3"),
        ("import time\ntime.sleep(60)", "TensorFlow fails, importing it: it does not end within 1 s"),
    ],
)
def test_a_tensorflow_that_fails_takes_nothing_with_it(code, text, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", broken_tensorflow(tmp_path, code))
    if "sleep" in code:
        monkeypatch.setattr(probe, "TIMEOUT_SECS", 1.0)
    probed = probe.finish(probe.start())
    *others, found = hardware.check_tensorflow(probed)
    assert found.mark == "problem"
    assert set(marks(others)) <= {"ok"}
    assert text in found.text
    assert "could not be asked" in hardware.check_gpus(probed)[0].text
    assert marks(check_precisions(probed, cache_dir=str(tmp_path))) == ["warning"]


@pytest.mark.slow
def test_every_package_that_training_imports_is_tried_and_each_broken_one_named(tmp_path, monkeypatch):
    packages = imported_by_training()
    assert packages.keys() >= {"PIL", "scipy", "sklearn", "matplotlib", "tqdm", "pyarrow", "tensorflow_hub"}
    assert not {"flask", "ai_edge_litert", "trainer", "os"} & packages.keys()
    assert "from sklearn import metrics as sk_metrics" in packages["sklearn"]
    for name in ("PIL", "scipy", "sklearn", "matplotlib", "tqdm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('no {name} here')\n")
    # What other commands than train need.
    for name in ("flask", "ai_edge_litert"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('no {name} here')\n")
    # Of this one, only a part is broken.
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").write_text("__version__ = '1'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = hardware.check_tensorflow(probe.finish(probe.start()))
    problems = [finding for finding in findings if finding.mark == "problem"]
    for name, project in (
        ("PIL", "pillow"), ("scipy", "scipy"), ("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"),
        ("tqdm", "tqdm"), ("pyarrow", "pyarrow"),
    ):  # fmt: skip
        found = about(problems, f"{name} cannot be imported: ImportError: ")
        assert found.advice.endswith(f"pip install --force-reinstall {project}")
    for name, project, user in (
        ("flask", "Flask", "serve"),
        ("ai_edge_litert", "ai-edge-litert", "export, "),
    ):
        found = about(findings, f"{name} cannot be imported: ImportError: no {name} here: needed by {user}")
        assert found.mark == "warning"
        assert found.advice.lower().endswith(f"pip install --force-reinstall {project}".lower())


@pytest.mark.slow
def test_parts_that_are_imported_late_and_by_name_are_tried_too(tmp_path, monkeypatch):
    """As matplotlib does when it draws, and tfds when it is asked for anything."""
    (tmp_path / "sitecustomize.py").write_text("""
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name in ("matplotlib.backends.backend_agg", "tensorflow_datasets.core"):
            raise ImportError(f"undefined symbol in {name}")

sys.meta_path.insert(0, Broken())
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = hardware.check_tensorflow(probe.finish(probe.start()))
    found = about(
        findings, "matplotlib cannot be imported: ImportError: undefined symbol in matplotlib.backends"
    )
    assert found.mark == "problem"
    assert about(findings, "tensorflow_datasets cannot be imported: ").mark == "warning"


def test_a_python_that_cannot_be_started(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    [found] = hardware.check_tensorflow(probe.finish(probe.start()))
    reason = "Python cannot be started as a process of its own: Permission denied: "
    assert (found.mark, f"{reason}{tmp_path / 'python'}" in found.text) == ("problem", True)


def choice(machine, secs, *, at):
    precision = min(secs, key=secs.get)
    return Choice(precision, secs, "forward of phase frozen", machine, at).to_json()


def test_what_runs_measured_is_told_where_it_holds(tmp_path):
    here, secs = {"cores": 2}, {"float32": 0.2, "bfloat16": 0.1}
    speeds = {"machine": here, "measured": choice(here, {"float32": 0.1, "bfloat16": 0.05}, at="")}
    folder = tmp_path / "precision"
    folder.mkdir()
    for i in range(7):
        kept = choice({"cores": 2 if i else 64}, secs, at=f"2026-01-0{i + 1}T00:00:00+00:00")
        (folder / f"{i}.json").write_text(json.dumps({**kept, "measurement": MEASUREMENT, "key": {}}))
    (folder / "damaged.json").write_text("{")
    findings = check_precisions({"speeds": speeds}, cache_dir=str(tmp_path))
    assert set(marks(findings)) == {"ok"}
    assert "bfloat16 pays: 100 ms in float32, 50 ms in bfloat16" in findings[0].text
    told = [f.text for f in findings if "remembered from" in f.text]
    assert [text.rpartition("-0")[2] for text in told] == ["7)", "6)", "5)", "4)", "3)"]
    assert "bfloat16, measured 100 ms a step against 200 in float32" in told[0]
    assert "and 1 older" in about(findings, "older").text
    assert "1 more" in about(findings, "other machines").text


def test_where_there_is_only_float32_nothing_is_to_be_chosen(tmp_path):
    measured = Choice("float32", {"float32": 0.1}, "", {}, "").to_json()
    [found] = check_precisions({"speeds": {"machine": {}, "measured": measured}}, cache_dir=str(tmp_path))
    assert "nothing to choose" in found.text


def test_caches_are_counted(tmp_path, monkeypatch):
    root, hub = tmp_path / "cache", tmp_path / "hub"
    for path, size in ((root / "features" / "a" / "x", 3000), (root / "features" / "y", 500), (hub / "z", 7)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent))
    root.rename(tmp_path / "hub-trainer")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(hub))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    findings = storage.check_caches(limit_gb=20)
    assert about(findings, "features").text.startswith("features: 3.5 kB in 2 files, of at most 20 GB")
    assert f"7 bytes in 1 file in {hub}" in about(findings, "TensorFlow Hub").text
    assert f"none yet, they would be in {tmp_path / 'none'}" in about(findings, "tfds").text
    over = about(storage.check_caches(limit_gb=1e-6), "features")
    assert (over.mark, "more than --cache_limit_gb=1e-06" in over.text) == ("warning", True)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_place_of_the_cache(below, tmp_path):
    (tmp_path / "file").write_text("")
    found = storage.check_caches(cache_dir=str(tmp_path / "file" / below))[0]
    assert (found.mark, found.advice) == ("problem", "--cache_dir=FOLDER names another place")
    assert f"{tmp_path / 'file'} is no folder" in found.text


def test_a_folder_that_cannot_be_written():
    # Whoever runs the tests: the kernel makes no files here.
    found = storage.check_place(Path("/proc/self"), what="workdir", flag="--workdir", needed=True)
    assert found.mark == "problem"
    assert "cannot be written" in found.text


@pytest.mark.parametrize(("limit", "mark"), [("LITTLE_BYTES", "warning"), ("TOO_LITTLE_BYTES", "problem")])
def test_a_disk_that_is_full(limit, mark, tmp_path, monkeypatch):
    assert storage.check_caches(cache_dir=str(tmp_path))[0].mark == "ok"
    monkeypatch.setattr(storage, limit, 1e18)
    found = storage.check_caches(cache_dir=str(tmp_path / "not" / "there"))[0]
    assert (found.mark, "make room" in found.advice) == (mark, True)
    assert not any(tmp_path.iterdir())


@pytest.fixture
def answering():
    """answering(status) -> address of a server that gives this answer; None: that gives none."""
    opened = []

    def serve(status):
        if status is None:
            listening = socket.create_server(("127.0.0.1", 0))
            opened.append(listening.close)
            return f"http://127.0.0.1:{listening.getsockname()[1]}/"

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        opened.extend([server.server_close, server.shutdown])
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve
    for close in reversed(opened):
        close()


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def reached(*urls):
    return Reach(tuple(Address(url, "things", "others work") for url in urls)).findings()


def test_who_answers_is_there(answering, no_proxies):
    findings = reached(answering(200), answering(403), answering(404), answering(500))
    assert marks(findings) == ["ok"] * 4


def test_who_cannot_be_reached_is_named(answering, no_proxies, monkeypatch):
    monkeypatch.setattr(reach, "TIMEOUT_SECS", 0.5)
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    refused, silent, gateway = reached(f"http://127.0.0.1:{port}/", answering(None), answering(503))
    assert refused.text == f"127.0.0.1:{port} cannot be reached: Connection refused (things)"
    assert "no answer within 0.5 s" in silent.text
    assert "503 Service Unavailable" in gateway.text
    assert [f.advice for f in (refused, silent, gateway)] == ["others work"] * 3


def test_a_name_that_nobody_knows_or_tells(no_proxies, monkeypatch):
    monkeypatch.setattr(reach, "TIMEOUT_SECS", 0.3)

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    [found] = reached("http://there.is.none/")
    assert found.text == "there.is.none cannot be reached: Name or service not known (things)"
    told = threading.Event()

    def slow(*_, **__):
        told.wait(20)
        unknown()

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    [found] = reached("http://there.is.none/")
    told.set()
    assert "no answer within 0.3 s" in found.text


def test_proxies_are_used_and_their_passwords_kept(answering, no_proxies, monkeypatch):
    port = answering(407).rpartition(":")[2].rstrip("/")
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    found, through = reached("http://there.is.none/")
    assert (found.mark, "407" in found.text) == ("warning", True)
    assert through.text == f"through the http proxy 127.0.0.1:{port}"


MOUNTS = """\
31 22 0:41 / /data/my\\040disk rw - xfs /dev/vdb rw
30 22 0:40 / /data rw shared:1 - nfs4 server:/data rw
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
"""


def test_the_kind_of_a_file_system(tmp_path):
    (tmp_path / "mounts").write_text(MOUNTS)
    kinds = {
        "/home/x": "ext4",
        "/data": "nfs4",
        "/data/x/y": "nfs4",
        "/data/my disk/x": "xfs",
        "/database": "ext4",
    }
    for path, kind in kinds.items():
        assert run_folder.file_system(Path(path), mounts=tmp_path / "mounts") == kind
    assert run_folder.file_system(Path("/x"), mounts=tmp_path / "none") == ""
    (tmp_path / "mounts").write_text(f"30 22 0:40 / {tmp_path} rw shared:1 - nfs4 server:/data rw\n")
    findings = run_folder.check_workdir(str(tmp_path / "run"), mounts=tmp_path / "mounts")
    assert marks(findings) == ["ok", "warning"]
    assert "network file system (nfs4)" in findings[1].text


def test_the_run_in_a_workdir(tmp_path):
    run = make_run(
        tmp_path / "run", [True, True, False, False], split="train", batch_size=2, schedule="frozen"
    )
    found = run_folder.check_workdir(str(run))[-1]
    assert "step 0 of 20: the same train command goes on; train accuracy 0.5000 in its report" in found.text
    (run / "report" / "metrics.json").unlink()
    (run / "checkpoints").mkdir()
    for step, told in ((12, "the same train command goes on"), (20, "finished")):
        (run / "checkpoints" / f"ckpt-{step}.json").write_text("{}")
        found = run_folder.check_workdir(str(run))[-1]
        assert f"saved up to step {step} of 20: {told}; no report" in found.text
    (run / "run.json").write_text("{")
    found = run_folder.check_workdir(str(run))[-1]
    assert (found.mark, "run.json is damaged" in found.text) == ("problem", True)


def test_who_is_at_work_in_a_workdir(tmp_path):
    workdir = Workdir(str(tmp_path))
    with workdir.lock():
        findings = run_folder.check_workdir(str(tmp_path))
        assert f"process {os.getpid()} on " in about(findings, "at work").text
    findings = run_folder.check_workdir(str(tmp_path))
    assert not any("at work" in finding.text for finding in findings)
    with workdir.lock():
        pass


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert marks(run_folder.check_workdir(str(tmp_path / "file" / "run"))) == ["problem"]
    assert marks(run_folder.check_workdir(str(tmp_path / "new" / "run"))) == ["ok"]


def test_lines_fit_and_what_is_copied_stays_whole():
    path = "/a" * 80
    text = shown(
        Section("title", [Finding("warning", "words " * 40, f"pip install {path}"), Finding("ok", "x")])
    )
    lines = text.splitlines()
    assert lines[0] == "title"
    assert lines[1].startswith("  warning  words words")
    assert max(len(line) for line in lines if path not in line) <= 100
    assert path in text
    assert lines[-1] == "  ok       x"


def test_a_problem_decides():
    findings = [Finding("ok", "x"), Finding("warning", "y", "do"), Finding("problem", "z", "mend")]
    assert verdict([Section("a", findings[:2])]) == "0 problems, 1 warning: training is possible"
    whole = [Section("a", findings[:2]), Section("b", findings[2:])]
    assert verdict(whole) == "1 problem, 1 warning: training is not possible until it is mended"
    found = as_json(whole)
    assert (found["num_problems"], found["num_warnings"]) == (1, 1)
    assert found["sections"][1] == {
        "title": "b",
        "findings": [{"mark": "problem", "text": "z", "advice": "mend"}],
    }


TITLES = ["packages", "machine", "TensorFlow", "precision", "caches", "network"]


@pytest.mark.slow
def test_a_machine_that_is_well(run_main, tmp_path, monkeypatch):
    # Nobody has to be reached.
    monkeypatch.setattr(reach, "TIMEOUT_SECS", 0.2)
    output, workdir = tmp_path / "new" / "found.json", make_run(tmp_path / "run", [True])
    status, out, err = run_main("doctor", f"--output={output}", f"--workdir={workdir}")
    found = json.loads(output.read_text())
    assert (status, err) == (0, "")
    assert [section["title"] for section in found["sections"]] == [*TITLES, "workdir"]
    text = " ".join(out.split())
    for section in found["sections"]:
        for finding in section["findings"]:
            assert f"{finding['mark']} {finding['text']}" in text
            assert bool(finding["advice"]) == (finding["mark"] != "ok")
            assert finding["advice"] in text
    assert "tensorflow, tf_keras, tensorboard, tensorflow_hub, tensorflow_datasets can be imported" in text
    assert "ok PIL, absl," in text
    assert " ms in float32" in text
    assert out.splitlines()[-1].endswith(": training is possible")
    assert f"a run of {Config().model.backbone} on" in text


@pytest.mark.slow
def test_a_machine_without_tensorflow_and_with_no_place_for_a_cache(tmp_path):
    (tmp_path / "file").write_text("")
    path = [broken_tensorflow(tmp_path / "broken", "raise ImportError('libno.so')"), str(ROOT)]
    command = [sys.executable, "-m", "trainer.main", "doctor", f"--cache_dir={tmp_path / 'file'}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    text = " ".join(done.stdout.split())
    assert "problem tensorflow cannot be imported: ImportError: libno.so" in text
    assert f"problem cache: {tmp_path / 'file'} is no folder" in text
    assert [line for line in done.stdout.splitlines() if line in TITLES] == TITLES
    assert done.stdout.splitlines()[-1].startswith("2 problems, ")


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [("found.txt", 2, "--output=found.txt must end in .json"), ("file/found.json", 1, "lies below a file")],
)
def test_a_wrong_output_is_told_at_once(output, status, message, run_main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    found = run_main("doctor", f"--output={output}")
    assert (found[0], found[1]) == (status, "")
    assert message in found[2]
