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

from eval.policy.interface import Observation
from eval.serve.harness_session import HarnessSession
from eval.serve.observation_schema import SCHEMA_HELP, check_observation
from eval.serve.protocol import ClientError, pack, unpack
from eval.serve.sessions import OpenpiSession
from tests.support.served_policy import SPEC, chunk_of, frame, observation, packed

Change = Callable[[dict[str, Any]], Any]


class Asked:
    """Decides with `chunk_of` and records what it saw."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def __call__(self, shown: Observation) -> np.ndarray[Any, Any]:
        if "refuse" in shown.instruction:
            raise ClientError("the prompt is too long")
        self.seen.append([int(image[0, 0, 0]) for image in shown.frames])
        return chunk_of(shown.frames)


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
        check_observation(observation(), replace(SPEC, camera="wrist"))
    with pytest.raises(ClientError, match=r"^an observation is a list, expected a map of keys$"):
        check_observation([1], SPEC)
    with pytest.raises(ClientError, match=r"^prompt: missing; found observation/image"):
        check_observation({"observation/image": frame(1)}, SPEC)


def test_help_names_every_key() -> None:
    for key in (
        "observation/image",
        "observation/wrist_image",
        "prompt",
        "reset",
        "images.agentview",
        "images.wrist",
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
    np.testing.assert_array_equal(answer["actions"], chunk_of([frame(7), frame(8)]))
    assert answer["actions"].dtype == np.float64
    assert answer["server_timing"]["infer_ms"] >= 0


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

    def __init__(self, camera: str = "agent") -> None:
        self.asked = Asked()
        self.session = HarnessSession(replace(SPEC, camera=camera), {"policy": "held"}, self.asked)
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

    def act(self, image: Any, prompt: Any = "lift", name: str = "agentview") -> Any:
        kind, payload = self.say("observation", {"images": {name: image}, "task_description": prompt})
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
    expected = [*chunk_of([frame(1)]), *chunk_of([frame(3), frame(4)])[:2]]
    np.testing.assert_array_equal(actions, expected)
    assert harness.say("episode_end", {}) is None
    harness.say("episode_start", {})
    np.testing.assert_array_equal(harness.act(png(frame(9))), chunk_of([frame(9)])[0])


def test_hello_tells_the_harness_what_the_policy_needs() -> None:
    kind, payload = Harness("wrist").say("hello", {"harness_version": "0.8.0", "protocol_version": 1})
    assert kind == "hello"
    assert (payload["protocol_version"], payload["policy"]) == (1, {"policy": "held"})
    assert payload["observation_params"] == {"send_wrist_image": True}
    assert set(payload["observation_spec"]) == {"wrist", "language"}
    assert set(payload["action_spec"]) == {"position", "rotation", "gripper"}
    assert Harness().say("hello", {})[1]["observation_params"] == {}


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
    np.testing.assert_array_equal(harness.act(frame(2)), chunk_of([frame(2)])[0])


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
    np.testing.assert_array_equal(harness.act(raw), chunk_of([frame(3)])[0])
