"""The pictures of a training."""

from PIL import Image

from modeling_cnnrnn.training.curves import save_training_curves


def test_curves_of_self_critical_training_show_its_reward(tmp_path):
    steps = [{"step": 1, "loss": 3.0, "learning_rate": 0.1}]
    panels = {"loss": ["loss"], "CIDEr": ["CIDEr"], "reward": ["reward", "baseline"]}
    save_training_curves(tmp_path / "plain.png", steps, [{"step": 1, "CIDEr": 0.3}], panels)
    steps.append({"step": 2, "loss": -0.1, "learning_rate": 0.1, "reward": 0.5, "baseline": 0.4})
    save_training_curves(tmp_path / "rewards.png", steps, [{"step": 2, "CIDEr": 0.4, "loss": 3.1}], panels)
    plain, rewards = (Image.open(tmp_path / name) for name in ("plain.png", "rewards.png"))
    assert rewards.width > 1.2 * plain.width
