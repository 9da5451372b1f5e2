"""`broker-pipeline caption` as a person runs it: real gateway, real queue, a conductor acted by the test."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from tests.kit.running.captioner import Captioner, CaptioningConductor, folder, lines, numbered_picture
from tests.kit.running.gateway_process import gateway_process
from tests.kit.waiting import eventually


async def test_a_folder_is_captioned_and_a_second_run_has_nothing_to_do(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 12)
    run = await captioner.run("pictures", "--prompt", "What?", "--max-tokens", "9", "--temperature", "0")
    assert run.code == 0, run.text
    assert "12 captioned" in run.text
    written = lines(captioner.out)
    assert sorted(line["path"] for line in written) == sorted(
        str(path.relative_to(captioner.directory)) for path in captioner.directory.rglob("*.png")
    )
    for line in written:
        assert (line["status"], line["prompt"]) == ("succeeded", "What?")
        assert line["caption"].startswith("picture of")
        assert line["usage"]["num_output_tokens"] == 4
        assert line["timings"]["queued_s"] >= 0
        assert len(line["sha256"]) == 64
    again = await captioner.run("pictures", "--prompt", "What?", "--max-tokens", "9", "--temperature", "0")
    assert again.code == 0
    assert "12 had captions already" in again.text
    assert lines(captioner.out) == written
    assert set(conductor.seen.values()) == {1}


async def test_another_prompt_or_parameter_is_another_caption(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 3)
    for flags in ([], ["--prompt", "Colours?"], ["--seed", "1"], ["--seed", "2"]):
        assert (await captioner.run("pictures", *flags)).code == 0
    assert len(lines(captioner.out)) == 12
    assert set(conductor.seen.values()) == {4}


async def test_failures_are_told_and_tried_again(captioner: Captioner, conductor: CaptioningConductor) -> None:
    pictures = folder(captioner.directory / "pictures", 6)
    (pictures / "broken.png").write_bytes(numbered_picture(1)[:12])
    (pictures / "text.jpg").write_bytes(b"hello")
    (pictures / "gone.png").symlink_to(pictures / "nowhere")
    (pictures / "notes.txt").touch()
    (pictures / "film.mp4").touch()
    conductor.failing = {numbered_picture(4), numbered_picture(5)}
    run = await captioner.run("pictures")
    assert run.code == 1
    assert "4 captioned" in run.text
    assert "5 failed" in run.text
    assert "2 x compute (out of luck)" in run.text
    assert "1 x not_an_image" in run.text
    assert run.text.count("left out, as not named like pictures: 1 .mp4, 1 .txt") == 2, "at the start and at the end"
    by_path = {Path(line["path"]).name: line for line in lines(captioner.out)}
    assert by_path["004.png"]["error"]["code"] == "compute"
    assert by_path["broken.png"]["error"]["code"] == "truncated_image"
    assert by_path["text.jpg"]["error"]["code"] == "not_an_image"
    assert by_path["gone.png"]["error"]["code"] == "unreadable_file"
    conductor.failing = set()
    (pictures / "broken.png").write_bytes(numbered_picture(100))
    (pictures / "text.jpg").unlink()
    (pictures / "gone.png").unlink()
    again = await captioner.run("pictures")
    assert again.code == 0, again.text
    assert "3 captioned" in again.text
    assert "4 had captions already" in again.text
    assert conductor.seen[numbered_picture(4)] == 2
    assert conductor.seen[numbered_picture(0)] == 1


async def test_a_failure_is_tried_again_even_when_the_log_was_lost(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    """The gateway still knows the failed job under the first key; the command asks for a new one."""
    folder(captioner.directory / "pictures", 2)
    conductor.failing = {numbered_picture(1)}
    assert (await captioner.run("pictures")).code == 1
    captioner.out.unlink()
    conductor.failing = set()
    assert (await captioner.run("pictures")).code == 0
    assert conductor.seen == {numbered_picture(0): 1, numbered_picture(1): 2}


async def test_fail_fast_stops(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 9)
    conductor.failing = {numbered_picture(0)}
    run = await captioner.run("pictures", "--fail-fast", "--concurrency", "1")
    assert run.code == 1
    assert "8 not done" in run.text


async def test_a_killed_run_is_resumed_and_nothing_is_captioned_twice(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 40)
    conductor.most = 10
    process = await captioner.start("pictures", "--concurrency", "8")
    await eventually(lambda: len(lines(captioner.out)) >= 10)
    process.kill()
    await process.communicate()
    conductor.may_go_on.set()
    with captioner.out.open("ab") as file:
        file.write(b'{"path": "pictures/part-0/0')
    run = await captioner.run("pictures", "--concurrency", "8")
    assert run.code == 0, run.text
    assert "torn line" in run.text
    written = lines(captioner.out)
    assert len(written) == 40
    assert len({line["path"] for line in written}) == 40
    assert len(conductor.seen) == 40
    assert set(conductor.seen.values()) == {1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupted_run_says_how_to_go_on(
    captioner: Captioner, conductor: CaptioningConductor, number: signal.Signals
) -> None:
    folder(captioner.directory / "pictures", 30)
    conductor.most = 5
    process = await captioner.start("pictures", "--concurrency", "6")
    await eventually(lambda: len(lines(captioner.out)) >= 5)
    process.send_signal(number)
    run = await captioner.finish(process)
    conductor.may_go_on.set()
    assert run.code == 130
    assert "carried on without this command: " in run.text
    assert "Run the same command again" in run.text
    assert "not done" in run.text
    assert "Traceback" not in run.text
    assert (await captioner.run("pictures")).code == 0
    assert len(lines(captioner.out)) == 30
    assert set(conductor.seen.values()) == {1}


async def test_a_gateway_that_is_killed_and_comes_back_costs_nothing(
    tmp_path: Path, nats_url: str, redis_url: str, namespace: str, transport: Transport, redis: RedisClient
) -> None:
    folder(tmp_path / "pictures", 60)
    flags: tuple[str, ...] = ("--port", "0")
    async with gateway_process(tmp_path, nats_url, redis_url, namespace, *flags) as (first, url):
        captioner = Captioner(tmp_path, url)
        async with CaptioningConductor.working(transport, redis, namespace) as conductor:
            conductor.most = 10
            process = await captioner.start("pictures", "--concurrency", "16")
            await eventually(lambda: len(lines(captioner.out)) >= 10)
            first.kill()
            await first.wait()
            conductor.may_go_on.set()
            flags = ("--port", url.rpartition(":")[2])
            async with gateway_process(tmp_path, nats_url, redis_url, namespace, *flags, name="again"):
                async with asyncio.timeout(60.0):
                    run = await captioner.finish(process)
    assert run.code == 0, run.text
    assert len({line["path"] for line in lines(captioner.out)}) == len(lines(captioner.out)) == 60
    assert len(conductor.seen) == 60
    assert set(conductor.seen.values()) == {1}


async def test_jobs_that_redis_forgot_are_submitted_again(
    captioner: Captioner, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    folder(captioner.directory / "pictures", 8)
    async with CaptioningConductor.open(transport, redis, namespace) as conductor:
        process = await captioner.start("pictures")

        async def has_waiting(count: int) -> bool:
            return (await conductor.acting.queue.depth()).num_waiting >= count  # one may be forgotten twice

        await eventually(lambda: has_waiting(8))
        async for key in redis.scan_iter(f"{namespace}:*"):
            await redis.delete(key)
        await eventually(lambda: has_waiting(16))  # the client finds nothing, and submits anew
        work = asyncio.ensure_future(conductor.work())
        run = await captioner.finish(process)
        work.cancel()
        await asyncio.wait({work})
    assert run.code == 0, run.text
    assert len({line["path"] for line in lines(captioner.out)}) == len(lines(captioner.out)) == 8


async def test_a_full_queue_slows_the_run_and_fails_nothing(
    tmp_path: Path, nats_url: str, redis_url: str, namespace: str, transport: Transport, redis: RedisClient
) -> None:
    folder(tmp_path / "pictures", 12)
    flags = ("--port", "0", "--max-queued-jobs", "3")
    async with (
        gateway_process(tmp_path, nats_url, redis_url, namespace, *flags) as (_, url),
        CaptioningConductor.working(transport, redis, namespace, delay_s=0.05),
    ):
        run = await Captioner(tmp_path, url).run("pictures", "--concurrency", "12")
        async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
            assert 'jobs_submitted_total{outcome="queue_full"}' in await answer.text()
    assert run.code == 0, run.text
    assert len(lines(tmp_path / "captions.jsonl")) == 12


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, "PATHS"),
        (["missing.png"], 2, "missing.png does not exist"),
        (["empty"], 2, "no pictures there"),
        (["a.png", "--prompt", " "], 2, "--prompt is empty"),
        (["a.png", "--prompt", b"caf\xe9?"], 2, "--prompt is not UTF-8"),
        (["a.png", "--stop", b"\xff"], 2, "--stop is not UTF-8"),
        (["a.png", "--temperature", "-1"], 2, "--temperature: expected"),
        (["a.png", "--max-tokens", "0"], 2, "--max-tokens: expected"),
        (["a.png", "--concurrency", "0"], 2, "concurrency"),
        (["a.png", "--gateway", "localhost:8080"], 2, "http://"),
        (
            ["a.png", "--gateway", "http://127.0.0.1:1", "--patience-s", "0.1"],
            69,
            "no gateway answers at http://127.0.0.1:1",
        ),
    ],
)
async def test_wrong_usage(tmp_path: Path, argv: list[str | bytes], code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(numbered_picture(0))
    run = await Captioner(tmp_path, "http://127.0.0.1:1").run(*argv)
    assert (run.code, said in run.text) == (code, True), run.text
    assert "Traceback" not in run.text
    assert not (tmp_path / "captions.jsonl").exists()


async def test_somebody_elses_output_file_is_refused(captioner: Captioner, conductor: CaptioningConductor) -> None:
    (captioner.directory / "a.png").write_bytes(numbered_picture(0))
    captioner.out.write_text("my notes\n")
    run = await captioner.run("a.png")
    assert (run.code, captioner.out.read_text()) == (2, "my notes\n")
