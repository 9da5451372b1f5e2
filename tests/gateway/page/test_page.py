"""The page as a person uses it: real browser, real gateway, real NATS and Redis; the conductor makes its words up."""

from __future__ import annotations

import aiohttp
from playwright.async_api import Browser, Locator, Page, expect

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobResult, JobSpec, Usage
from broker_pipeline.state.redis_client import RedisClient
from gateway.wiring import Gateway
from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.acting.conductor import ActingConductor, prompt_of
from tests.kit.acting.shown_pipeline import conductor_status, show, show_hour, transport
from tests.kit.viewing.browser import needs_browser, visit
from tests.kit.waiting import eventually

pytestmark = needs_browser

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>bold</b> & \u202e"


def entry(page: Page, text: str) -> Locator:
    return page.locator("#list .entry").filter(has_text=text)


async def test_a_picture_is_asked_about_and_the_answer_comes_word_by_word(
    running: tuple[Gateway, str], browser: Browser, conductor: ActingConductor, jpeg: bytes
) -> None:
    async with visit(browser, running[1]) as visited:
        page = visited.page
        await page.get_by_label("Question").fill("What is this?")
        await page.locator("#ask-picture").set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": jpeg})
        await expect(page.locator("#drop-hint")).to_have_text("a.jpg")
        await page.keyboard.press("Tab")
        await page.get_by_role("button", name="Ask").click()
        delivery = await conductor.take()
        await expect(entry(page, "What is this?").locator(".thumb img")).to_be_visible()
        attempt = await conductor.begin(delivery.spec)
        await conductor.commit(delivery.spec.job_id, attempt, 0, ["A ", "red "])
        await expect(page.locator("#answer")).to_have_text("A red ")
        await expect(entry(page, "A red").locator(".chip")).to_have_text("running")
        await conductor.commit(delivery.spec.job_id, attempt, 2, ["bicycle."])
        await conductor.finish(delivery.spec, attempt, "A red bicycle.")
        await expect(page.locator("#answer")).to_have_text("A red bicycle.")
        await expect(page.locator("#ask-note")).to_contain_text("Answered in")
        await expect(page.locator("#announcer")).to_have_text("Answer: A red bicycle.")
        await expect(entry(page, "A red bicycle.").locator(".chip")).to_have_text("done")
        assert await entry(page, "bicycle").locator("img").evaluate("image => image.naturalWidth") == 64
        assert all(address.startswith((running[1], "data:image/jpeg;base64,", "blob:")) for address in visited.asked)
        assert not visited.complaints


