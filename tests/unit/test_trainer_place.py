"""Which of the ranks a process is, and on what device."""

from __future__ import annotations

import pytest
import torch

from clickloop.errors import SettingsError
from trainer.model import pick_device
from trainer.ranks import Place, device_of, place


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch):
    assert place() is None
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert place() is None, "others set these, too"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert place() == Place(rank=3, world=4, local_rank=1, local_world=2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place() is None


def test_each_rank_has_a_cuda_device_of_its_own_or_says_why_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto", Place(3, 4, 1, 2)) == "cuda:1"
    assert device_of("cpu", Place(3, 4, 1, 2)) == "cpu"
    with pytest.raises(SettingsError, match="4 ranks on a machine with 2 CUDA devices"):
        device_of("auto", Place(0, 4, 0, 4))
    with pytest.raises(SettingsError, match="can't share --device cuda:0"):
        device_of("cuda:0", Place(0, 2, 0, 2))


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "mps"])
def test_a_device_that_is_not_there_is_a_mistake_and_not_a_traceback(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: ":" in name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=f"device {name}: torch finds no such device"):
        pick_device(name)


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
