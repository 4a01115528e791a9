"""The checkpoints of a training: which is resumed from, and which are removed."""

import pytest

from modeling_cnnrnn.training.checkpoints import (
    checkpoints,
    find_checkpoint,
    remove_later_checkpoints,
    remove_old_checkpoints,
)


def test_latest_is_the_newest_whole_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trainer_state"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    remove_old_checkpoints(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]
    remove_old_checkpoints(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 2


def test_checkpoints_after_a_step_are_removed(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-4", "checkpoint-3.partial"):
        (tmp_path / name).mkdir()
    remove_later_checkpoints(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_that_is_half_removed_is_not_the_latest(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-5").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_later_checkpoints(tmp_path, 2)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-2"
