"""A Slurm of one node with this machine's own programs: munge, controller and node, on free ports below a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
# What a node of a real cluster does with cgroups (limits, tracking of processes) needs rights that a container
# doesn't give; everything else is the real thing. Accounting is left out: it needs a database server.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmctldParameters=idle_on_node_suspend
ReturnToService=2
MpiDefault=none
KillWait=5
JobRequeue=1
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    gone = [name for name in PROGRAMS if shutil.which(name) is None]
    if gone:
        return f"Slurm isn't installed here (apt-get install slurm-wlm munge): no {', '.join(gone)}"
    return "" if os.geteuid() == 0 else "a Slurm of one's own is started by root only"


@contextlib.contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the three; yields the environment in which Slurm's commands talk to them."""
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    file = folder / "slurm.conf"
    controller, node = _free_ports(2)
    file.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], controller=controller, node=node, folder=folder
        )
    )
    for number in range(2):  # files in place of devices: Slurm counts them and hands out their numbers
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(file)}
    with contextlib.ExitStack() as stack:

        def start(name: str, *arguments: str) -> None:
            log = stack.enter_context((folder / f"{name}.out").open("wb"))
            process = subprocess.Popen([name, *arguments], env=environment, stdout=log, stderr=log)
            stack.callback(_stop, process)

        start(
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", "--num-threads=2",
            f"--log-file={folder}/munged.log",
        )  # fmt: skip
        wait_until((folder / "munge.socket").exists, seconds=20)
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D")

        def idle() -> bool:
            told = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False
            )
            return told.stdout.strip() == "idle"

        wait_until(idle, seconds=60)
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
