"""`worldvla serve` as a process of its own, with openpi-client; its actions are those of `worldvla eval`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from eval.config import EvaluationSettings
from eval.evaluation.evaluate import evaluate
from eval.policy.interface import Observation
from eval.policy.source import PolicyReference
from eval.rollout.episode import run_episode
from eval.simulator.interface import EMBODIMENT, Simulator
from tests.support.exported_policy import (
    CAMERAS,
    CHUNK,
    HISTORY,
    PIXELS,
    ExportedPolicy,
    NoisySimulator,
    open_noisy_suite,
    write_exported_policy,
)
from tests.support.fake_simulator import TASK

HORIZON = 14  # steps: four whole chunks and a part of one
TOKEN = "0123456789abcdef"
SHOWN = {
    "observation/image": np.full((PIXELS, PIXELS, 3), 9, np.uint8),
    "observation/wrist_image": np.full((PIXELS, PIXELS, 3), 90, np.uint8),
    "observation/state": np.zeros(8),
    "prompt": "lift",
}


class Server:
    """`worldvla serve` on a free port."""

    def __init__(self, words: Sequence[str], errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster.cli.main", "serve", *words],
                stdout=subprocess.PIPE,
                stderr=file,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": "1", "WORLDVLA_SERVE_TOKEN": TOKEN},
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        address = re.search(r" at ws://127\.0\.0\.1:(\d+);", self.line)
        assert address, self.line + errors.read_text()
        self.port = int(address.group(1))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()  # what a test that failed has left
        self.process.wait()

    def client(self) -> WebsocketClientPolicy:
        return WebsocketClientPolicy("127.0.0.1", self.port, TOKEN)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ExportedPolicy:
    return write_exported_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def server(policy: ExportedPolicy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server([*policy.words, "port=0"], tmp_path_factory.mktemp("server") / "errors") as started:
        yield started
        client = started.client()
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait() == 0
        with pytest.raises(Exception, match=r"1001 .*the server was stopped"):
            client.infer({})
        assert "Traceback" not in started.errors.read_text()


class ClientPolicy:
    """A policy whose actions another process decides on."""

    chunk, history, cameras, pixels = CHUNK, HISTORY, CAMERAS, PIXELS
    uses_state = True
    embodiment = EMBODIMENT

    def __init__(self, client: WebsocketClientPolicy) -> None:
        self._client = client

    def reset(self, environment: int, simulator: Simulator) -> None:
        self._client.reset()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        (seen,) = observations
        assert seen.state is not None
        shown = {
            "observation/image": seen.frames[:, 0],
            "observation/wrist_image": seen.frames[:, 1],
            "observation/state": seen.state,
            "prompt": seen.instruction,
        }
        return self._client.infer(shown)["actions"][None]


def test_four_clients_at_once_get_the_actions_of_evaluation_to_the_last_bit(
    server: Server, policy: ExportedPolicy, tmp_path: Path
) -> None:
    settings = EvaluationSettings(suite="fake", tasks=[0], episodes=4, horizon=HORIZON, workers=1, videos=0)
    source = PolicyReference(str(policy.weights), settings.batch, policy.files)
    evaluated = evaluate(source, settings, tmp_path, open_suite=open_noisy_suite)
    assert [episode.error for episode in evaluated.episodes] == [None] * 4
    expected = [(episode.steps, episode.actions_sha256) for episode in evaluated.episodes]
    assert len(set(expected)) == 4

    def run(initial_state: int) -> tuple[int, str]:
        simulator = NoisySimulator("fake", 0)
        result = run_episode(simulator, ClientPolicy(server.client()), initial_state, horizon=HORIZON)
        return result.steps, result.actions_sha256

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, range(4))) == expected


class Environment:
    """What the example of the documentation acts in."""

    def __init__(self) -> None:
        self.simulator = NoisySimulator("fake", 0)
        self.simulator.reset(0)
        self.digest = hashlib.sha256()

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        return self.simulator.render(camera, pixels)

    def state(self) -> NDArray[np.float64]:
        return self.simulator.state()

    def step(self, action: NDArray[np.float64]) -> bool:
        self.simulator.step(action)
        self.digest.update(action.astype("<f8").tobytes())
        return self.simulator.success or len(self.simulator.actions) == HORIZON


def test_the_documented_client_gets_the_actions_of_evaluation(server: Server, policy: ExportedPolicy) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    changes = {
        '"127.0.0.1", 8000': f'"127.0.0.1", {server.port}, "{TOKEN}"',
        "pick up the black bowl": TASK.instruction,
    }
    for old, new in changes.items():
        assert example.count(old) == 1
        example = example.replace(old, new)
    environment = Environment()
    exec(example, {"env": environment})
    loaded = PolicyReference(str(policy.weights), exported=policy.files).load()
    expected = run_episode(NoisySimulator("fake", 0), loaded, 0, horizon=HORIZON)
    assert (len(environment.simulator.actions), environment.digest.hexdigest()) == (
        expected.steps,
        expected.actions_sha256,
    )


def test_the_metadata_name_what_the_policy_was_trained_with(server: Server, policy: ExportedPolicy) -> None:
    metadata = server.client().get_server_metadata()
    assert metadata["policy"] == "weights"
    found = [metadata[key] for key in ("chunk", "history", "cameras", "pixels", "uses_state", "decoder")]
    assert found == [CHUNK, HISTORY, list(CAMERAS), PIXELS, True, "discrete"]
    assert set(metadata["settings"]["action_ranges"]) == {"minimum", "maximum"}
    assert len(metadata["settings"]["image_tokenizer_sha256"]) == 64
    assert str(policy.weights.parent) not in str(metadata)


def test_a_prompt_that_is_too_long_for_the_model_costs_only_its_client_an_error(server: Server) -> None:
    client = server.client()
    with pytest.raises(RuntimeError, match=r"max_positions is 512"):
        client.infer({**SHOWN, "prompt": "x y " * 240})
    assert client.infer(SHOWN)["actions"].shape == (CHUNK, 7)


def test_serving_goes_on_without_the_files_until_the_policy_has_to_be_loaded_again(tmp_path: Path) -> None:
    policy = write_exported_policy(tmp_path)
    with Server([*policy.words, "port=0"], tmp_path / "errors") as server:
        client = server.client()
        before = client.infer(SHOWN)["actions"]
        shutil.rmtree(policy.weights)
        np.testing.assert_array_equal(server.client().infer({**SHOWN, "reset": True})["actions"], before)
        (child,) = (
            process
            for process in psutil.Process(server.process.pid).children(recursive=True)
            if "spawn_main" in " ".join(process.cmdline())
        )
        child.kill()
        with pytest.raises(Exception, match=r"1001 .*the policy was lost and cannot be loaded again"):
            client.infer(SHOWN)
        assert server.process.wait() == 2
    is_logged = re.compile(r"[-0-9]+ [:0-9]+ (INFO|WARNING) ")
    lines = [line for line in server.errors.read_text().splitlines() if not is_logged.match(line)]
    assert len(lines) == 1
    assert re.match(rf"error: checkpoint={policy.weights}: no checkpoint of a run there", lines[0])
