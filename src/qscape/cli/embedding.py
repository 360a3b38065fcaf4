"""The command `qscape embedding RUN`."""

import dataclasses
from pathlib import Path

from qscape.cli import options
from qscape.cli.output import refuse_same, save_figure, save_text
from qscape.cli.running import plain_console, print_notes, print_written, show_tracks
from qscape.errors import OutOfRange
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions:
    """Flags of `qscape embedding`."""

    state_from: str | None = setting(
        None, "EPISODE:STEP of the state whose actions are plotted; None: the middle of the first episode."
    )
    states: int = setting(128, "Number of visited states; their state-action pairs are compared.")
    seed: int = setting(1000, "Sub-environment i is seeded with this plus i.")
    png: str | None = setting(
        None, "Plot file; the suffix selects png, svg or pdf. None: RUN/inspect/embedding.png."
    )
    json: str | None = setting(None, "Write the results as JSON, in addition to RUN/inspect/embedding.json.")


def main(argv: list[str]) -> int:
    """Measure and plot the value geometry that SAVGO has learned."""
    path, given = options.parse_after(EmbeddingOptions(), argv, "RUN", "qscape embedding")
    refuse_same(given.json, given.png)
    if given.states < 2:
        raise OutOfRange(
            f"--states is {given.states}; it must be at least 2, for pairs to compare.", field="states"
        )

    from qscape.inspect import store
    from qscape.inspect.embedding import measure_embedding
    from qscape.inspect.landscape import parse_state
    from qscape.report.embeddings import draw_embedding
    from qscape.run.folder import one_run

    folder = one_run(Path(path))
    at = None if given.state_from is None else parse_state(given.state_from)
    with show_tracks():
        findings = measure_embedding(folder, at, given.states, given.seed)
    figure = draw_embedding(findings)
    console = plain_console()
    episode, step = findings["state"]
    weights = findings["candidates"]["weight"]
    k = len(weights)
    console.print(f"{findings['label']} on {findings['env']}, step {findings['step']:,}", soft_wrap=True)
    console.print(
        f"rank correlation of cosine and value difference: {findings['rank_correlation']:.3f} "
        "(-1: the closer two pairs, the closer their values)",
        soft_wrap=True,
    )
    console.print(
        f"episode {episode}, step {step}: the heaviest of {k} candidates has {k * max(weights):.3f} times a "
        f"uniform share; two axes hold {sum(findings['explained']):.0%} of the embeddings' variance",
        soft_wrap=True,
    )
    files, notes = store.keep_findings(folder, "embedding", findings, needed=not given.png)
    written = [*map(str, files)]
    print_notes(console, notes)
    if given.json:
        save_text(store.to_json(findings), given.json)
        written.append(given.json)
    written.append(given.png or str(folder / "inspect" / "embedding.png"))
    save_figure(figure, written[-1])
    print_written(console, *written)
    return 0
