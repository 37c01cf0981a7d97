"""Hosts with files, processes and a name of their own, on which the documentation is tried out.

Each is a shell in new network, mount, process and name namespaces. What it writes below /etc,
/var/lib and the like lies in memory, over the machine's own files, and is gone with it; all its
processes end with the shell, and the shell with us. A few commands cannot be run for real, and are
programs of the test: apt-get and make look whether the machine has what they are to install,
systemctl starts etcd as Debian's unit does, scp hands files over.
"""

import re
import secrets
import subprocess
from pathlib import Path

from tests.faults.hosts import DIES_WITH_US, Network

ROOT = Path(__file__).parents[2]
_OWN = "etc usr/sbin usr/local root srv mnt opt var/lib"
_BLOCK = re.compile(r"^```sh\n# on ([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_COMMANDS = {
    "apt-get": """
[ "$1" = update ] && exit 0
[ "$1 $2" = "install --yes" ] || exit 1
shift 2
for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package")" = installed ] || exit 1
done
""",
    "make": """
[ "$*" = "-C /opt/clusterfs setup" ] && [ -x /opt/clusterfs/.venv/bin/clusterfs ]
""",
    "systemctl": """
[ "$*" = "enable etcd" ] && exit 0
[ "$*" = "restart --no-block etcd" ] || exit 1
set -a
. /etc/default/etcd
setsid etcd > /var/lib/etcd.log 2>&1 < /dev/null &
""",
    "scp": """
[ "$1" = -r ] || [ "$1" = -p ] || exit 1
case $3 in root@10.77.0.*:/*) ;; *) exit 1 ;; esac
to=${3#root@10.77.0.}
box=@FOLDER@/post/${to%%:*}
mkdir -p "$box"
cp -a "$2" "$box/$(echo "${to#*:}" | tr / @)"
""",
}


def blocks(document: str, heading: str) -> list[tuple[str, str]]:
    """Return (where, commands) of the shell blocks of one section; each must say where."""
    section = document.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = _BLOCK.findall(section)
    assert len(found) == section.count("```sh"), "a block does not say on which host it is run"
    return found


def hosts_meant(where: str, all_hosts: list[str]) -> list[str]:
    """Return the hosts that `# on ...` names."""
    return all_hosts if where == "every host" else where.split(" and ")


class Host:
    """One shell."""

    def __init__(self, network: Network, number: int, folder: Path) -> None:
        self._folder, self._number = folder, number
        self._shell = subprocess.Popen(
            [
                *DIES_WITH_US,
                *network.hosts[number].enter,
                *[
                    "unshare",
                    "--mount",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "bash",
                ],
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        scratch = folder / f"own-{number}"
        scratch.mkdir()
        self.run(
            f"hostname n{number}; set -e; mount -t tmpfs clusterfs-test {scratch}\n"
            f"for d in {_OWN}; do up={scratch}/$(echo $d | tr / -); mkdir -p $up/new $up/work\n"
            "mount -t overlay clusterfs-test "
            "-o lowerdir=/$d,upperdir=$up/new,workdir=$up/work /$d; done\n"
            "rm -rf /etc/etcd-tls /etc/clusterfs /var/lib/etcd/* /mnt/volume /opt/clusterfs\n"
            f"mkdir /opt/clusterfs; mount --bind {ROOT} /opt/clusterfs; set +e\n"
            f"export PATH={folder}/commands:$PATH HOME=/root; cd /root"
        )

    def run(self, commands: str) -> str:
        """Run them in the shell; returns what they said. Raises AssertionError: one failed."""
        assert self._shell.stdin
        assert self._shell.stdout
        end = f"end-{secrets.token_hex(8)}"
        # The status of each simple command counts, as for somebody who types them.
        self._shell.stdin.write(
            f"failed=0; trap 'failed=1; echo \"failed: $BASH_COMMAND\"' ERR\n"
            f"{commands}\ntrap - ERR; echo; echo {end} $failed\n"
        )
        self._shell.stdin.flush()
        said = []
        for line in self._shell.stdout:
            if line.startswith(end):
                assert line.split()[1] == "0", f"n{self._number}:\n{commands}\n" + "".join(said)
                return "".join(said)
            said.append(line)
        raise AssertionError(f"the shell of n{self._number} ended:\n" + "".join(said))

    def fetch_post(self) -> None:
        """Take what others sent with scp."""
        box = self._folder / "post" / str(self._number)
        for item in sorted(box.iterdir()) if box.is_dir() else ():
            self.run(f"cp -a {item} {item.name.replace('@', '/')} && rm -r {item}")

    def close(self) -> None:
        self._shell.kill()
        self._shell.communicate()


def write_commands(folder: Path) -> None:
    """Write the programs that stand for what cannot be run for real."""
    (folder / "commands").mkdir()
    for name, text in _COMMANDS.items():
        path = folder / "commands" / name
        path.write_text("#!/bin/sh\n" + text.replace("@FOLDER@", str(folder)))
        path.chmod(0o755)
