"""A caption belongs to the model that was asked: in keys, in lines, and when a run goes on where another stopped."""

from __future__ import annotations

import hashlib
import json

from broker_pipeline.messages.jobs import DEFAULT_PROMPT
from tests.kit.running.captioner import MODEL, Captioner, CaptioningConductor, folder, lines, numbered_picture

OTHER = ("other-8b", "b" * 64)


async def test_another_model_is_asked_anew(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 3)
    assert (await captioner.run("pictures")).code == 0
    await conductor.acting.show_model(*OTHER)
    there = await captioner.run("pictures")
    fresh = await captioner.run("pictures", "--out", "other.jsonl")
    assert (there.code, fresh.code) == (0, 0), there.text + fresh.text
    assert "for other-8b" in there.text
    assert [line["fingerprint"] for line in lines(captioner.out)] == [MODEL[1]] * 3 + [OTHER[1]] * 3
    assert {line["model"] for line in lines(captioner.directory / "other.jsonl")} == {OTHER[0]}
    assert set(conductor.seen.values()) == {2}, "the other model's jobs are found again, the first one's are not"
    await conductor.acting.show_model(*MODEL)
    assert "3 had captions already" in (await captioner.run("pictures")).text


async def test_a_job_that_another_model_finished_is_asked_anew(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    """The model changed between the question which one answers and the answer."""
    folder(captioner.directory / "pictures", 1)
    conductor.acting.model = OTHER
    assert (await captioner.run("pictures")).code == 0
    conductor.acting.model = MODEL
    assert (await captioner.run("pictures")).code == 0
    assert [line["model"] for line in lines(captioner.out)] == [OTHER[0], MODEL[0]]
    assert "1 had captions already" in (await captioner.run("pictures")).text


async def test_again_asks_anew_although_everything_is_known(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 2)
    for _ in range(2):
        assert (await captioner.run("pictures", "--again")).code == 0
    assert len(lines(captioner.out)) == 4
    assert len({line["job_id"] for line in lines(captioner.out)}) == 4
    assert "2 had captions already" in (await captioner.run("pictures")).text


async def test_a_line_names_what_it_came_from(captioner: Captioner, conductor: CaptioningConductor) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    (captioner.directory / "b.png").write_bytes(b"no picture")
    await captioner.run("a.png", "b.png", "--seed", "7", "--temperature", "0.5")
    for line in lines(captioner.out):
        assert (line["model"], line["fingerprint"]) == MODEL
        assert line["prompt_sha256"] == hashlib.sha256(DEFAULT_PROMPT.encode()).hexdigest()
        assert line["parameters"] == {"seed": 7, "temperature": 0.5}
        assert line["seed"] == 7
    succeeded = next(line for line in lines(captioner.out) if line["status"] == "succeeded")
    assert succeeded["usage"]["num_output_tokens"] == 4
    assert succeeded["finish_reason"] == "stop"
    assert succeeded["timings"]["created_at"] <= succeeded["timings"]["finished_at"]
    assert succeeded["timings"]["queued_s"] >= 0


async def test_captions_of_an_earlier_version_count_for_any_model(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    await captioner.run("a.png")
    [line] = lines(captioner.out)
    unnamed = {name: line[name] for name in ("path", "sha256", "status", "caption", "request")}
    captioner.out.write_text(json.dumps(unnamed) + "\n")
    run = await captioner.run("a.png")
    assert "1 had captions already" in run.text
    assert "counted for any: 1 caption in captions.jsonl; --again asks anew" in run.text


async def test_a_run_waits_for_a_conductor_and_submits_nothing_before(captioner: Captioner) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    run = await captioner.run("a.png", "--patience-s", "0")
    assert run.code == 69
    assert "no conductor is active, so that nobody knows which model would answer" in run.text
    assert not captioner.out.exists()
