"""The networks that somebody describes while a training runs, to start again with one."""

import json
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.error_messages_cnnrnn import shown


MAX_PARAMETERS = 2**28  # of a network that is described: four bytes each, and as much again for what trains them


class Networks:
    """Make untrained models from JSON. A subclass knows of which kind."""

    def describe(self, model: PreTrainedModel) -> dict[str, Any]:
        """Describe the network of a model, as `configure` takes it."""
        raise NotImplementedError

    def configure(self, settings: dict[str, Any]) -> PreTrainedConfig:
        """
        Make the configuration of a network: the class of the configuration checks it.

        Raises:
            ValueError, StrictDataclassError: it is none.
        """
        raise NotImplementedError

    def sketch(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Make a model without weights, on the device "meta"."""
        raise NotImplementedError

    def build(self, network: dict[str, Any] | None) -> PreTrainedModel:
        """
        Make a model ready to be trained.

        Args:
            network: what `check` returned; `None` for the network that the options of the training name.
        """
        raise NotImplementedError

    def check(self, text: Any) -> dict[str, Any]:
        """
        Read a network from JSON and try it without weights. Nothing in it is evaluated or fetched.

        Raises:
            ValueError: it is no JSON object, no network, or too large.
        """
        try:
            settings = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"The network is no JSON: {shown(error)}.") from error
        if not isinstance(settings, dict):
            raise ValueError('The network is no JSON object: write {"name": value, ...}.')
        if "auto_map" in text:
            raise ValueError("The network names code of its own (`auto_map`), which is not run: leave it out.")
        try:
            with torch.device("meta"):
                model = self.sketch(self.configure(settings))
        except StrictDataclassError as error:  # its message has several lines
            raise ValueError(f"The network cannot be used: {shown(error.__cause__ or error)}") from error
        except Exception as error:
            raise ValueError(f"The network cannot be used: {shown(error)}") from error
        number = sum(parameter.numel() for parameter in model.parameters())
        if number > MAX_PARAMETERS:
            raise ValueError(
                f"The network has {number / 1e6:.0f} million parameters, more than {MAX_PARAMETERS / 1e6:.0f} million: make it "
                "smaller."
            )
        return settings
