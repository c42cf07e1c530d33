"""Deque's axe: which rules of accessibility a page breaks."""

from importlib.util import find_spec
from pathlib import Path

import pytest

_RUN = """
const done = arguments[0];
axe.run(document).then(({ violations, incomplete }) => done({
  broken: violations
    .filter((each) => ["serious", "critical"].includes(each.impact))
    .flatMap((each) => each.nodes.map((node) => `${each.id}: ${node.html} (${node.failureSummary})`)),
  // A rule that has raised tells of no node.
  raised: incomplete.filter((each) => !each.nodes.length).map((each) => each.id),
}));
"""


def serious_violations(browser) -> list[str]:
    """Return what is serious or critical in the frame that the browser is in."""
    package = find_spec("axe_core_python")
    if package is None:
        pytest.skip("needs axe-core-python")
    browser.execute_script((Path(package.origin).parent / "axe.min.js").read_text("utf-8"))
    found = browser.execute_async_script(_RUN)
    assert found["raised"] == []
    return found["broken"]
