"""Labels of the node itself: of the configuration, and of Kubernetes, which are saved."""

import asyncio
import json
import logging
from pathlib import Path

import pytest

from nfq_enforcer.agent.node_labels import NodeLabels
from nfq_enforcer.core.labels import Labels

GIVEN = {"kubernetes.io/hostname": "n1", "node-role.kubernetes.io/edge": "", "tier": "given"}


def follow(labels: NodeLabels, *changes: dict[str, str]) -> list[Labels]:
    """Return the labels that were enforced after each of these changes."""
    enforced: list[Labels] = []

    async def use(present: Labels) -> None:
        enforced.append(present)

    async def scene() -> None:
        following = asyncio.create_task(labels.run(use))
        for change in changes:
            labels.note(change)
            await asyncio.sleep(0.1)
        following.cancel()

    asyncio.run(scene())
    return enforced


def test_a_label_of_the_configuration_counts_before_one_of_kubernetes(tmp_path: Path) -> None:
    labels = NodeLabels({"tier": "configured"}, tmp_path / "labels.json")
    assert labels.present() == Labels.parse({"tier": "configured"})

    assert follow(labels, GIVEN) == [Labels.parse({**GIVEN, "tier": "configured"})]


def test_only_a_change_is_enforced(tmp_path: Path) -> None:
    labels = NodeLabels({}, tmp_path / "labels.json")
    labels.note(GIVEN)
    assert labels.present() == Labels.parse(GIVEN)

    assert follow(labels, GIVEN, {}, {}) == [Labels()]


def test_the_last_labels_of_kubernetes_are_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state" / "labels.json"
    follow(NodeLabels({"tier": "configured"}, file), GIVEN)

    assert NodeLabels({}, file).present() == Labels.parse(GIVEN)
    assert NodeLabels({}, None).present() == Labels()


@pytest.mark.parametrize("text", ["", "[1]", "7", json.dumps({"a b": "c"}), json.dumps({"a": "-"})])
def test_a_damaged_file_is_told_and_begins_anew(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "labels.json"
    file.write_text(text)
    labels = NodeLabels({"a": "b"}, file)

    assert labels.present() == Labels.parse({"a": "b"})
    assert f"{file} cannot be read, so this node has no labels of Kubernetes yet" in caplog.text
    follow(labels, GIVEN)
    assert json.loads(file.read_text()) == GIVEN


def test_labels_that_cannot_be_saved_are_enforced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    labels = NodeLabels({}, tmp_path / "file" / "labels.json")
    with caplog.at_level(logging.WARNING):
        assert follow(labels, GIVEN) == [Labels.parse(GIVEN)]

    assert "cannot be saved" in caplog.text


def test_without_kubernetes_nothing_is_saved(tmp_path: Path) -> None:
    assert follow(NodeLabels({}, None), GIVEN) == [Labels.parse(GIVEN)]
    assert list(tmp_path.iterdir()) == []
