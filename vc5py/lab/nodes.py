"""What runs on the nodes of the lab: BIRD on the router, nginx on the reals, vc5py on the balancers.

Must not know: what is shown with them. Each program is the real one, started in its namespace with files
of its own; the command is also left in the node's directory as `start`, for a person to run by hand.
Invariant: children are in a session of their own, so a Ctrl-C at the terminal reaches only us, and we
take them down in order.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from .errors import LabError
from .layout import (
    AS_NUMBER,
    BIG_BYTES,
    FAR_REAL,
    FAR_VIPS,
    METRICS_PORT,
    PORTS,
    REALS,
    ROUTER,
    ROUTER_LAN,
    SERVICE,
    SERVICE6,
    TAGGED_NETWORK,
    TAGGED_REAL,
    TAGGED_VIP,
    VIP,
    VIP6,
    VIP6_RANGE,
    VIP_RANGE,
    VLAN,
    Host,
    IPAddress,
    Layout,
)
from .network import run

FAR_MODES = {4: "gue", 6: "ipip"}  # how real4 is reached, by the version of its address
WEB_NAME = "www.lab"  # in the reals' certificate
_END_S = 30.0

_PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "mount": "mount",
    "bird": "bird2",
    "birdc": "bird2",
    "nginx": "nginx-light",
    "curl": "curl",
    "openssl": "openssl",
}


def require_programs() -> None:
    """LabError naming the Debian packages of all programs that are missing, where any is."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    missing = {program: package for program, package in _PROGRAMS.items() if not shutil.which(program)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LabError(f"the lab needs {', '.join(missing)}: apt-get install {packages}")


class Program:
    """A long-running program on a node, with its output in `log` there."""

    def __init__(self, layout: Layout, node: str, command: list[str]) -> None:
        self.node = node
        self.command = command
        self.directory = layout.node_directory(node)
        self._namespace = layout.namespace(node)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> None:
        full = ["ip", "netns", "exec", self._namespace, *self.command]
        script = self.directory / "start"
        script.write_text(f"#!/bin/sh\nexec {shlex.join(full)} >>{shlex.quote(str(self.log))} 2>&1\n")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                full, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ended(self) -> int | None:
        """Exit status where the program was started and has ended, else None."""
        return self._process.poll() if self._process else None

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self.reap()

    def reap(self) -> None:
        """Collects the exit status of a program that was killed, or told to end."""
        if self._process:
            self._process.wait(timeout=_END_S)
            self._process = None

    def log_tail(self, lines: int = 15) -> list[str]:
        try:
            return self.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            return []


def bird_program(layout: Layout) -> Program:
    directory = layout.node_directory(ROUTER)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bird.conf").write_text(bird_configuration(layout))
    command = ["bird", "-f", "-c", f"{directory}/bird.conf", "-s", f"{directory}/bird.ctl"]
    return Program(layout, ROUTER, [*command, "-P", f"{directory}/bird.pid"])


def bird_configuration(layout: Layout) -> str:
    bfd = layout.bfd
    sessions = "\n".join(
        f"protocol bgp {lb.name} from balancer {{ neighbor {lb.address} as {AS_NUMBER}; }}"
        for lb in layout.balancers
    )
    return f"""\
log stderr all;
router id {ROUTER_LAN.ip};
protocol device {{ scan time 1; }}
{'protocol bfd { interface "lan" { interval 100 ms; multiplier 3; }; }' if bfd else ""}
protocol kernel {{
  merge paths on;  # one route with all next hops: ECMP
  ipv4 {{ import none; export where source = RTS_BGP; }};
}}
protocol kernel {{
  merge paths on;
  ipv6 {{ import none; export where source = RTS_BGP; }};
}}
template bgp balancer {{
  local {ROUTER_LAN.ip} as {AS_NUMBER};
  direct;
  hold time {layout.hold_s};
  {"bfd on;" if bfd else ""}
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 2;
  ipv4 {{
    import where net ~ [ {VIP_RANGE}{{32,32}} ];
    export none;
    gateway direct;
  }};
  ipv6 {{
    import where net ~ [ {VIP6_RANGE}{{128,128}} ];
    export none;
    gateway direct;
  }};
}}
{sessions}
"""


