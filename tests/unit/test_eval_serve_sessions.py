"""Conversations: schema of observations, history of an episode, chunks of vla-eval."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from PIL import Image

from data.contracts import Embodiment
from eval.policy.interface import Observation
from eval.pool.messages import PolicySpec
from eval.serve.harness_session import HarnessSession
from eval.serve.observation_schema import SCHEMA_HELP, check_observation
from eval.serve.protocol import ClientError, pack, unpack
from eval.serve.sessions import OpenpiSession
from tests.support.served_policy import SPEC, chunk_of, frame, observation, packed, values_of

BOTH = replace(SPEC, cameras=("agent", "wrist"), uses_state=True)
STATE = np.linspace(-1, 1, 8)

Change = Callable[[dict[str, Any]], Any]


class Asked:
    """Decides with `chunk_of` and records what it saw."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.states: list[np.ndarray[Any, Any] | None] = []

    async def __call__(self, shown: Observation) -> np.ndarray[Any, Any]:
        if "refuse" in shown.instruction:
            raise ClientError("the prompt is too long")
        self.seen.append(values_of(shown))
        self.states.append(shown.state)
        return chunk_of(*values_of(shown))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"observation/image": None}, "observation/image: found nothing, expected uint8 [8, 8, 3]"),
        (
            {"observation/image": frame(1).astype(np.float32)},
            "found float32 [8, 8, 3], expected uint8 [8, 8, 3]",
        ),
        ({"observation/image": np.zeros((9, 8, 3), np.uint8)}, "found uint8 [9, 8, 3]"),
        ({"observation/image": np.zeros((3, 8, 8), np.uint8)}, "found uint8 [3, 8, 8]"),
        (
            {"observation/image": np.zeros((3, 8, 8, 3), np.uint8)},
            "found uint8 [3, 8, 8, 3], .* last m <= 2 frames",
        ),
        ({"observation/image": np.zeros((0, 8, 8, 3), np.uint8)}, "found uint8 [0, 8, 8, 3]"),
        ({"observation/image": np.zeros((2, 8, 8, 3), np.int8)}, "found int8 [2, 8, 8, 3]"),
        ({"observation/image": frame(1).tobytes()}, "found bytes"),
        ({"prompt": 5}, "prompt: found int, expected the task in words"),
        ({"prompt": " "}, "prompt: found 1 characters, expected words, at most 1000"),
        ({"prompt": "x" * 1001}, "prompt: found 1001 characters"),
        ({"reset": 1}, "reset: found int, expected true or false"),
    ],
)
def test_an_observation_of_another_form_is_refused_in_words(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ClientError) as raised:
        check_observation({**observation(), **changed}, SPEC)
    for part in words.split(" .* "):
        assert part in str(raised.value)


def test_a_missing_camera_is_named_with_what_was_found() -> None:
    with pytest.raises(
        ClientError, match=r"^observation/wrist_image: missing; found observation/image, prompt$"
    ):
        check_observation(observation(), BOTH)
    with pytest.raises(ClientError, match=r"^an observation is a list, expected a map of keys$"):
        check_observation([1], SPEC)
    with pytest.raises(ClientError, match=r"^prompt: missing; found observation/image"):
        check_observation({"observation/image": frame(1)}, SPEC)


def test_help_names_every_key() -> None:
    for key in (
        "observation/image",
        "observation/wrist_image",
        "observation/state",
        "prompt",
        "reset",
        "images.agentview",
        "images.wrist",
        "states",
    ):
        assert f"    {key} " in SCHEMA_HELP


def ask(session: OpenpiSession, message: dict[str, Any]) -> Any:
    answer = asyncio.run(session.answer(packed(message)))
    return answer if isinstance(answer, str) else msgpack_numpy.unpackb(answer)


def test_single_frames_make_a_history_and_a_new_episode_forgets_it() -> None:
    asked = Asked()
    session = OpenpiSession(SPEC, {"policy": "held"}, asked)
    assert msgpack_numpy.unpackb(session.greeting) == {"policy": "held"}
    for value in (1, 2, 3):
        ask(session, observation(value))
    ask(session, observation(4, reset=True))
    ask(session, observation(5, reset=np.bool_(False)))
    ask(session, observation(6, "another task"))
    assert asked.seen == [[1], [1, 2], [2, 3], [4], [4, 5], [6]]


def test_a_history_that_the_client_gives_is_taken_as_it_is() -> None:
    asked = Asked()
    session = OpenpiSession(SPEC, {}, asked)
    ask(session, observation(1))
    answer = ask(session, {**observation(), "observation/image": np.stack([frame(7), frame(8)])})
    ask(session, {**observation(), "observation/image": frame(9)[None]})
    assert asked.seen == [[1], [7, 8], [9]]
    np.testing.assert_array_equal(answer["actions"], chunk_of(7, 8))
    assert answer["actions"].dtype == np.float64
    assert answer["server_timing"]["infer_ms"] >= 0


