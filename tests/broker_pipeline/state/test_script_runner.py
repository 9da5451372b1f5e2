"""The scripts themselves; what each does is tested with the stores that run them."""

import re
from pathlib import Path

import pytest

import broker_pipeline.state
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.script_runner import ScriptRunner

SCRIPTS = Path(broker_pipeline.state.__path__[0]) / "scripts"
FOLDERS = sorted(path.name for path in SCRIPTS.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS)
async def test_every_script_compiles_behind_its_preludes(redis: RedisClient, folder: str) -> None:
    scripts = ScriptRunner(redis, folder, [], {})._scripts
    assert scripts.keys() == {path.stem for path in (SCRIPTS / folder).glob("*.lua")} - {"prelude"}
    for script in scripts.values():
        assert await redis.script_load(script.script)


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.lua")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_script_says_what_it_does_and_names_its_arguments(path: Path) -> None:
    assert path.read_text().startswith("-- ")
    prelude = path.with_stem("prelude")
    comments = "\n".join(
        line
        for file in {path, prelude if prelude.exists() else path}
        for line in file.read_text().splitlines()
        if line.startswith("--")
    )
    used = set(re.findall(r"args\.(\w+)", path.read_text()))
    assert {name for name in used if re.search(rf"\b{name}\b", comments)} == used


async def test_a_number_that_lua_would_round_is_refused(redis: RedisClient, namespace: str) -> None:
    run = ScriptRunner(redis, "lease", [f"{namespace}:lease", f"{namespace}:epoch"], {"instance": "a", "ttl_ms": 1000})
    with pytest.raises(TypeError, match="53"):
        await run("acquire", {"last_epoch": 2**53}, "taking the lease")
    assert await run("acquire", {"last_epoch": 2**53 - 3}, "taking the lease") == [1, 2**53 - 2]
    assert await redis.get(f"{namespace}:epoch") == b"%d" % (2**53 - 2)


async def test_a_folder_or_script_that_is_not_there_fails_at_once(redis: RedisClient) -> None:
    with pytest.raises(FileNotFoundError):
        ScriptRunner(redis, "nothing", [], {})
    with pytest.raises(KeyError):
        await ScriptRunner(redis, "lease", [], {})("nothing", {}, "asking")
