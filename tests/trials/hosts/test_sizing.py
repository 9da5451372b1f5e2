"""What docs/operations.md says about sizing is what the commands say."""

from pathlib import Path

from trials.hosts.hosts_file import read_hosts_file
from trials.hosts.sizing import sizing_table

OPERATIONS = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


def test_the_sizing_table_is_the_commands() -> None:
    assert "\n".join(sizing_table()) in OPERATIONS, (
        "docs/operations.md: paste what `broker-pipeline plan --sizing` prints"
    )


def test_the_host_file_of_the_manual_is_read(tmp_path: Path) -> None:
    example = OPERATIONS.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "hosts.toml").write_text(example)
    file = read_hosts_file(tmp_path / "hosts.toml")
    assert [host.name for host in file.hosts] == ["front", "gpu-a", "gpu-b"]
    assert file.hosts[2].devices[0].decode_layer_ms == 0.6