def both(value: int, **others: Any) -> dict[str, Any]:
    """An observation of a policy of both cameras and the state."""
    return observation(
        value, **{"observation/wrist_image": frame(100 + value), "observation/state": STATE} | others
    )


def test_frames_of_both_cameras_make_one_history_and_the_state_is_that_of_the_newest() -> None:
    asked = Asked()
    session = OpenpiSession(BOTH, {}, asked)
    ask(session, both(1))
    ask(session, both(2, **{"observation/state": STATE.astype(np.float32)}))
    pairs = {
        "observation/image": np.stack([frame(7), frame(8)]),
        "observation/wrist_image": np.stack([frame(107), frame(108)]),
    }
    ask(session, both(0, **pairs))
    assert asked.seen == [[1, 101], [1, 101, 2, 102], [7, 107, 8, 108]]
    np.testing.assert_array_equal(np.stack(asked.states[::2]), [STATE, STATE])  # type: ignore[arg-type]
    np.testing.assert_array_equal(asked.states[1], STATE.astype(np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"observation/state": None}, "observation/state: found nothing, expected float [8]: position of"),
        ({"observation/state": np.zeros(7)}, "observation/state: found float64 [7], expected float [8]"),
        ({"observation/state": np.zeros(8, np.int64)}, "observation/state: found int64 [8], expected float"),
        ({"observation/state": np.full(8, np.nan)}, "observation/state: a number is not finite"),
        (
            {"observation/wrist_image": np.stack([frame(1), frame(2)])},
            "observation/wrist_image: found uint8 [2, 8, 8, 3], observation/image is uint8 [8, 8, 3]; give",
        ),
        ({"observation/wrist_image": 3}, "observation/wrist_image: found int, expected uint8 [8, 8, 3]"),
    ],
)
def test_a_state_or_second_camera_of_another_form_is_refused_in_words(
    changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(ClientError) as raised:
        check_observation(both(1, **changed), BOTH)
    assert words in str(raised.value)
    without = {key: value for key, value in both(1).items() if key != "observation/state"}
    with pytest.raises(
        ClientError, match=r"^observation/state: missing; found observation/image, observation/w"
    ):
        check_observation(without, BOTH)
    assert check_observation(without, replace(BOTH, uses_state=False)).state is None


def test_the_harness_shows_both_cameras_and_the_state() -> None:
    harness = Harness(BOTH)
    for value in range(4):
        images = {"agentview": frame(value), "wrist": png(frame(100 + value))}
        action = harness.act(None, images=images, states=STATE + value)
    assert harness.asked.seen == [[0, 100], [2, 102, 3, 103]]
    np.testing.assert_array_equal(harness.asked.states[1], STATE + 3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(action, chunk_of(2, 102, 3, 103)[0])
    assert "states: missing; found images, task_description" in harness.act(None, images=images)
    assert "images.wrist: missing; found agentview" in harness.act(frame(1), states=STATE)


def test_a_refused_observation_is_an_answer_and_leaves_nothing_behind() -> None:
    asked = Asked()
    session = OpenpiSession(SPEC, {}, asked)
    ask(session, observation(1))
    assert ask(session, observation(2, "refuse this")) == "the prompt is too long"
    assert "observation/image: found" in ask(session, {**observation(), "observation/image": 3})
    assert "a text frame" in str(asyncio.run(session.answer("hello")))
    assert "no MessagePack" in str(asyncio.run(session.answer(b"\xc1")))
    ask(session, observation(3))
    assert asked.seen == [[1], [1, 3]]


class Harness:
    """Speaks to a session as vla-eval does."""

    def __init__(self, spec: PolicySpec = SPEC) -> None:
        self.asked = Asked()
        self.session = HarnessSession(spec, {"policy": "held"}, self.asked)
        self.number = 0

    def say(self, kind: str, payload: dict[str, Any]) -> Any:
        self.number += 1
        message = {"type": kind, "payload": payload, "seq": self.number, "timestamp": time.time()}
        answer = asyncio.run(self.session.answer(pack(message, binary_keys=False)))
        if answer is None:
            return None
        opened = msgpack.unpackb(answer)  # as vla-eval reads it: text keys
        assert set(opened) == {"type", "payload", "seq", "timestamp"}
        assert opened["seq"] == self.number
        return opened["type"], unpack(answer)["payload"]

    def act(self, image: Any, prompt: Any = "lift", name: str = "agentview", **others: Any) -> Any:
        shown = {"images": {name: image}, "task_description": prompt, **others}
        kind, payload = self.say("observation", shown)
        return payload["actions"] if kind == "action" else payload["error"]


def png(image: np.ndarray[Any, Any], kind: str = "PNG") -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=kind)
    return {"__image__": True, "format": kind.lower(), "data": file.getvalue(), "shape": list(image.shape)}


def test_the_harness_gets_one_action_a_step_with_evaluations_history() -> None:
    harness = Harness()
    assert harness.say("episode_start", {"task": {"name": "lift"}}) is None
    actions = [harness.act(frame(value)) for value in range(1, 6)]
    assert harness.asked.seen == [[1], [3, 4]]
    expected = [*chunk_of(1), *chunk_of(3, 4)[:2]]
    np.testing.assert_array_equal(actions, expected)
    assert harness.say("episode_end", {}) is None
    harness.say("episode_start", {})
    np.testing.assert_array_equal(harness.act(png(frame(9))), chunk_of(9)[0])


def test_hello_tells_the_harness_what_the_policy_needs() -> None:
    kind, payload = Harness(BOTH).say("hello", {"harness_version": "0.8.0", "protocol_version": 1})
    assert kind == "hello"
    assert (payload["protocol_version"], payload["policy"]) == (1, {"policy": "held"})
    wanted = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
    assert payload["observation_params"] == wanted
    assert set(payload["observation_spec"]) == {"agentview", "wrist", "state", "language"}
    assert payload["observation_spec"]["state"]["dims"] == 8
    assert set(payload["action_spec"]) == {"position", "rotation", "gripper"}
    assert Harness().say("hello", {})[1]["observation_params"] == {}


def test_the_numbers_of_another_robot_are_its_own() -> None:
    robot = Embodiment("arm", ("one", "two"), ("q_1", "q_2", "q_3"))
    spec = replace(BOTH, embodiment=robot)
    hello = Harness(spec).say("hello", {})[1]
    assert hello["action_spec"] == {"action": {"name": "action", "dims": 2, "format": "raw"}}
    assert hello["observation_spec"]["state"] == {"name": "state", "dims": 3, "format": "raw"}
    state = np.zeros(3)
    np.testing.assert_array_equal(
        check_observation(both(1, **{"observation/state": state}), spec).state,  # type: ignore[arg-type]
        state,
    )
    with pytest.raises(ClientError, match=r"found float64 \[8\], expected float \[3\]: q_1, q_2, q_3$"):
        check_observation(both(1), spec)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            png(frame(1), "JPEG"),
            "images.agentview: format jpeg, expected png or raw: others change the pixels",
        ),
        (png(np.zeros((9, 8, 3), np.uint8)), "found a PNG of RGB 8x9, expected RGB 8x8"),
        (png(np.zeros((8, 8), np.uint8)), "found a PNG of L 8x8"),
        ({**png(frame(1)), "data": png(frame(1))["data"][:50]}, "no PNG that can be read"),
        ({**png(frame(1)), "data": b"garbage"}, "no PNG that can be read"),
        ({**png(frame(1)), "data": 5}, "its data is int, expected bytes"),
        ({**png(frame(1)), "data": png(frame(1), "JPEG")["data"]}, "no PNG that can be read"),
        ({"__image__": True, "format": "raw", "data": b"12", "dtype": "|u1", "shape": [3]}, "has 2 bytes"),
        (frame(1).astype(np.float64), "found float64 [8, 8, 3]"),
        (None, "found nothing"),
    ],
)
def test_an_image_of_another_form_is_an_error_to_the_harness(image: Any, words: str) -> None:
    harness = Harness()
    assert words in harness.act(image)
    np.testing.assert_array_equal(harness.act(frame(2)), chunk_of(2)[0])


def test_messages_of_another_form_are_errors_to_the_harness() -> None:
    harness = Harness()
    assert "images.agentview: missing; found wrist" in harness.act(frame(1), name="wrist")
    assert "task_description: found int" in harness.act(frame(1), prompt=1)
    assert (
        "images.agentview: missing; found text"
        in harness.say("observation", {"images": "x", "task_description": "lift"})[1]["error"]
    )
    assert harness.say("refuse", {})[1]["error"].startswith("type refuse, expected hello")
    for message in (b"\xc1", "text", pack({"type": "hello"}, False), packed([1])):
        answer = asyncio.run(harness.session.answer(message))
        assert answer is not None
        assert msgpack.unpackb(answer)["type"] == "error"
    raw = {"__image__": True, "format": "raw", "data": frame(3).tobytes(), "dtype": "|u1", "shape": [8, 8, 3]}
    np.testing.assert_array_equal(harness.act(raw), chunk_of(3)[0])
