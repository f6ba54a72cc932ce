"""Progress: the stages of long work, with their steps, as a reader sees them."""

from pathlib import Path

from nfq_enforcer.policy import loader
from nfq_enforcer.policy.progress import Progress, Work

ENDPOINT = """---
apiVersion: nfq-enforcer.io/v1
kind: Endpoint
metadata: {{name: e{0}}}
spec: {{ips: [10.1.0.{0}]}}
"""


def test_stages_and_steps_are_counted_from_the_begin_of_the_work() -> None:
    progress = Progress()
    progress.begin("reading", 100.0)
    assert (progress.work, str(progress.work)) == (Work("reading", 100.0), "reading")
    progress.advance()
    progress.advance(1999)
    assert str(progress.work) == "reading: 2,000"
    progress.stage("checking", 20_000)
    assert (progress.work, str(progress.work)) == (Work("checking", 100.0, 0, 20_000), "checking: 0 of 20,000")
    progress.end()
    assert progress.work is None


def test_without_work_nothing_is_counted() -> None:
    progress = Progress()
    progress.stage("checking", 5)
    progress.advance()

    assert progress.work is None


def test_a_load_counts_the_characters_of_each_file(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watched(Progress):
        def advance(self, steps: int = 1) -> None:
            super().advance(steps)
            seen.append(str(self.work))

    (tmp_path / "a.yaml").write_text("".join(map(ENDPOINT.format, (1, 2))))
    progress = Watched()
    progress.begin("reading documents", 0.0)
    loader.load([tmp_path], progress=progress)

    file = tmp_path / "a.yaml"
    size = len(ENDPOINT.format(1))
    assert seen == [f"reading {file}, characters: {number * size} of {2 * size}" for number in (1, 2)]