async def test_text_stays_text_whoever_wrote_it(
    running: tuple[Gateway, str], browser: Browser, http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    jobs = [await accepted(http, data=form(jpeg, prompt=f"{HOSTILE} asked", metadata='{"<u>": "<img src=x>"}'))]
    await conductor.run(await conductor.take(), lambda *_: f"{HOSTILE} said")
    jobs.append(await accepted(http, data=form(jpeg, prompt="fails")))
    await conductor.run(await conductor.take(), lambda *_: Failure("compute", f"{HOSTILE} broke", retryable=False))
    async with visit(browser, running[1]) as visited:
        page = visited.page
        for text in ("asked", "said", "broke"):
            await expect(entry(page, f"{HOSTILE} {text}")).to_be_visible()
        await page.get_by_role("button", name=f"Details of job {jobs[0]['job_id']}").click()
        await expect(page.locator("#job-body")).to_contain_text(f"{HOSTILE} said")
        await expect(page.locator("#job-body")).to_contain_text("metadata: <u>")
        assert await page.title() == "broker-pipeline"
        assert await page.locator("main b, dialog b").filter(has_text="bold").count() == 0
        assert not any(address.endswith("/x") for address in visited.asked)
        assert not visited.complaints


async def test_a_script_that_got_in_would_not_run(running: tuple[Gateway, str], browser: Browser) -> None:
    async with visit(browser, running[1]) as visited:
        taken = await visited.page.evaluate(
            """() => {
                const script = document.createElement("script");
                try { script.text = "document.title = 'taken'"; document.body.append(script); } catch {}
                try { document.body.innerHTML += "<p>taken"; } catch {}
                const root = document.body;
                try { root.setAttribute("onclick", "document.title = 'taken'"); root.click(); } catch {}
                return document.title + document.body.textContent.includes("taken");
            }"""
        )
        assert taken == "broker-pipelinefalse"
        assert visited.complaints  # the policy's own


async def test_what_failed_is_sent_again_by_keyboard(
    running: tuple[Gateway, str], browser: Browser, http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    for prompt in ("good", "bad"):
        await accepted(http, data=form(jpeg, prompt=prompt))
        await conductor.run(await conductor.take(), good_or_bad)
    async with visit(browser, running[1]) as visited:
        page = visited.page
        await page.get_by_role("radio", name="All").focus()
        for _ in range(4):
            await page.keyboard.press("ArrowRight")
        await expect(page.locator("#list .entry")).to_have_count(1)
        await expect(entry(page, "the picture is odd (compute)")).to_be_visible()
        again = page.get_by_role("button", name="Send again")
        await again.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#jobs-note")).to_have_text("No such jobs.")
        await conductor.run(await conductor.take(), lambda *_: "A dog after all.")
        await page.locator("#filters").get_by_text("Done").click()
        await expect(entry(page, "A dog after all.")).to_be_visible()
        assert not visited.complaints


def good_or_bad(spec: JobSpec, _: list[bytes]) -> str | Failure:
    return "A cat." if prompt_of(spec) == "good" else Failure("compute", "the picture is odd", retryable=False)


async def test_captions_are_searched_and_older_ones_are_had(
    running: tuple[Gateway, str], browser: Browser, http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=3)
    for number in range(30):
        await accepted(http, json={"prompt": "p"})
        delivery = await conductor.take()
        attempt = await conductor.begin(delivery.spec)
        text = f"A red fox, number {number}." if number % 10 == 0 else f"A cat, number {number}."
        await conductor.finish(delivery.spec, attempt, JobResult(text=text, finish_reason="stop", usage=usage))
        await delivery.ack()
    async with visit(browser, running[1]) as visited:
        page = visited.page
        await expect(page.locator("#list .entry")).to_have_count(24)
        await page.get_by_role("button", name="Older jobs").click()
        await expect(page.locator("#list .entry")).to_have_count(30)
        await page.get_by_role("searchbox").fill("FOX red")
        await expect(page.locator("#list .entry")).to_have_count(3)
        await expect(page.locator("#jobs-note")).to_have_text("3 jobs found. Looked through all of them.")
        await page.get_by_role("searchbox").fill("unicorn")
        await expect(page.locator("#jobs-note")).to_have_text("Nothing found. Looked through all of them.")
        await page.get_by_role("searchbox").fill("")
        await expect(page.locator("#list .entry")).to_have_count(24)
        assert not visited.complaints


async def test_captions_that_come_are_told_to_who_listens(
    running: tuple[Gateway, str], browser: Browser, http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    await accepted(http, json={"prompt": "p"})
    async with visit(browser, running[1]) as visited:
        await expect(visited.page.locator("#list .entry")).to_have_count(1)
        await conductor.run(await conductor.take(), lambda *_: "A lighthouse.")
        await expect(visited.page.locator("#announcer[aria-live=polite]")).to_have_text("New caption: A lighthouse.")


async def test_the_pipeline_is_drawn(
    running: tuple[Gateway, str], browser: Browser, redis: RedisClient, namespace: str
) -> None:
    await show(redis, namespace, conductor_status())
    await show_hour(redis, namespace)
    async with visit(browser, running[1]) as visited:
        page = visited.page
        picture = page.locator("#picture")
        await expect(page.locator("#identity")).to_have_text("Qwen/Qwen3-VL-8B-Instruct")
        await expect(picture.locator(".host-name")).to_have_text(["attic", "attic", "cellar", "garage"])
        await expect(picture.locator(".worker").nth(2)).to_contain_text("blocks 9\N{EN DASH}17")
        await expect(picture.locator(".worker").nth(1).locator(".figure")).to_have_text(["83 %", "18K/60K"])
        await expect(picture.locator(".edge .kinds").nth(1)).to_have_text("tcp …")
        await show(redis, namespace, conductor_status(updated_at=1002.0, transport=transport(2.0)))
        await expect(picture.locator(".edge .kinds")).to_have_text(
            ["shm 41 MB/stcp 3 MB/s", "tcp 12 MB/s", "shm 12 MB/s", "nats 12 MB/s"]
        )
        await expect(page.locator(".tile .big").nth(2)).to_contain_text("41.3 per second")
        chart = page.get_by_role("img", name="Waiting over the last hour: between 400 and 746")
        assert (await chart.locator(".line").get_attribute("d") or "").count("M") == 2  # one gap
        assert not visited.complaints


async def test_nothing_is_wider_than_the_window_and_everything_has_a_name(
    running: tuple[Gateway, str], browser: Browser, http: aiohttp.ClientSession, conductor: ActingConductor,
    redis: RedisClient, namespace: str, jpeg: bytes,
) -> None:  # fmt: skip
    await show(redis, namespace, conductor_status())
    await accepted(http, data=form(jpeg, prompt="w" * 300))
    await conductor.run(await conductor.take(), lambda *_: "W" * 300)
    await accepted(http, data=form(jpeg, prompt="waits"))
    grounds = set()
    for width, is_dark in ((375, False), (375, True), (1600, False), (1600, True)):
        async with visit(browser, running[1], width=width, is_dark=is_dark) as visited:
            page = visited.page
            await expect(page.locator("#list .entry")).to_have_count(2)
            await expect(page.locator("#picture .worker")).to_have_count(5)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            nameless = await page.evaluate(
                """() => [...document.querySelectorAll("button, input, textarea, a, [role=img]")]
                    .filter((node) => !node.closest("[hidden], dialog"))
                    .filter((node) => ![node, ...(node.labels ?? [])].some((each) => each.textContent.trim()))
                    .filter((node) => !node.getAttribute("aria-label"))
                    .map((node) => node.outerHTML)"""
            )
            assert nameless == []
            await page.keyboard.press("Tab")
            await expect(page.get_by_role("link", name="Skip to the jobs")).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.locator("#jobs-title")).to_be_focused()
            await page.keyboard.press("Tab")
            outline = await page.evaluate("getComputedStyle(document.activeElement.closest('label')).outlineStyle")
            assert outline == "solid"
    assert len(grounds) == 2


async def test_a_job_that_waits_is_stopped(
    running: tuple[Gateway, str], browser: Browser, http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    job = await accepted(http, json={"prompt": "p"})
    async with visit(browser, running[1]) as visited:
        await visited.page.get_by_role("button", name=f"Stop: job {job['job_id']}").click()
        await expect(visited.page.locator("#list .chip")).to_have_text("stopped")

        async def is_cancelled() -> bool:
            return (await conductor.store.get(job["job_id"])).status == "cancelled"

        await eventually(is_cancelled)
