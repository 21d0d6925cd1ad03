"""A real SLURM: two nodes of a CPU each on this machine, with a network of their own.

From Debian's packages slurm-wlm and munge; to be root is needed, too. Each node is a network namespace,
so that both can use the same port, as two machines can. A job that is queued again waits until its
credentials have expired, which is after two minutes by default.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter", "unshare")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
ADDRESSES = {"n1": "10.77.31.1", "n2": "10.77.31.2"}
CONFIG = """
ClusterName=here
SlurmctldHost={host}({controller})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ReturnToService=2
MpiDefault=none
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Runs until it is closed."""

    def __init__(self, folder: Path):
        """Starts it, with its files in a new folder."""
        self.folder = folder
        self._spaces = {node: f"trainer-{os.getpid()}-{node}" for node in ADDRESSES}
        self._programs: list[subprocess.Popen[bytes]] = []
        (folder / "state").mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        folder.chmod(0o755)
        hosts = [f"{address} {node}\n" for node, address in ADDRESSES.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        host = os.uname().nodename.partition(".")[0]
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={6818 + at} CPUs=1"
            for at, (node, address) in enumerate(ADDRESSES.items())
        ]
        text = CONFIG.format(
            host=host, folder=folder, controller=ADDRESSES["n1"], nodes="\n".join(nodes)
        )  # fmt: skip
        (folder / "slurm.conf").write_text(text)
        try:
            self._connect()
            places = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "log-file",
                      "pid-file", "seed-file")]  # fmt: skip
            # In the foreground, so that it ends with the test.
            self._begin(["munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *places])
            self._begin(self._at("n1", "slurmctld", "-D"))
            for node in ADDRESSES:
                self._begin(self._at(node, "slurmd", "-D", "-N", node))
            self._wait_until(lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"], secs=60)
        except BaseException:
            self.close()
            raise

    def submit(self, script: Path, *, output: Path, environment: dict[str, str]) -> str:
        """Submits a job; returns its number."""
        told = self.run("sbatch", "--parsable", f"--output={output}", script, environment=environment)
        return told.strip()

    def state(self, job: str) -> str:
        """Returns such as PENDING, RUNNING or COMPLETED."""
        told = self.run("scontrol", "show", "job", job)
        return told.partition("JobState=")[2].split()[0]

    def wait_for(self, job: str, *states: str, secs: float = 300) -> None:
        """Waits until a job is in one of the states."""
        self._wait_until(lambda: self.state(job) in states, secs=secs)

    def run(self, *command: object, environment: dict[str, str] | None = None) -> str:
        """Runs a command of SLURM on the first node; returns what it says."""
        env = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), **(environment or {})}
        done = subprocess.run(self._at("n1", *command), env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def close(self) -> None:
        """Ends all of it, jobs first."""
        with contextlib.suppress(AssertionError):
            self.run("scancel", "--signal=KILL", "--full", "--state=RUNNING")
            self._wait_until(lambda: "R" not in self.run("squeue", "-h", "-o", "%t").split(), secs=30)
        for program in reversed(self._programs):
            # It is the first of a group, in which there are those that it has begun.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "del", space], check=False, stderr=subprocess.DEVNULL)

    def _connect(self) -> None:
        """Makes the two networks, with a cable between them."""
        first, second = self._spaces.values()
        for space in (first, second):
            _ip("netns", "add", space)
        _ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for space, address in zip((first, second), ADDRESSES.values(), strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", space, "link", "set", device, "up")

    def _at(self, node: str, *command: object) -> list[str]:
        """Returns a command as it is run on a node, where the names of all nodes are known."""
        own_hosts = 'mount --bind "$0" /etc/hosts && exec "$@"'
        net = f"--net=/run/netns/{self._spaces[node]}"
        words = ["nsenter", net, "unshare", "-m", "sh", "-c", own_hosts, self.folder / "hosts", *command]
        return [str(word) for word in words]

    def _begin(self, command: list[str]) -> None:
        env = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._programs.append(subprocess.Popen(command, env=env, start_new_session=True, **quiet))
        time.sleep(1)

    def _wait_until(self, is_so, *, secs: float) -> None:
        ends = time.monotonic() + secs
        while not is_so():
            logs = "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < ends, logs
            time.sleep(0.3)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
