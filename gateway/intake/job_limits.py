"""What of a job could never run, as far as the conductor says what its model is and what its stages hold."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.errors import PromptTooLongError
from broker_pipeline.messages.jobs import TextPart
from broker_pipeline.scheduling.policies.sampling import check_token_ids
from broker_pipeline.scheduling.policies.text_bound import fewest_tokens
from gateway.intake.job_draft import JobDraft
from gateway.settings import Limits

_CHARACTERS_PER_TOKEN = 4
"""Of most texts, about; only tokenising says more, which is not the gateway's."""


def check_sampling(draft: JobDraft, limits: Limits, where: str = "sampling.") -> None:
    """Refuse what no prompt could make right; `where` stands before the names of sampling fields.

    Raises:
        InvalidRequestError: a token is named that the model does not have.
        PromptTooLongError: the output is as long as prompt and output may be together.
    """
    sampling = draft.sampling
    if limits.vocab_size is not None:
        check_token_ids(sampling, limits.vocab_size, where)
    most = limits.max_tokens_in_all
    if most is not None and sampling.max_tokens is not None and sampling.max_tokens >= most:
        raise PromptTooLongError(
            f"{sampling.max_tokens} output tokens leave no room for a prompt: both together have at most {most} here",
            field=draft.sent_as.get("sampling.max_tokens", f"{where}max_tokens"),
        )


def check_prompt(draft: JobDraft, limits: Limits) -> None:
    """Refuse texts that have more tokens than fit with the output, as far as their bytes show that.

    Raises:
        PromptTooLongError: the stages have no room for the prompt, or the model takes no such one.
    """
    most = limits.max_tokens_in_all
    if most is None:
        return
    num_tokens = fewest_tokens(_texts(draft), limits.longest_token_bytes)
    num_output = draft.sampling.max_tokens or 1
    if num_tokens + num_output > most:
        raise PromptTooLongError(
            f"the prompt has at least {num_tokens} tokens, and with {num_output} of output it does not fit: both "
            f"together have at most {most} here",
            field=draft.named("messages"),
        )


def counted_tokens(draft: JobDraft, limits: Limits) -> int:
    """Return for how many tokens a job counts before it has run: its texts, and its outputs at their longest."""
    sampling = draft.sampling
    num_output = limits.default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
    return sum(map(len, _texts(draft))) // _CHARACTERS_PER_TOKEN + num_output * (sampling.n or 1)


def _texts(draft: JobDraft) -> Iterator[str]:
    return (part.text for message in draft.messages for part in message.content if isinstance(part, TextPart))
