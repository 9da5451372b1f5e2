"""Data sets through `broker-pipeline caption`: sources in, sinks out, questions, guards, runs that are killed."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import signal
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from broker_pipeline.cli import describe
from broker_pipeline.errors import Failure, PipelineError
from broker_pipeline.exit_codes import USAGE, exit_code_of
from broker_pipeline.messages.jobs import ImagePart, JobSpec, TextPart, VideoFilePart
from broker_pipeline.tools.caption.command import command
from tests.kit.file_server import FileServer
from tests.kit.running.captioner import Captioner, CaptioningConductor, folder, lines, numbered_picture
from tests.kit.viewing.videos import clip
from tests.kit.waiting import eventually


def prompt_of(job: JobSpec) -> str:
    """What was asked, the last text of the conversation."""
    texts = [part.text for part in job.messages[-1].content if isinstance(part, TextPart)]
    return texts[-1]


def table(path: Path, num_rows: int) -> Path:
    """Pictures in row groups of seven, each with its number and a kind."""
    rows = [
        {"image": {"bytes": numbered_picture(n), "path": None}, "number": n, "kind": f"kind {n % 3}"}
        for n in range(num_rows)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


async def test_a_table_becomes_shards_and_tables_with_a_row_for_each_row(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    table(captioner.directory / "in.parquet", 25)
    conductor.says = lambda job: f"It is: {prompt_of(job)}"
    targets = ("out.csv", "out-%05d.tar", "clean.jsonl")
    flags = ["--prompt", "Which {{ kind }}?", "--shard-rows", "10", *(f"--to={target}" for target in targets)]
    run = await captioner.run("in.parquet", *flags)
    assert run.code == 0, run.text
    with (captioner.directory / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == [f"It is: Which kind {n % 3}?" for n in range(25)]
    members: list[str] = []
    for shard in sorted(captioner.directory.glob("out-*.tar")):
        with tarfile.open(shard) as tar:
            members += tar.getnames()
    assert len([name for name in members if name.endswith(".png")]) == 25
    assert len((captioner.directory / "clean.jsonl").read_text().splitlines()) == 25
    assert conductor.seen.total() == 25


async def test_a_url_on_the_command_line_stays_one(captioner: Captioner, conductor: CaptioningConductor) -> None:
    table(captioner.directory / "in.parquet", 3)
    (captioner.directory / "a.png").write_bytes(numbered_picture(9))
    async with FileServer.serving(captioner.directory) as server:
        urls = [f"{server.url}/a.png", f"{server.url}/in.parquet"]
        run = await captioner.run(*urls, (captioner.directory / "a.png").as_uri())
        assert run.code == 0, run.text
        again = await captioner.run("--recipe", "captions.jsonl.recipe.toml")
    names = [urls[0], *(f"{urls[1]}#{n}" for n in range(3)), (captioner.directory / "a.png").as_uri()]
    assert sorted(line["path"] for line in lines(captioner.out)) == sorted(names)
    assert "5 had captions already" in again.text


async def test_a_file_url_is_a_file_that_sidecars_and_metadata_can_be_about(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    pictures = captioner.directory / "my pictures"
    folder(pictures, 3)
    argv = (f"{pictures.as_uri()}/part-0/000.png", f"file://{pictures}/part-1/")
    run = await captioner.run(*argv, "--sidecar", ".txt", "--to", "my pictures/metadata.jsonl")
    assert run.code == 0, run.text
    assert sorted(path.name for path in pictures.rglob("*.txt")) == ["000.txt", "001.txt"]
    named = [row["file_name"] for row in lines(pictures / "metadata.jsonl")]
    assert named == ["part-0/000.png", "part-1/001.png"]


async def test_a_run_that_is_killed_goes_on_with_each_row_once(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    table(captioner.directory / "in.parquet", 60)
    conductor.most = 30
    argv = ("in.parquet", "--to", "out.csv", "--concurrency", "4")
    process = await captioner.start(*argv)
    await eventually(lambda: len(lines(captioner.out)) >= 25)
    process.send_signal(signal.SIGKILL)
    await captioner.finish(process)
    assert not (captioner.directory / "out.csv").exists()
    conductor.may_go_on.set()
    conductor.most = 10**9
    run = await captioner.run(*argv)
    assert run.code == 0, run.text
    with (captioner.directory / "out.csv").open(newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [f"in.parquet#{n}" for n in range(60)]
    assert max(conductor.seen.values()) == 1, "asked again after the kill"
    assert not list(captioner.directory.glob("*.partial*"))


async def test_the_same_content_is_asked_about_once(captioner: Captioner, conductor: CaptioningConductor) -> None:
    pictures = folder(captioner.directory / "pictures", 3)
    for number in range(5):
        (pictures / f"copy-{number}.png").write_bytes(numbered_picture(1))
    run = await captioner.run("pictures")
    assert run.code == 0, run.text
    assert set(conductor.seen.values()) == {1}
    written = lines(captioner.out)
    assert len({line["path"] for line in written}) == 8
    assert sum("same_as" in line for line in written) == 5


async def test_questions_may_use_answers_and_system_prompts(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 2)
    asked: list[tuple[str, str]] = []

    def says(job: JobSpec) -> str:
        system = job.messages[0]
        assert system.role == "system"
        assert isinstance(system.content[0], TextPart)
        asked.append((system.content[0].text, prompt_of(job)))
        return f"<{prompt_of(job)}>"

    conductor.says = says
    flags = ["--prompt", "Long?", "--ask", "short=Shorten {{ caption }}", "--system", "Be kind.", "--to", "out.csv"]
    run = await captioner.run("pictures", *flags)
    assert run.code == 0, run.text
    with (captioner.directory / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["caption"], row["short"]) for row in rows] == [("<Long?>", "<Shorten <Long?>>")] * 2
    assert {system for system, _ in asked} == {"Be kind."}


async def test_a_guard_has_another_try_made_and_the_last_one_marked(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 2)
    seeds: list[int | None] = []

    def says(job: JobSpec) -> str:
        seeds.append(job.sampling.seed)
        return "!!!" if len(seeds) <= 2 else "a fine picture"

    conductor.says = says
    run = await captioner.run("pictures", "--seed", "7", "--concurrency", "1", "--guard-retries", "1")
    assert run.code == 0, run.text
    assert "guard: 1 x punctuation" in run.text
    assert seeds == [7, 8, 7]
    written = lines(captioner.out)
    assert [line["status"] for line in written] == ["guarded", "succeeded", "succeeded"]
    assert [line.get("guard", "").partition(":")[0] for line in written] == ["punctuation", "punctuation", ""]
    assert len({line["request"] for line in written}) == 1


async def test_what_a_guard_drops_is_in_no_sink_and_is_not_asked_again(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 3)
    conductor.says = lambda job: "I'm sorry, but I can't help with that." if job.sampling.seed == 1 else "fine"
    flags = ["--seed", "1", "--guard-retries", "0", "--on-guard", "drop", "--to", "out.csv"]
    run = await captioner.run("pictures", *flags)
    assert (run.code, "3 dropped by guards" in run.text) == (0, True), run.text
    assert (captioner.directory / "out.csv").read_text() == ""
    again = await captioner.run("pictures", *flags)
    assert "3 had captions already" in again.text
    assert conductor.seen.total() == 3


async def test_a_run_without_captions_keeps_what_an_earlier_one_wrote(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 2)
    argv = ("pictures", "--to=out.csv", "--to=set/a-%05d.tar", "--to=hub/", "--report=report.html")
    assert (await captioner.run(*argv)).code == 0
    written = [
        *captioner.directory.glob("set/*"),
        *captioner.directory.glob("hub/**/*.*"),
        captioner.directory / "out.csv",
        captioner.directory / "report.html",
    ]
    before = {path: path.read_bytes() for path in written}
    conductor.says = lambda _: Failure("compute", "no")
    run = await captioner.run(*argv, "--again")
    assert run.code != 0, run.text
    assert "no item has a caption; what an earlier run wrote is kept" in run.text
    assert "Traceback" not in run.text
    assert {path: path.read_bytes() for path in written} == before


async def test_only_what_failed_is_asked_again_where_that_is_wanted(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 4)
    conductor.failing = {numbered_picture(1)}
    assert (await captioner.run("pictures")).code == 1
    folder(captioner.directory / "pictures", 6)
    conductor.failing = set()
    run = await captioner.run("pictures", "--only-failed")
    assert run.code == 0, run.text
    assert "1 captioned" in run.text
    assert "2 passed over" in run.text


async def test_a_recipe_says_what_flags_say_and_the_run_leaves_one(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 3)
    (captioner.directory / "recipe.toml").write_text('prompt = ["Why?"]\nlimit = 2\nto = ["a.csv"]\nmax_tokens = 9\n')
    run = await captioner.run("pictures", "--recipe", "recipe.toml", "--limit", "1")
    assert run.code == 0, run.text
    assert [line["prompt"] for line in lines(captioner.out)] == ["Why?"]
    left = captioner.directory / "captions.jsonl.recipe.toml"
    again = await captioner.run("--recipe", left.name)
    assert again.code == 0, again.text
    assert "1 had captions already" in again.text
    (captioner.directory / "wrong.toml").write_text("promt = 'x'\n")
    wrong = await captioner.run("pictures", "--recipe", "wrong.toml")
    assert wrong.code == 2
    assert "there is no `promt`" in wrong.text


async def test_a_dry_run_asks_nothing(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 5)
    run = await captioner.run("pictures", "--dry-run", "--prompt", "What is {{ name }}?", "--to", "out.csv")
    assert run.code == 0, run.text
    assert "5 items" in run.text
    assert "caption: What is 000?" in run.text
    assert "the pipeline has captioned nothing yet, and was started without a plan" in run.text
    assert conductor.seen.total() == 0
    assert not captioner.out.exists()


async def test_a_dry_run_names_what_cannot_be_asked_and_goes_on(captioner: Captioner) -> None:
    folder(captioner.directory / "pictures", 2)
    rows = [{"path": f"pictures/part-{n}/00{n}.png", **({"tag": "x"} if n else {})} for n in range(2)]
    (captioner.directory / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = await captioner.run(
        "in.jsonl", "--dry-run", "--prompt", "Is it {{ tag }}?", "--gateway", "http://127.0.0.1:1"
    )
    assert run.code == 0, run.text
    assert "in.jsonl#0  caption: (--prompt cannot be asked about in.jsonl#0: there is no `tag`)" in run.text
    assert "in.jsonl#1  caption: Is it x?" in run.text
    assert "how long that takes nobody can say: no gateway answers at http://127.0.0.1:1" in run.text


async def test_rows_say_all_that_makes_them_again(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 1)
    flags = [
        "--to=out.csv",
        "--to=a-%05d.tar",
        "--temperature=0.5",
        "--top-k=7",
        "--seed=3",
        "--stop=x",
        "--max-tokens=9",
    ]
    assert (await captioner.run("pictures", *flags)).code == 0
    with (captioner.directory / "out.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    with tarfile.open(captioner.directory / "a-00000.tar") as tar:
        [name] = [name for name in tar.getnames() if name.endswith(".json")]
        member = json.load(tar.extractfile(name) or pytest.fail(name))
    [logged] = lines(captioner.out)
    assert json.loads(row["parameters"]) == member["parameters"] == logged["parameters"]
    assert {"temperature": 0.5, "top_k": 7, "seed": 3, "stop": ["x"], "max_tokens": 9}.items() <= logged[
        "parameters"
    ].items()
    assert {
        "model",
        "fingerprint",
        "prompt_sha256",
        "finish_reason",
        "num_input_tokens",
        "num_output_tokens",
    } <= row.keys()


async def test_a_sidecar_replaces_no_source_and_no_log(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 1)
    (captioner.directory / "list.png").write_bytes(numbered_picture(3))
    (captioner.directory / "list.txt").write_text("list.png\n")
    run = await captioner.run("list.txt", "--sidecar", "txt", "--sidecar-mode", "overwrite")
    assert run.code == 1, run.text
    assert "list.txt, of list.png: PATHS names this file already" in run.text
    assert (captioner.directory / "list.txt").read_text() == "list.png\n"


async def test_captions_are_made_again_and_compared(captioner: Captioner, conductor: CaptioningConductor) -> None:
    folder(captioner.directory / "pictures", 6)
    conductor.says = lambda job: f"by seed {job.sampling.seed}"
    assert (await captioner.run("pictures", "--seed", "3")).code == 0
    by_name = await captioner.run("verify", "captions.jsonl", "--sample", "6")
    assert by_name.code == 0, by_name.text
    assert "captions made again the same, 0 different" in by_name.text
    assert (await captioner.run("verify", "gone.jsonl")).code == 2
    assert "verify which?" in (await captioner.run("verify", "--sample", "6")).text
    same = await captioner.run("pictures", "--seed", "3", "--verify", "6")
    assert (same.code, "6 captions made again the same, 0 different" in same.text) == (0, True), same.text
    conductor.says = lambda _: "something else"
    other = await captioner.run("pictures", "--seed", "3", "--verify", "6")
    assert other.code == 1
    assert "0 captions made again the same, 6 different" in other.text


@pytest.mark.parametrize("padding", [b"", b"\x00\x10\x00\x08free" + bytes(2**20)], ids=["in bulk", "by a form"])
async def test_how_pictures_and_videos_are_seen_is_said_kept_and_asked_again(
    captioner: Captioner, conductor: CaptioningConductor, padding: bytes
) -> None:
    pictures = folder(captioner.directory / "pictures", 1)
    (pictures / "clip.mp4").write_bytes(clip() + padding)
    conductor.says = _seen_as
    flags = ("--videos", "--max-pixels", "4096", "--min-pixels", "1024", "--max-frames", "6")
    run = await captioner.run("pictures", *flags, "--fps", "1.5")
    assert run.code == 0, run.text
    by_name = {Path(line["path"]).name: line for line in lines(captioner.out)}
    picture, video = by_name["000.png"], by_name["clip.mp4"]
    assert (picture["caption"], video["caption"]) == ("1024 to 4096 pixels", "1.5 a second, 6 frames")
    assert {"min_pixels": 1024, "max_pixels": 4096}.items() <= picture["parameters"].items()
    assert {"fps": 1.5, "max_frames": 6}.items() <= video["parameters"].items()
    assert "fps" not in picture["parameters"]
    assert "max_pixels" not in video["parameters"]
    verified = await captioner.run("verify", "captions.jsonl", "--sample", "2")
    assert "2 captions made again the same, 0 different" in verified.text
    again = await captioner.run("pictures", *flags, "--fps", "3")
    assert "1 captioned" in again.text, "the picture is seen as before"
    assert lines(captioner.out)[-1]["caption"] == "3.0 a second, 6 frames"


def _seen_as(job: JobSpec) -> str:
    part = job.messages[-1].content[0]
    if isinstance(part, VideoFilePart):
        return f"{part.fps} a second, {part.max_frames} frames"
    assert isinstance(part, ImagePart)
    return f"{part.bounds.min_pixels} to {part.bounds.max_pixels} pixels"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--fps", "0"], "--fps: expected `float` > 0.0"),
        (["--max-frames", "769"], "--max-frames: expected `int` <= 768"),
        (["--min-pixels", "9", "--max-pixels", "8"], "9 are more than --max-pixels, 8"),
    ],
)
async def test_what_nobody_can_see_is_refused_by_its_flag(captioner: Captioner, flags: list[str], reason: str) -> None:
    folder(captioner.directory / "pictures", 1)
    run = await captioner.run("pictures", *flags)
    assert (run.code, reason in run.text) == (2, True), run.text


async def test_what_comes_into_a_folder_is_captioned_until_interrupted(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    pictures = folder(captioner.directory / "pictures", 2)
    process = await captioner.start("pictures", "--watch", "--sidecar", ".txt")
    await eventually(lambda: len(list(pictures.rglob("*.txt"))) == 2)
    (pictures / "late.png").write_bytes(numbered_picture(77))
    await eventually((pictures / "late.txt").exists)
    process.send_signal(signal.SIGINT)
    run = await captioner.finish(process)
    assert run.code == 130, run.text
    assert (pictures / "late.txt").read_text().startswith("picture of")


async def test_a_list_from_standard_input_and_one_bad_item(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    folder(captioner.directory / "pictures", 2)
    process = await captioner.start("--files-from", "-", "-0", "--sidecar", ".txt", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"pictures/part-0/000.png\0pictures/gone.png\0pictures/part-1/001.png\0")
    process.stdin.close()
    run = await captioner.finish(process)
    assert run.code == 1, run.text
    assert len(list(captioner.directory.rglob("*.txt"))) == 2
    assert re.search(r"1 x unreadable_file .*: pictures/gone\.png", run.text)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "PATHS"),
        (["pictures", "--to", "out.xyz"], "--to"),
        (["pictures", "--prompt", "{{ nothing"], "--prompt"),
        (["pictures", "--watch", "--to", "a.csv"], "--watch"),
        (["pictures", "--guard", "typo"], "--guard"),
        (["pictures", "--preset", "typo"], "--preset"),
        (["pictures", "--ask", "x"], "--ask"),
        (["pictures", "--json-schema", "gone.json"], "--json-schema"),
        (["pictures", "--ask", "model=What?", "--to", "a.csv"], "--ask"),
        (["pictures", "--text-column", "seed", "--to", "a.csv"], "--text-column"),
        (["pictures", "--to", "captions.jsonl"], "--out names this file already"),
        (["pictures", "--report", "pictures/../captions.jsonl"], "--out names this file already"),
        (["pictures", "--to", "a.csv", "--to", "./a.csv"], "--to names this file already"),
        (["list.csv", "--to", "list.csv"], "PATHS names this file already"),
        (["pictures", "--to", "a-%05d.tar", "--to", "./a-%05d.tar"], "--to names this file already"),
        (["pictures", "--to", "set/a-%05d.tar", "--to", "set/b-%05d.parquet"], "set/a-%05d.tar has this folder"),
        (["pictures", "--to", "set/", "--to", "set/data/b-%05d.tar"], "set/ has this folder"),
        (["set-{00000..00001}.tar", "--to", "set-%05d.tar"], "PATHS names this file already"),
        (["set-*.tar", "--to", "set-all-%05d.tar"], "--to set-all-%05d.tar: the next run would read it"),
        (["{set-*,set-0*}.tar", "--out", "set-0.tar"], "--out set-0.tar: the next run would read it"),
        (["./**/*.csv", "--to", "deep/er/out.csv"], "--to deep/er/out.csv: the next run would read it"),
        (["file://HERE/", "--to", "deep/a-%05d.tar"], "--to deep/a-%05d.tar: the next run would read it"),
        (["file://HERE/", "--to", "set/"], "--to set/: the next run would read it"),
        (["pictures", "--report", "pictures/page.png"], "--report pictures/page.png: it is called like a picture"),
        (["pictures", "--out", "pictures/log.JPG"], "--out pictures/log.JPG: it is called like a picture"),
        (["pictures", "--sidecar", "webp"], "--sidecar a.webp: it is called like a picture"),
        (["pictures", "--to", "metadata.csv/metadata.jsonl"], "it is not below that folder"),
        (["in.parquet", "--to", "metadata.parquet"], "it is no file of this machine"),
        (["in.parquet", "--sidecar", ".txt"], "--sidecar-dir says where"),
        (["pictures", "set-00000.tar", "--sidecar", ".txt"], "--sidecar-dir says where"),
        (["http://127.0.0.1:1/a.parquet", "--to", "metadata.jsonl"], "it is no file of this machine"),
        (["pictures", "--sidecar-dir", "texts"], "--sidecar-dir does nothing without --sidecar"),
        (["pictures", "-0"], "--null does nothing without --files-from"),
        (["pictures", "--trigger", "ohwx"], "--trigger does nothing without --to or --sidecar"),
        (["pictures", "--only-failed", "--again"], "--only-failed leaves out what --again asks about"),
        (["pictures", "--include", "*.gif"], "--include, --exclude, sizes and ages leave out 1 file"),
        (["pictures", "--min-bytes", "1000000"], "--include, --exclude, sizes and ages leave out 1 file"),
        (["pictures/*.gif"], "nothing fits it as a pattern"),
        (["pictures", "in.parquet", "--image-column", "nope"], "in.parquet has no such column, but image, number"),
        (["--files-from", "gone.txt"], "--files-from gone.txt: No such file or directory"),
        (["--files-from", "empty.txt", "--to", "a.csv"], "nothing is in empty.txt"),
        (["--files-from", "-"], "nothing is in -"),
        (["blank.txt", "--dry-run"], "nothing is in blank.txt"),
        (["header.csv", "--to", "out/"], "nothing is in header.csv"),
        (["mixed", "--videos", "--to", "a-%05d.parquet"], "one column holds pictures or videos"),
        (["mixed/*", "--to", "out/"], "mixed/b.mp4: one column holds pictures or videos"),
        (["list.csv", "urls.txt", "--sidecar", ".txt"], "http://127.0.0.1:1/a.jpg is no file"),
        (["--files-from", "urls.txt", "--to", "metadata.jsonl"], "it is no file of this machine"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    """There is no gateway."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "pictures", 1)
    Path("list.csv").write_text("path\npictures/part-0/000.png\n")
    for number in range(2):
        Path(f"set-{number:05}.tar").touch()
    table(tmp_path / "in.parquet", 2)
    lists = {"empty.txt": "", "blank.txt": "\n\n", "header.csv": "path,n\n", "urls.txt": "http://127.0.0.1:1/a.jpg\n"}
    for name, text in lists.items():
        Path(name).write_text(text)
    Path("mixed").mkdir()
    for name in ("mixed/a.png", "mixed/b.mp4"):
        Path(name).write_bytes(b"whatever")
    argv = [flag.replace("HERE", str(tmp_path)) for flag in flags]
    run = CliRunner().invoke(command, ["--gateway", "http://127.0.0.1:1", *argv])
    error = run.exception
    code, said = (exit_code_of(error), describe(error)) if isinstance(error, PipelineError) else (run.exit_code, "")
    assert code == USAGE, run.output
    assert words in run.output + said
    assert not Path("captions.jsonl").exists()


