"""The wheel carries the C files, and the package compiles and loads them from where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_runs_from_where_it_is_installed(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True, timeout=300)
    (wheel,) = tmp_path.glob("vc5py-*.whl")
    carried = {name.removeprefix("vc5py/xdp/") for name in zipfile.ZipFile(wheel).namelist()}
    wanted = {str(path.relative_to(ROOT / "xdp")) for path in (ROOT / "xdp").rglob("*.[ch]")}
    assert wanted and wanted <= carried

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=300)
    script = (
        "import vc5py; from vc5py.dataplane import abi, ticks; "
        "print(vc5py.__file__); print(abi.XDP_DIR); print(ticks.measure().hz)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    package, xdp, hz = run.stdout.split()
    assert package == str(site / "vc5py" / "__init__.py")
    assert xdp == str(site / "vc5py" / "xdp")
    assert int(hz) in (100, 250, 300, 1000)
