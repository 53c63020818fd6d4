"""The round loop: same bytes, named rejections, quorum, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphfed.core.errors import FederationError, StorageError
from morphfed.core.files import read_json
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.transports.inprocess import InProcess

Make = Callable[..., Any]


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_same_seed_same_bytes(federation: Make) -> None:
    one, two = federation(None).loop.run(), federation(None).loop.run()
    assert same(one.last, two.last)
    assert not same(one.last, federation(None, seed=1).loop.run().last)


def test_fedprox_with_mu_zero_is_fedavg_to_the_bit(federation: Make) -> None:
    plain = federation(None).loop.run()
    assert same(plain.last, federation(None, algorithm="fedprox", keys={"mu": 0.0}).loop.run().last)
    assert not same(plain.last, federation(None, algorithm="fedprox", keys={"mu": 1.0}).loop.run().last)


def test_one_round_is_the_weighted_numpy_mean_of_the_sites_models(federation: Make) -> None:
    seen: list[tuple[float, dict[str, np.ndarray]]] = []
    made = federation(None, rounds=1)

    class Listening(InProcess):
        def train(self, *args: Any) -> Iterator[Upload | Failure]:
            for upload in super().train(*args):
                assert isinstance(upload, Upload)
                seen.append(
                    (
                        upload.weight,
                        {k: t.numpy().astype(np.float64).copy() for k, t in upload.tensors.items()},
                    )
                )
                yield upload

    made.loop._transport = Listening(made.sites)
    outcome = made.loop.run()
    assert [w for w, _ in seen] == [12, 8, 6]
    for name, tensor in outcome.last.items():
        expected = sum(w * t[name] for w, t in seen) / 26
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_one_site_alone_equals_a_bare_training_loop(federation: Make) -> None:
    """With kept moments, rounds are only bookkeeping: three rounds equal one uninterrupted training."""
    from morphfed.training.optimise import make_optimizer

    outcome = federation(None, sizes={"kampala": 12}, keep_optimizer=True).loop.run()
    bare = federation(None, sizes={"kampala": 12})
    site = bare.sites[0]
    optimizer = make_optimizer(site._trainer.config, bare.model)
    for number in (1, 2, 3):
        site._trainer.fit(bare.model, optimizer, site._train, site="kampala", round_number=number, rounds=3)
    state = bare.model.state_dict()
    assert same(outcome.last, {k: state[k] for k in bare.workspace.travels})


def test_counters_never_travel_and_statistics_are_averaged(federation: Make) -> None:
    made = federation(None)
    assert "1.num_batches_tracked" not in made.workspace.travels
    assert "1.running_mean" in made.workspace.travels
    local = federation(None, norm="local")
    assert local.workspace.local == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert not set(local.workspace.local) & set(local.workspace.travels)


def test_local_norms_differ_between_sites_and_stay(federation: Make) -> None:
    made = federation(None, norm="local")
    outcome = made.loop.run()
    kampala, lagos = outcome.last_sites["kampala"], outcome.last_sites["lagos"]
    assert not torch.equal(kampala["local/1.running_mean"], lagos["local/1.running_mean"])
    assert not any(name.startswith("1.") for name in outcome.last)


def test_bytes_and_steps_are_counted(federation: Make) -> None:
    made = federation(None)
    progress = made.loop.run().progress
    tensors = sum(4 * made.model.state_dict()[k].numel() for k in made.workspace.travels)
    assert progress.bytes_down == 3 * 3 * tensors
    assert progress.bytes_up == 3 * 3 * (tensors + 8 * 4)  # loss, steps, images and the weight
    assert progress.steps == 3 * (3 + 2 + 2)
    assert progress.images_seen == 3 * 26


class Spoiling(InProcess):
    """Replaces what one site sends."""

    def __init__(self, sites: Any, spoil: Callable[[Upload], Upload | Failure], who: str = "lagos") -> None:
        super().__init__(sites)
        self._spoil, self._who = spoil, who

    def train(self, *args: Any) -> Iterator[Upload | Failure]:
        for answer in super().train(*args):
            yield self._spoil(answer) if isinstance(answer, Upload) and answer.site == self._who else answer


def _nan(upload: Upload) -> Upload:
    return replace(upload, tensors={k: t * math.nan for k, t in upload.tensors.items()})


def test_a_bad_upload_is_rejected_by_name_and_the_round_goes_on_without_it(federation: Make) -> None:
    made = federation(None)
    made.loop._transport = Spoiling(made.sites, _nan)
    outcome = made.loop.run()
    assert {(r["round"], r["site"]) for r in outcome.progress.rejected} == {
        (1, "lagos"),
        (2, "lagos"),
        (3, "lagos"),
    }
    assert "holds NaN" in outcome.progress.rejected[0]["reason"]
    without = federation(None, sizes={"kampala": 12, "quito": 6})
    without.sites[1]._train = made.sites[2]._train  # the same images as quito had
    assert same(outcome.last, without.loop.run().last)


def test_a_lost_quorum_stops_and_says_who_and_why(federation: Make) -> None:
    made = federation(None, quorum=1.0)
    made.loop._transport = Spoiling(made.sites, lambda u: Failure(u.site, u.round, "Site 'lagos' ran out of memory."))
    with pytest.raises(FederationError, match="Round 1: 2 of 3 sites gave a valid upload, 3 are needed.*lagos"):
        made.loop.run()


def test_a_loss_that_is_not_finite_names_the_site(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, train={"lr": 1e30, "clip": 0, "optimizer": "sgd"})
    with pytest.raises(FederationError, match="Site 'kampala', round 1: the training loss stopped being finite"):
        made.loop.run()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("norm", ["batch", "local"])
def test_resumed_equals_uninterrupted(federation: Make, tmp_path: Path, keep: bool, norm: str) -> None:
    whole = federation(None, keep_optimizer=keep, norm=norm).loop.run()

    class PowerCutError(Exception):
        pass

    class Cut(InProcess):
        def train(self, number: int, *args: Any) -> Iterator[Upload | Failure]:
            for i, answer in enumerate(super().train(number, *args)):
                if number == 3 and i == 1:
                    raise PowerCutError
                yield answer

    cut = federation(tmp_path, keep_optimizer=keep, norm=norm)
    cut.loop._transport = Cut(cut.sites)
    with pytest.raises(PowerCutError):
        cut.loop.run()
    resumed = federation(tmp_path, keep_optimizer=keep, norm=norm).loop.run()
    assert same(whole.last, resumed.last)
    assert same(whole.best, resumed.best)
    assert [h["round"] for h in resumed.progress.history] == [1, 2, 3]
    assert resumed.progress.bytes_up == whole.progress.bytes_up
    assert {s: same(t, resumed.last_sites[s]) for s, t in whole.last_sites.items()} == dict.fromkeys(
        whole.last_sites, True
    )


def test_damaged_newest_checkpoint_falls_back_and_ends_the_same(federation: Make, tmp_path: Path) -> None:
    whole = federation(None).loop.run()
    federation(tmp_path, rounds=3).loop.run()
    newest = sorted((tmp_path / "checkpoint").glob("coordinator-*.safetensors"))[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 0xFF
    newest.write_bytes(content)
    again = federation(tmp_path).loop.run()
    assert same(whole.last, again.last)
    assert any("damaged" in w for w in again.progress.warnings)
    assert list((tmp_path / "checkpoint").glob("*.damaged"))


def test_a_best_model_that_was_damaged_on_disk_is_not_committed_again_as_sound(
    federation: Make, tmp_path: Path
) -> None:
    made = federation(tmp_path, rounds=2)
    made.loop._round(1)
    best = tmp_path / read_json(tmp_path / "checkpoint" / "round-00001.json")["files"]["best"]["path"]
    content = bytearray(best.read_bytes())
    content[-1] ^= 0xFF
    best.write_bytes(content)
    made.loop._progress.best_score = math.inf  # so that round 2 names the same file again
    made.loop._round(2)
    store = CheckpointStore(tmp_path, "study")
    assert store.load() is None
    assert all("does not match its checksum" in warning for warning in store.warnings)
    assert len(store.warnings) == 2


def test_the_best_model_is_a_copy_that_later_rounds_leave_alone(federation: Make) -> None:
    made = federation(None, rounds=6)
    kept: dict[int, Tensors] = {}
    for number in range(1, 7):
        made.loop._round(number)
        kept[number] = {name: tensor.clone() for name, tensor in made.coordinator.model().items()}
    outcome = made.loop.run()
    assert same(outcome.best, kept[outcome.progress.best_round])
    assert same(outcome.last, kept[6])


@pytest.mark.parametrize("spoil", [b"", b"{", b"{}", b"[]", b"null"])
def test_every_unreadable_commit_is_survived(federation: Make, tmp_path: Path, spoil: bytes) -> None:
    whole = federation(None).loop.run()
    federation(tmp_path).loop.run()
    for commit in (tmp_path / "checkpoint").glob("round-*.json"):
        commit.write_bytes(spoil)
    again = federation(tmp_path).loop.run()
    assert same(whole.last, again.last)
    assert len(again.progress.warnings) == 2


def test_only_two_checkpoints_are_kept_and_the_best_survives(federation: Make, tmp_path: Path) -> None:
    outcome = federation(tmp_path, rounds=6).loop.run()
    assert len(list((tmp_path / "checkpoint").glob("round-*.json"))) == 2
    assert len(list((tmp_path / "checkpoint").glob("coordinator-*.safetensors"))) <= 3  # the best round's beside two
    assert same(outcome.best, federation(tmp_path, rounds=6).loop.run().best)


def test_the_best_rounds_model_is_written_once_and_found_by_every_later_round(federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, rounds=6)
    made.loop._round(1)
    made.loop._progress.best_score = math.inf  # the first stays the best
    for number in (2, 3):
        made.loop._round(number)
    again = federation(tmp_path, rounds=6)
    again.loop._resume()
    again.loop._progress.best_score = math.inf
    for number in (4, 5, 6):
        again.loop._round(number)
    files = sorted(p.name for p in (tmp_path / "checkpoint").glob("*.safetensors"))
    assert files == [f"coordinator-0000{n}.safetensors" for n in (1, 5, 6)]
    newest = read_json(tmp_path / "checkpoint" / "round-00006.json")
    assert newest["files"]["best"]["path"] == "checkpoint/coordinator-00001.safetensors"
    resumed = federation(tmp_path, rounds=6)
    resumed.loop._resume()
    assert same(resumed.loop._best, made.loop._best)


def test_cleared_checkpoints_leave_nothing_of_theirs_and_all_else(federation: Make, tmp_path: Path) -> None:
    federation(tmp_path).loop.run()
    (tmp_path / "best.safetensors").write_bytes(b"a model")
    CheckpointStore(tmp_path, "any").clear()
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert "best.safetensors" in left
    assert not [n for n in left if n.startswith(("round-", "coordinator-", "private"))]
    assert not (tmp_path / "checkpoint").exists()


def test_another_study_is_refused(federation: Make, tmp_path: Path) -> None:
    federation(tmp_path).loop.run()
    with pytest.raises(StorageError, match="another study"):
        CheckpointStore(tmp_path, "another").load()
