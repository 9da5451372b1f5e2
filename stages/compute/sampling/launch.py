"""The device work for a batch of logit rows, queued without waiting for any of it.

scan ─────────► tokens int64 [r] ◄── drawn or reported from the logits as they are
                      ▲
                      └───────────── adjusted: copied in fp32, biased, penalised, masked, scanned, drawn, reported
                tokens and reports in one tensor ─► host
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from stages.compute.sampling.adjustments import MASKED, NUM_TABLES, AdjustmentTables, adjust_logit_rows
from stages.compute.sampling.logit_scan import LogitScan, scan_logits
from stages.compute.sampling.logprobs import logprob_report
from stages.compute.sampling.plan import (
    LogitRowRequest,
    SamplingPlan,
    group_sizes,
    places_of,
    plan_logit_rows,
    reported_logit_rows,
    take_rows,
)
from stages.compute.sampling.transfer import Numbers, fetch, send

NOTHING_LEFT = -3
"""Stands for a token where none may come."""


@dataclass(frozen=True, slots=True)
class SamplingResults:
    """What the device gives back: `packed` int64 holds `num_tokens` tokens, then reports in fp64 bits.

    `reported` names the logit rows that have a report (see `logprob_report`), in the order of the reports.
    """

    packed: Tensor
    num_tokens: int
    reported: tuple[int, ...]

    def tokens(self) -> list[int]:
        """Return the token of each logit row, or `NOTHING_LEFT`, or the mark of a row that has none (`LogitScan`)."""
        return [int(token_id) for token_id in self.packed[: self.num_tokens].tolist()]

    def reports(self) -> dict[int, list[float]]:
        """Return the report of each logit row that has one."""
        if not self.reported:
            return {}
        numbers = self.packed[self.num_tokens :].view(torch.float64).view(len(self.reported), -1)
        return dict(zip(self.reported, numbers.tolist(), strict=True))


def launch_logit_rows(logits: Tensor, scan: LogitScan, requests: Sequence[LogitRowRequest]) -> SamplingResults:
    """Queue everything for `logits` `[r, V]`; `requests` are for those that need more than the scan, in order."""
    if not requests:
        return SamplingResults(fetch(scan.greedy), logits.shape[0], ())
    plain = [request for request in requests if request.adjustment is None]
    adjusted = [request for request in requests if request.adjustment is not None]
    plan = plan_logit_rows(plain, logits.shape[1], group_sizes(logits, by_kernels=scan.is_by_kernels))
    adjusted_plan = plan_logit_rows(_renumbered(adjusted), logits.shape[1], group_sizes(logits, by_kernels=False))
    sent = iter(send([*plan.arrays, *_adjustment_arrays(adjusted), *adjusted_plan.arrays], logits.device))
    num_top = max((request.settings.logprobs or 0 for request in requests), default=0)
    chosen, reports = _run(plan, sent, logits, scan, num_top)
    if adjusted:
        chosen, more = _run_adjusted(adjusted_plan, sent, logits, chosen, num_top, by_kernels=scan.is_by_kernels)
        reports += more
    tokens = _marked(chosen, scan)  # last: adjustments make numbers differ that were all the same
    packed = torch.cat((tokens, *(report.view(torch.int64).flatten() for report in reports))) if reports else tokens
    reported = tuple(request.place for request in (*reported_logit_rows(plain), *reported_logit_rows(adjusted)))
    return SamplingResults(fetch(packed), logits.shape[0], reported)


def _run(
    plan: SamplingPlan, sent: Iterator[Tensor], logits: Tensor, scan: LogitScan, num_top: int
) -> tuple[Tensor, list[Tensor]]:
    """Tokens int64 `[n]` of `logits` `[n, V]`, the greedy ones where nothing is drawn; and the reports."""
    chosen = scan.greedy
    for drawing in plan.draws:
        table = next(sent)
        chosen = chosen.index_copy(0, table[0].long(), drawing.draw(logits, table, by_kernels=scan.is_by_kernels))
    reports = []
    for _ in plan.reports:
        places = next(sent).long()
        reports.append(logprob_report(take_rows(logits, places), chosen.index_select(0, places), num_top))
    return chosen, reports


def _run_adjusted(
    plan: SamplingPlan, sent: Iterator[Tensor], logits: Tensor, tokens: Tensor, num_top: int, *, by_kernels: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return all `tokens` `[r]` with those of adjusted logit rows put in, and the reports of these."""
    places = next(sent).long()
    scores = logits.index_select(0, places).float()
    adjust_logit_rows(scores, *islice(sent, NUM_TABLES))
    scan = replace(scan_logits(scores), is_by_kernels=by_kernels)
    chosen, reports = _run(plan, sent, scores, scan, num_top)
    best = scores.gather(1, scan.greedy.clamp(min=0)[:, None])[:, 0]
    chosen = torch.where(best <= MASKED, NOTHING_LEFT, _marked(chosen, scan))
    return tokens.index_copy(0, places, chosen), reports


def _marked(tokens: Tensor, scan: LogitScan) -> Tensor:
    return tokens if tokens is scan.greedy else torch.where(scan.greedy < 0, scan.greedy, tokens)


def _renumbered(requests: Sequence[LogitRowRequest]) -> list[LogitRowRequest]:
    """Return the requests as places in a tensor that holds their logit rows only."""
    return [replace(request, place=place) for place, request in enumerate(requests)]


def _adjustment_arrays(adjusted: Sequence[LogitRowRequest]) -> list[Numbers]:
    adjustments = [request.adjustment for request in adjusted if request.adjustment is not None]
    return [places_of(adjusted), *AdjustmentTables.of(adjustments).arrays] if adjustments else []
