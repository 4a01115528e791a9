"""Beam search for the best sentences in which given words appear."""

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from .beam_search_cnnrnn import NEVER, BeamSearch
from .word_rules_cnnrnn import WordConstraints


class ConstrainedBeamSearch(BeamSearch):
    """
    Constrained beam search (https://arxiv.org/abs/1612.00576, algorithm 1).

    Each state of the machine that reads the sentences has K beams of its own, so that sentences with a rare word that must
    appear need not beat those without. A sentence may end in the final state alone, and these are kept as in
    [`BeamSearch`].

    Args:
        constraints: the machine; each image has `constraints.num_states` * K rows.
        config, prompts, num_images, criteria: as in [`BeamSearch`].
    """

    def __init__(
        self,
        constraints: WordConstraints,
        config: GenerationConfig,
        prompts: torch.Tensor,
        num_images: int,
        criteria: StoppingCriteriaList | None = None,
    ):
        super().__init__(config, prompts, num_images, criteria)
        self.num_states, self.final = constraints.num_states, constraints.final
        self.words = constraints.words.to(self.device)
        self.num_others = min(self.num_candidates, constraints.vocab_size)
        row = torch.arange(self.num_states * self.num_beams, device=self.device)
        self.is_unfinished = row // self.num_beams != self.final
        # the state that each candidate leads to: of each row, its best other words, then the words of the constraints
        after = torch.cat(
            [constraints.after_others[:, None].expand(-1, self.num_others), constraints.after_words], dim=1
        )
        after = after[:, None].expand(-1, self.num_beams, -1).flatten()
        self.candidates = [(after == state).nonzero().squeeze(1).to(self.device) for state in range(self.num_states)]
        self.scores = torch.full((num_images, self.num_states, self.num_beams), NEVER, device=self.device)
        for image, prompt in enumerate(prompts[:: len(prompts) // num_images].tolist()):
            self.scores[image, constraints.read(prompt), 0] = 0
            self.images[image].running = [None] * (self.num_states * self.num_beams)
        self.scores = self.scores.flatten()

    def advance(
        self, log_probs: torch.Tensor, input_ids: torch.Tensor, penalty: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a word to the beams, as [`BeamSearch`] does; the beams of an image lie state by state."""
        num_images = len(self.images)
        self.length += 1
        values, words, beams = self._find_candidates((log_probs + self.scores[:, None]).unflatten(0, (num_images, -1)))
        going, ending = [], None
        for state, places in enumerate(self.candidates):
            ranks, order = values[:, places].topk(min(self.num_candidates, len(places)))
            state_words, state_beams = (column[:, places].gather(1, order) for column in (words, beams))
            ends = self.find_ends(state_words, state_beams, input_ids)
            if state == self.final:
                # what never began does not end
                best = slice(self.num_beams)
                is_kept = (ends & (ranks > NEVER / 2))[:, best]
                ending = ranks[:, best], state_words[:, best], state_beams[:, best], is_kept
            scores = ranks + NEVER * ends.float()
            scores, order = scores.topk(self.num_beams)
            going.append((state_words.gather(1, order), state_beams.gather(1, order), scores))
        words, beams, scores = (torch.cat(columns, dim=1) for columns in zip(*going, strict=True))
        assert ending is not None
        self.update(ending, words, beams, scores)
        is_full = self.stops_when_full and all(image.is_full for image in self.images)
        has_ended = bool((scores < NEVER / 2).all())
        self.is_done = is_full or has_ended or not any(image.can_improve for image in self.images)
        return (beams + self.offsets).flatten(), words.flatten()

    def _find_candidates(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Find the words that can be among the best of a state.

        Returns:
            Log-probabilities, words and beams of candidates, in the order of `candidates`, each `(B, C)`.
        """
        if self.eos is not None:
            is_end = torch.zeros(totals.shape[-1], dtype=torch.bool, device=self.device).index_fill_(0, self.eos, True)
            totals = totals.masked_fill(self.is_unfinished[:, None] & is_end, 2 * NEVER)
        special = totals[..., self.words]
        values, words = totals.index_fill(2, self.words, 2 * NEVER).topk(self.num_others)
        values = torch.cat([values, special], dim=2)
        words = torch.cat([words, self.words.expand_as(special)], dim=2)
        beams = torch.arange(totals.shape[1], device=self.device)[:, None].expand_as(words)
        return values.flatten(1), words.flatten(1), beams.flatten(1)

    def ended(self):
        found = super().ended()
        missing = sum(ended[0][1] is None for ended in found)
        if missing:
            raise ValueError(
                f"No sentence of at most {self.max_new_tokens} tokens with all of `force_words_ids` was found for {missing} "
                f"of {len(found)} images: allow longer sentences, or words that are forbidden."
            )
        return found


__all__ = ["ConstrainedBeamSearch"]
