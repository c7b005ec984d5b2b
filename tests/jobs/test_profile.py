"""--profile: where the time goes."""

from __future__ import annotations

import json

import pytest

from jobs.runs import polarice
from jobs.sets import ParticleSet
from polarice.runs.profile import by_kind, report

SET = ParticleSet(n=60, box_px=24)


def test_kinds_of_operations():
    spent = by_kind(
        {"aten::bmm": 1.0, "aten::_fft_r2c": 2.0, "aten::index_select": 3.0, "aten::addcmul_": 4.0, "x": 5.0}
    )
    assert spent["matrix products"] == 1
    assert spent["Fourier transforms"] == 2
    assert spent["copies"] == 3
    assert spent["arithmetic"] == 4
    assert spent["other"] == 5


def test_shares_and_rates():
    spent = by_kind({"aten::bmm": 1.0, "aten::copy_": 2.0, "aten::exp_": 1.0})
    content = report({"expectation": 4.0}, spent, gflop=50.0, machine_gflops=100.0, images=10)
    assert content["share_in_matrix_products"] == pytest.approx(0.25)
    assert content["share_memory_bound"] == pytest.approx(0.75)
    assert content["stages_ms_per_image"] == {"expectation": pytest.approx(400)}
    assert content["matrix_products"]["gflop_per_image"] == pytest.approx(5)
    assert content["matrix_products"]["share_of_machine_s_rate"] == pytest.approx(0.5)


def test_profile_beside_the_results(tmp_path, monkeypatch):
    SET.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = polarice("class2d particles.star --k 2 --iter 2 --threads 1 --profile --o out")
    assert ended.code == 0
    content = json.loads((tmp_path / "out/profile.json").read_text())
    assert content["images"] == 60
    assert 0 < content["share_in_matrix_products"] < 1
    assert set(content["stages_ms_per_image"]) >= {"preparation", "expectation"}
    assert "in matrix products" in ended.out
