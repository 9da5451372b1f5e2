"""How long a run will take, and what of the devices, by what `status` shows of the pipeline."""

from __future__ import annotations

from broker_pipeline.captioning.rate_meter import clock_text
from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import COMPUTING_ROLES
from broker_pipeline.process.terminal import counted


def foretold(status: PipelineStatus, num: int) -> str:
    """Return what is known of the time that `num` answers take; of the rate alone where they are 0."""
    rate, since = _rate_of(status.conductor) if status.conductor else (0.0, "")
    if not rate:
        reason = "the pipeline has captioned nothing yet, and was started without a plan"
        return f"how long that takes nobody can say: {reason}"
    if not num:
        return f"{rate:.3g} answers/s, {since}"
    ahead = status.queue.num_waiting + status.queue.num_in_progress
    waits = f", behind {counted(ahead, 'job')} that came before" if ahead else ""
    devices = {each.device_id or each.instance for each in status.workers if each.role in COMPUTING_ROLES}
    hours = f"{len(devices) * num / rate / 3600:.2g} device hours on {counted(len(devices), 'device')}"
    return f"{counted(num, 'answer')} in {clock_text((num + ahead) / rate)} at {rate:.3g}/s, {since}{waits}; {hours}"


def _rate_of(conductor: ConductorStatus) -> tuple[float, str]:
    """Return captions per second, and in which time that was."""
    if conductor.captions_per_s:
        return conductor.captions_per_s, "the rate of the last ten seconds"
    totals = [*(stage.totals for stage in conductor.stages), *(worker.totals for worker in conductor.vision)]
    busy_s = max((each.busy_s for each in totals), default=0.0)
    if (num := conductor.num_finished.get("succeeded", 0)) and busy_s:
        return num / busy_s, "by what the busiest worker has taken for each so far"
    return conductor.predicted_captions_per_s, "as its plan predicts for 64 tokens each; nothing is captioned yet"