def make_web_files(layout: Layout) -> None:
    """A self-signed certificate and a big file of zeros (sparse), shared by all reals."""
    key, certificate = f"{layout.directory}/web.key", f"{layout.directory}/web.crt"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    run(
        *("openssl", "req", "-x509", *kind, "-days", "30", "-subj", f"/CN={VIP}"),
        *("-addext", f"subjectAltName=DNS:{WEB_NAME}"),
        *("-keyout", key, "-out", certificate),
    )
    with (layout.directory / "big").open("wb") as big:
        big.truncate(BIG_BYTES)


def nginx_program(layout: Layout, real: Host) -> Program:
    directory = layout.node_directory(real.name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "nginx.conf").write_text(nginx_configuration(layout, real))
    return Program(layout, real.name, ["nginx", "-e", "stderr", "-c", f"{directory}/nginx.conf"])


def nginx_configuration(layout: Layout, real: Host) -> str:
    directory = layout.node_directory(real.name)
    temporary = "\n  ".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  access_log off;
  {temporary}
  keepalive_timeout 0;  # every request is a connection of its own
  default_type text/plain;
  server {{
    listen {PORTS[0]};
    listen [::]:{PORTS[0]};
    listen {PORTS[1]} ssl;
    listen [::]:{PORTS[1]} ssl;
    ssl_certificate {layout.directory}/web.crt;
    ssl_certificate_key {layout.directory}/web.key;
    location = / {{ return 200 "{real.name}\\n"; }}
    location = /upload {{ proxy_pass http://127.0.0.1:{PORTS[0]}/; }}  # which reads all of it
    location = /alive {{ return 200 "alive\\n"; }}
    location = /big {{ alias {layout.directory}/big; sendfile on; add_header X-Real {real.name}; }}
  }}
}}
"""


def balancer_program(layout: Layout, balancer: Host) -> Program:
    directory = layout.node_directory(balancer.name)
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "vc5.yaml"
    config.write_text(balancer_configuration(balancer))
    options = {
        "-c": config,
        "--address": balancer.address,
        "--state-dir": directory / "state",
        "--data-dir": directory / "data",
        "--bpf-dir": layout.bpffs(balancer.name),
    }
    arguments = [str(word) for option in options.items() for word in option]
    vc5py = Path(sys.executable).with_name("vc5py")
    return Program(layout, balancer.name, [str(vc5py), "run", *arguments, "eth0"])


def balancer_configuration(balancer: Host) -> str:
    reals6 = [str(address) for real in REALS for address in real.addresses if address.version == 6]
    config = {
        "rhi": {"as_number": AS_NUMBER, "peers": [str(ROUTER_LAN.ip)]},
        "metrics": {"address": str(balancer.address), "port": METRICS_PORT},
        "vlans": {VLAN: str(TAGGED_NETWORK)},
        "services": [
            _service(SERVICE, PORTS, VIP) | {"desc": "web server"},
            _service(SERVICE6, PORTS, VIP6),
            _service("far", PORTS[:1], *FAR_VIPS),
            _service("tagged", PORTS[:1], TAGGED_VIP),
        ],
        "reals": {
            SERVICE: [str(real.address) for real in REALS],
            SERVICE6: reals6,
            "far": [{"address": str(a), "mode": FAR_MODES[a.version]} for a in FAR_REAL.addresses],
            "tagged": [str(TAGGED_REAL.address)],
        },
    }
    return yaml.safe_dump(config, sort_keys=False)


def _service(name: str, ports: tuple[int, ...], *vips: IPAddress) -> dict[str, object]:
    """A service on the group of reals of its name, with a check for each of its ports.

    Its reals may be killed as often as anybody likes: none is kept out for that.
    """
    checks = [_check(scheme, port) for scheme, port in zip(("http", "https"), ports, strict=False)]
    base = {"name": name, "addr": [str(vip) for vip in vips], "port": list(ports), "real": name, "need": 1}
    return base | {"damping": "off", "checks": checks}


# A server that is killed refuses, and is out at once; one that only hangs for a moment stays in.
_TIMES: dict[str, object] = {"interval": 1, "timeout": 1, "rise": 2, "fall": 3}


def _check(scheme: str, port: int) -> dict[str, object]:
    return {"name": f"{scheme} check", "type": scheme, "port": port, "path": "/alive", **_TIMES}
