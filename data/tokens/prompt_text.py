"""The words of the prompts, as the published WorldVLA code has them (arXiv 2506.21539)."""

from __future__ import annotations

ACTION_TEXT = "What action should the robot take to {task}?"
WORLD_TEXT = (
    "Generate the next image based on the provided sequence of historical images and corresponding actions."
)


def action_text(instruction: str) -> str:
    """The words of an action sample's prompt for an instruction."""
    return ACTION_TEXT.format(task=instruction)
