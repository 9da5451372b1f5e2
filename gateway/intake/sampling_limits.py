"""What of a job's sampling no prompt could make right, as far as the conductor says what its model is."""

from __future__ import annotations

from broker_pipeline.errors import PromptTooLongError
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.scheduling.policies.sampling import check_token_ids
from gateway.settings import Limits


def check_sampling(sampling: SamplingParams, limits: Limits, where: str) -> None:
    """Refuse what no prompt could make right; `where` stands before the names of sampling fields.

    Raises:
        InvalidRequestError: a token is named that the model does not have.
        PromptTooLongError: the output is as long as prompt and output may be together.
    """
    if limits.vocab_size is not None:
        check_token_ids(sampling, limits.vocab_size, where)
    most = limits.max_tokens_in_all
    if most is not None and sampling.max_tokens is not None and sampling.max_tokens >= most:
        raise PromptTooLongError(
            f"{sampling.max_tokens} output tokens leave no room for a prompt: both together have at most {most} here",
            field=f"{where}max_tokens",
        )
