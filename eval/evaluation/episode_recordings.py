"""The folder of a data set of recorded episodes (`record=DIR`): which are recorded, and the set made of them.

DIR/
    .episodes/      evaluation.json, whose episodes these are, and a folder for each
    data/ videos/ meta/     the data set, made of them at the end of an evaluation

Episodes stay in `.episodes`, so that the same evaluation goes on; the set has the same videos by hard links.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError
from data.files import folder_written_whole, sync_folder, writable_folder, write_text_whole
from data.json_record import JsonRecord, read_json_object
from eval.evaluation.folder_lock import only_evaluation
from eval.recording.lerobot_writer import PARTS, write_data_set
from eval.recording.recorded_episode import RecordedEpisode, episode_folder, recorded_actions
from eval.recording.recorder import RecordingPlace
from eval.rollout.episode import EpisodeResult

_EPISODES = ".episodes"
_EVALUATION = "evaluation.json"
_SET, _OLD = "set", "set-before"
MIN_PIXELS, MAX_PIXELS = 16, 1024


class EpisodeRecordings:
    """The recorded episodes of one evaluation.

    Args:
        folder: DIR.
        pixels: Side of the recorded frames.

    Attributes:
        place: Where workers record an episode.
    """

    def __init__(self, folder: Path, pixels: int) -> None:
        self._folder = folder
        self._unwritten: list[str] = []
        self.place = RecordingPlace(folder / _EPISODES, pixels)

    def lacks(self, result: EpisodeResult) -> bool:
        """Whether a finished episode is to be run again for its recording.

        One that has ended otherwise before, when it was run again, is not.

        Raises:
            InputError: Its recording is damaged.
        """
        return not result.repeated_otherwise and not self._has(result)

    def remember_unwritten(self, result: EpisodeResult) -> None:
        """Remember an episode that was run now and whose recording could not be written."""
        if result.recording_error is not None:
            self._unwritten.append(result.recording_error)

    def _has(self, result: EpisodeResult) -> bool:
        return recorded_actions(self._episode(result)) == result.actions_sha256

    def _episode(self, result: EpisodeResult) -> Path:
        return episode_folder(self.place.episodes, result.task, result.initial_state)

    def write_data_set(self, results: Sequence[EpisodeResult]) -> tuple[str, ...]:
        """Make the data set of all recorded episodes among the results, in their order.

        Returns:
            Notes for the results on episodes that are not in it.

        Raises:
            InputError: Recordings could not be written, or the set cannot.
        """
        if self._unwritten:
            raise InputError(
                f"record={self._folder}: {len(self._unwritten)} of {len(results)} episodes could not be "
                f"recorded, the first: {self._unwritten[0]}; their results are stored, no data set is "
                "written: free space there, or make it writable, and the same command records them"
            )
        recorded = [result for result in results if result.error is None and self._has(result)]
        if recorded:
            episodes = [RecordedEpisode.read(self._episode(result)) for result in recorded]
            try:
                self._write(episodes)
            except OSError as error:
                raise InputError(
                    f"record={self._folder}: the data set cannot be written ({error.strerror or error}); "
                    "free space there: the same command writes it from the recorded episodes"
                ) from error
        return self._notes(results, len(recorded))

    def _write(self, episodes: Sequence[RecordedEpisode]) -> None:
        """Put the new set in the place of an older one; between them there is none."""
        new, old = self.place.episodes / _SET, self.place.episodes / _OLD
        shutil.rmtree(new, ignore_errors=True)
        with folder_written_whole(new) as temporary:
            write_data_set(temporary, episodes, self.place.pixels)
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        for part in reversed(PARTS):
            if (self._folder / part).exists():
                (self._folder / part).rename(old / part)
                sync_folder(self._folder)
        for part in PARTS:
            (new / part).rename(self._folder / part)
            sync_folder(self._folder)
        shutil.rmtree(old)
        new.rmdir()

    def _notes(self, results: Sequence[EpisodeResult], num_recorded: int) -> tuple[str, ...]:
        missing = [result for result in results if result.error is not None or not self._has(result)]
        if not missing:
            return ()
        first = missing[0]
        cause = first.error or first.recording_error or first.video_error or "it was not run again"
        return (
            f"record={self._folder}: {num_recorded} of {len(results)} episodes; not recorded, the first: "
            f"task {first.task}, initial state {first.initial_state}: {cause}",
        )


@contextmanager
def recordings_in(folder: Path, pixels: int, identity: str, description: str) -> Generator[EpisodeRecordings]:
    """Keep DIR for the recordings of one evaluation for the length of a `with` block.

    Args:
        folder: DIR; made where it does not exist.
        pixels: Side of the recorded frames.
        identity: Digest of everything that the outcome of an episode depends on.
        description: What the digest stands for, in words.

    Raises:
        InputError: The folder holds something else or the recordings of another evaluation, cannot be
            written, or another evaluation is writing there.
    """
    _check_folder(folder)
    episodes = writable_folder(folder / _EPISODES, "record")
    with only_evaluation(episodes, "record"):
        _check_evaluation(
            folder, episodes / _EVALUATION, f"{identity} {pixels}", f"{description}, {pixels} px"
        )
        yield EpisodeRecordings(folder, pixels)


def check_pixels(pixels: int) -> None:
    """Check the side of recorded frames, which H.264 takes in even numbers only.

    Raises:
        InputError: It is odd, too small or too large.
    """
    if pixels % 2 or not MIN_PIXELS <= pixels <= MAX_PIXELS:
        raise InputError(f"record_pixels={pixels}: expected an even number from {MIN_PIXELS} to {MAX_PIXELS}")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is neither new nor one of recordings, before anything is written there."""
    if ":/" in str(folder):  # a path has one slash less than the URL
        raise InputError(f"record={folder}: expected a folder on this machine; copy the finished set there")
    try:
        others = sorted(entry.name for entry in folder.iterdir() if entry.name != _EPISODES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"record={folder}: cannot be read ({error.strerror}); expected a new folder, choose another"
        ) from error
    if others and not (folder / _EPISODES / _EVALUATION).is_file():
        raise InputError(
            f"record={folder}: holds something else ({others[0]}), expected a new folder, or one of this "
            "evaluation's recordings; choose another"
        )


def _check_evaluation(folder: Path, path: Path, identity: str, description: str) -> None:
    """Refuse the recordings of another evaluation; write whose these are."""
    if path.is_file():
        remedy = f"delete {folder} and record anew, or choose another folder"
        record = JsonRecord(read_json_object(path, remedy), str(path))
        if record.text("identity") != identity:
            raise InputError(
                f"record={folder}: holds recordings of another evaluation ({record.text('description')}), "
                f"this one is {description}; checkpoint, simulator and settings must be the same, choose "
                "another folder"
            )
        return
    try:
        write_text_whole(path, json.dumps({"identity": identity, "description": description}) + "\n")
    except OSError as error:
        raise InputError(
            f"record={folder}: cannot be written ({error.strerror}); free space there"
        ) from error
