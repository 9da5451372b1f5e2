"""Judges captions, and says what is done about those that are refused."""

from __future__ import annotations

from typing import Literal

import msgspec

from broker_pipeline.captioning.guards.rules import RULES, Facts
from broker_pipeline.captioning.guards.schema import check_by
from broker_pipeline.captioning.guards.settings import GuardSettings
from broker_pipeline.messages.sampling import SamplingParams

_DEFAULTS = GuardSettings()
_RANGE = 2**64

Decision = Literal["retry", "mark", "drop", "fail"]


class Guard:
    """The guard of a run."""

    def __init__(self, settings: GuardSettings = _DEFAULTS) -> None:
        """Raise `ConfigurationError` for a JSON schema that is none."""
        if settings.json_schema is not None:
            check_by(settings.json_schema)
        self._settings = settings
        self._rules = {name: rule for name, rule in RULES.items() if settings.is_on(name)}

    def judge(self, text: str, finish_reason: str | None = None) -> str | None:
        """Return the first rule that a caption breaks, as `loop: why`; None where all is well."""
        facts = Facts(self._settings, finish_reason)
        reasons = ((name, rule(text, facts)) for name, rule in self._rules.items())
        return next((f"{name}: {reason}" for name, reason in reasons if reason is not None), None)

    def after(self, num_tries: int) -> Decision:
        """Return what to do about a caption that is refused, when `num_tries` before it were."""
        return "retry" if num_tries < self._settings.num_retries else self._settings.last

    def retry_sampling(self, sampling: SamplingParams, num_tries: int) -> SamplingParams:
        """Return how to sample after `num_tries` refused tries: with seeds that no earlier try had, and every run has.

        Greedy tries would say the same again, so that later ones are not greedy.
        """
        if num_tries == 0:
            return sampling
        seed = (sampling.seed or 0) + num_tries * sampling.num_outputs
        temperature = self._settings.retry_temperature if sampling.temperature == 0 else sampling.temperature
        return msgspec.structs.replace(sampling, seed=_as_signed(seed), temperature=temperature)


def _as_signed(seed: int) -> int:
    return (seed + _RANGE // 2) % _RANGE - _RANGE // 2
