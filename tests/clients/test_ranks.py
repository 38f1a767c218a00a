"""DDP and FSDP2 over two ranks with optimc.torch: weights as with torch's class, and an exact resume (ranks.py)."""

import os
import subprocess
import sys

import pytest
from places import ROOT, TESTS, search_path

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_weights_are_those_of_torchs_class(kind, tmp_path):
    environment = {**os.environ, "PYTHONPATH": search_path(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [subprocess.Popen([sys.executable, TESTS / "clients" / "ranks.py", str(rank), tmp_path / "meeting", kind],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
             for rank in range(2)]
    try:
        said = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors for _, errors in said)
    from_torch, from_resumed = map(float, said[0][0].split())
    assert from_torch < 1e-5 and from_resumed == 0
