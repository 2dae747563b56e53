"""A run folder to report on, with hostile texts in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.telemetry.norms import GROUPS

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def metrics_line(step: int) -> str:
    fall = float(np.exp(-step / 40))
    return json.dumps(
        {
            "step": step,
            "loss": 3 * fall + 1,
            "loss_action": 5 * fall + 0.4,
            "loss_image": 6 * fall + 1.5,
            "loss_structure": fall,
            "accuracy_action": 1 - 0.9 * fall,
            "accuracy_image": 0.7 - 0.6 * fall,
            "gradient_norm": 2 + fall,
            "learning_rate": 1e-3,
            "tokens": step * 16_384,
            "tokens_per_second": 5_200.0,
            "mfu": 0.31,
            "step_time": 1.1,
            "data_wait": 0.01,
            "accuracy_structure": 1 - 0.2 * fall,
            "action_l1": 0.5 * fall,
            "action_head_l1": 0.4 * fall,
            "checkpoint_stall": 0.3 if step % 60 == 1 else 0.0,
            "peer_wait": 0.2,
            "rank_time/p50": 0.9,
            "rank_time/p90": 0.95,
            "rank_time/max": 1.0,
            "rank_time/slowest_host": HOSTILE,
            "memory/device_reserved": 61.5,
            "memory/device_allocated": 55.0,
            "memory/host_resident": 9.0,
        }
        | {
            f"{kind}_norm/{group}": number + 1 + fall
            for kind in ("gradient", "parameter")
            for number, group in enumerate(GROUPS)
        }
    )


def validation_line(step: int) -> str:
    """Both splits at a step; the new tasks have no images."""
    fall = float(np.exp(-step / 50))
    values = {"loss": 3 * fall + 1.2, "loss_action": 5 * fall + 0.6, "loss_image": 6 * fall + 1.6}
    values |= {"loss_structure": fall, "action_l1": 0.6 * fall, "action_head_l1": 0.5 * fall}
    line = {"event": "validation", "step": step, "seconds": 2.0}
    line |= {f"val_ind/{name}": value for name, value in values.items()}
    line |= {f"val_ood/{name}": value + 0.5 for name, value in values.items()}
    return json.dumps(line | {"val_ood/loss_image": None})


def write_run(run: Path) -> Path:
    """A run of 120 steps that was resumed at step 60 and evaluated there and at the end."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"run:\n  name: {HOSTILE}\n")
    lines = [metrics_line(step) for step in range(1, 61)]
    lines.append(
        json.dumps({"event": "resumed", "step": 60, "parallel": {"tensor": 1, "data": 2, "zero_stage": 3}})
    )
    lines += [metrics_line(step) for step in range(61, 121)]
    lines += [validation_line(step) for step in range(20, 121, 20)]
    lines.append(
        json.dumps(
            {
                "event": "straggler",
                "step": 90,
                "rank": 7,
                "host": HOSTILE,
                "seconds_above_median": 0.35,
                "data_wait": None,
            }
        )
    )
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "summary.json").write_text(
        json.dumps(
            {
                "tokens": 120 * 16_384,
                "tokens_per_second": 5_200.0,
                "mfu": 0.31,
                "parallel": {"tensor": 1, "data": 2, "zero_stage": 3},
                "versions": {"torch": "2.13.0", HOSTILE: HOSTILE},
            }
        )
    )
    for step, successes in ((60, 1), (120, 3)):
        (run / f"checkpoints/step_{step:08d}").mkdir(parents=True)
        folder = run / f"eval/step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(
            json.dumps(
                {
                    "step": step,
                    "suite": "robosuite_lift",
                    "episodes": 4,
                    "successes": successes,
                    "errors": 0,
                    "success_rate": successes / 4,
                    "wilson_95": [max(0.0, successes / 4 - 0.3), min(1.0, successes / 4 + 0.25)],
                    "standin_assets": False,
                    "per_episode": [
                        {
                            "task": 0,
                            "initial_state": 3,
                            "success": True,
                            "steps": 47,
                            "error": None,
                            "video": "task_0_episode_0.mp4",
                        }
                    ],
                    "per_task": [
                        {"instruction": HOSTILE, "successes": successes, "episodes": 2, "errors": 0},
                        {"instruction": "lift the cube", "successes": 0, "episodes": 2, "errors": 0},
                    ],
                }
            )
        )
        (folder / "task_0_episode_0.mp4").write_bytes(b"not really a video")
        (folder / "left_by_an_earlier_evaluation.mp4").write_bytes(b"an old video")
        Image.fromarray(np.full((8, 8, 3), step, np.uint8)).save(folder / "imagine.png")
        (folder / "imagine.json").write_text(
            json.dumps(
                {
                    "episode": HOSTILE,
                    "split": "val_ind",
                    "psnr": 24.5,
                    "ssim": 0.91,
                    "frames": [{"psnr": 30.0 - i, "ssim": 0.9, "held_psnr": 20.0} for i in range(5)],
                }
            )
        )
    return run