async def test_a_template_that_some_items_cannot_fill_fails_for_those(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    rows = [{"file": f"pictures/part-{n}/00{n}.png", **({"tag": "x"} if n else {})} for n in range(2)]
    folder(captioner.directory / "pictures", 2)
    (captioner.directory / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    conductor.says = lambda job: Failure("compute", "no") if "x" not in prompt_of(job) else "ok"
    run = await captioner.run("in.jsonl", "--image-column", "file", "--prompt", "Is it {{ tag }}?")
    assert run.code == 1, run.text
    assert "1 captioned" in run.text
    assert "there is no `tag`" in run.text


async def test_only_pictures_that_lack_a_sidecar_are_asked_about_and_killed_runs_go_on(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    pictures = sorted(folder(captioner.directory / "photos", 4).rglob("*.png"))
    pictures[0].with_suffix(".txt").write_text("a person's own")
    flags = ("photos", "--sidecar", "txt", "--sidecar-mode", "missing", "--to", "all.csv")
    run = await captioner.run(*flags)
    assert run.code == 0, run.text
    assert (conductor.seen.total(), pictures[0].with_suffix(".txt").read_text()) == (3, "a person's own")
    (captioner.directory / "all.csv").unlink()
    again = await captioner.run(*flags)  # all have their sidecars, and the log has the rows of this run
    assert "3 had captions already" in again.text
    assert "1 passed over" in again.text
    assert conductor.seen.total() == 3
    with (captioner.directory / "all.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


async def test_two_pictures_with_one_sidecar_end_no_run(captioner: Captioner, conductor: CaptioningConductor) -> None:
    photos = captioner.directory / "photos"
    photos.mkdir()
    for number, name in enumerate(("cat.jpg", "cat.png", "dog.png")):
        (photos / name).write_bytes(numbered_picture(number))
    run = await captioner.run("photos", "--sidecar", "txt", "--to", "all.csv")
    assert run.code == 1
    assert "1 row: photos/cat.txt is about photos/cat.jpg, not photos/cat.png" in run.text
    assert {path.name for path in photos.glob("*.txt")} == {"cat.txt", "dog.txt"}
    with (captioner.directory / "all.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
