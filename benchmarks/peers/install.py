"""`python -m benchmarks.peers.install [peer ...]`: makes the peers' environments.

Each lies on top of the project's own: what its requirements name comes first, and everything else, torch above
all, is the project's, so that a ratio compares libraries and not builds of torch.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence

from benchmarks.contenders import ENVIRONMENTS, PEERS, python_of

REQUIREMENTS = PEERS / "requirements"


def peers() -> list[str]:
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def install(peer: str) -> None:
    """Makes or completes one environment."""
    folder = ENVIRONMENTS / peer
    if not python_of(peer).exists():
        venv.create(folder, with_pip=True)
    inner = subprocess.run(
        [str(python_of(peer)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with open(f"{inner}/zz_project.pth", "w", encoding="utf-8") as link:
        link.write(sysconfig.get_path("purelib") + "\n")
    # The files list all that differs from the project's environment, so that there is nothing to resolve.
    command = [str(python_of(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "-r", str(REQUIREMENTS / f"{peer}.txt")], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    failed = []
    for peer in (sys.argv[1:] if arguments is None else arguments) or peers():
        print(f"Installing {peer} ...", flush=True)
        try:
            install(peer)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{peer} could not be installed: {error}", file=sys.stderr)
            failed.append(peer)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
