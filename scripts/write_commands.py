"""Write docs/commands.md from the jobs' parameters."""

from pathlib import Path

from polarice.cli import markdown

if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("docs/commands.md").write_text(markdown())
