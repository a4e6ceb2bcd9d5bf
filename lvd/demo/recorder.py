"""Record clips of scenes with ViZDoom, from a map of the six rooms that is made here (extra `demo`)."""

import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lvd.demo.scenes import FRAMES, MOTIONS, PLACES, SIZE, SUBJECTS, Scene
from lvd.errors import LvdError

TICS = 3  # game tics between two frames, 35 a second
ROOM = 192  # map units from a room's centre to its walls
APART = 2048  # map units between the centres of two rooms
FAR = 130.0  # map units from the camera to the subject, before its motion


def _actor(name: str) -> str:
    """The name of a subject's actor in the game."""
    return "Scene" + name.title().replace(" ", "")


def _actors() -> bytes:
    """The subjects in DECORATE: scenery that stands where it is put, turns to no one and harms no one."""
    return "\n".join(
        f"actor {_actor(subject.name)} {{ Radius 8 Height 16 Scale {subject.scale}\n"
        f"States {{ Spawn:\n{subject.sprite} {subject.animation} {subject.tics}"
        f"{' Bright' if subject.bright else ''}\nloop\n}} }}"
        for subject in SUBJECTS.values()
        if subject.sprite
    ).encode()


def _map() -> bytes:
    """A square room for each place, in UDMF text."""
    skills = "".join(f"skill{number}=true;" for number in range(1, 6))
    parts = ['namespace="zdoom";', f"thing{{x=0.0;y=0.0;type=1;angle=90;single=true;{skills}}}"]
    for number, (wall, floor, ceiling, light) in enumerate(PLACES.values()):
        middle = number * APART
        for x, y in ((-ROOM, -ROOM), (-ROOM, ROOM), (ROOM, ROOM), (ROOM, -ROOM)):
            parts.append(f"vertex{{x={middle + x}.0;y={y}.0;}}")
        parts.append(
            f'sector{{heightfloor=0;heightceiling=128;texturefloor="{floor}";'
            f'textureceiling="{ceiling}";lightlevel={light};}}'
        )
        for side in range(4):
            start, end = 4 * number + side, 4 * number + (side + 1) % 4
            parts.append(f'sidedef{{sector={number};texturemiddle="{wall}";}}')
            parts.append(f"linedef{{v1={start};v2={end};sidefront={start};blocking=true;}}")
    return "\n".join(parts).encode()


def _write_wad(path: Path) -> None:
    """The map and the actors as a Doom patch file."""
    lumps = [(b"DECORATE", _actors()), (b"MAP01", b""), (b"TEXTMAP", _map()), (b"ENDMAP", b"")]
    data = b"".join(content for _, content in lumps)
    directory, offset = b"", 12
    for name, content in lumps:
        directory += struct.pack("<ii8s", offset, len(content), name)
        offset += len(content)
    path.write_bytes(b"PWAD" + struct.pack("<ii", len(lumps), offset) + data + directory)


class Recorder:
    """Records clips of scenes; made by `recorder()`."""

    def __init__(self, game: Any) -> None:
        self._game = game

    def record(self, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a clip: frames `[FRAMES, SIZE, SIZE, 3]` uint8, and the share of each that the subject fills.

        Where the camera stands and looks is drawn from `rng`, and nothing else is left to chance.
        """
        subject = SUBJECTS[scene.subject]
        turn, forward = MOTIONS[scene.motion]
        middle = (FRAMES - 1) / 2
        x = list(PLACES).index(scene.place) * APART + rng.uniform(-60, 60)
        y = rng.uniform(-20, 20)
        away = FAR * rng.uniform(0.9, 1.1) + forward * middle
        yaw = rng.uniform(-5, 5) - turn * middle

        self._game.new_episode()
        self._wait(8)  # input is ignored in the first tics
        self._warp(x, y - 40.0)
        if subject.sprite:
            self._game.send_game_command(f"summon {_actor(subject.name)} 180")
        self._wait(int(rng.integers(2, 9)))
        self._act(yaw, subject.down)

        frames = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8)
        shares = np.zeros(FRAMES, np.float32)
        for i in range(FRAMES):
            self._warp(x, y - away + forward * i)  # the view follows a tic later
            self._act(turn if i else 0.0, 0.0)
            self._wait(TICS - 2)
            state = self._game.get_state()
            frames[i] = _half(state.screen_buffer)
            values = [label.value for label in state.labels if label.object_name == _actor(subject.name)]
            shares[i] = np.isin(_crop(state.labels_buffer), values).mean()
        return frames, shares

    def _warp(self, x: float, y: float) -> None:
        self._game.send_game_command(f"warp {x:.0f} {y:.0f}")
        self._wait(1)

    def _act(self, right: float, down: float) -> None:
        self._game.make_action([right, down], 1)

    def _wait(self, tics: int) -> None:
        if tics:
            self._game.make_action([0.0, 0.0], tics)


def _crop(screen: np.ndarray) -> np.ndarray:
    """The middle `2 SIZE` squared of a 200x150 screen."""
    height, width = screen.shape[:2]
    top, left = (height - 2 * SIZE) // 2, (width - 2 * SIZE) // 2
    cropped: np.ndarray = screen[top : top + 2 * SIZE, left : left + 2 * SIZE]
    return cropped


def _half(screen: np.ndarray) -> np.ndarray:
    """The cropped screen, two by two pixels averaged: `[SIZE, SIZE, 3]` uint8."""
    cropped = _crop(screen).reshape(SIZE, 2, SIZE, 2, 3).astype(np.uint16)
    halved: np.ndarray = ((cropped.sum(axis=(1, 3)) + 2) // 4).astype(np.uint8)
    return halved


@contextmanager
def recorder() -> Iterator[Recorder]:
    """A running game without window, sound or input. Raises `LvdError` without ViZDoom."""
    try:
        import vizdoom
    except ImportError as error:
        raise LvdError("recording scenes needs ViZDoom: pip install 'lvd[demo]'") from error
    with tempfile.TemporaryDirectory() as folder:
        wad = Path(folder) / "scenes.wad"
        _write_wad(wad)
        game = vizdoom.DoomGame()
        game.set_doom_scenario_path(str(wad))
        game.set_doom_config_path(str(Path(folder) / "vizdoom.ini"))
        game.set_doom_map("MAP01")
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_200X150)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_labels_buffer_enabled(True)
        game.set_window_visible(False)
        for hide in (
            game.set_render_hud,
            game.set_render_weapon,
            game.set_render_crosshair,
            game.set_render_messages,
        ):
            hide(False)
        game.add_game_args("+sv_cheats 1")
        game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA, vizdoom.Button.LOOK_UP_DOWN_DELTA])
        game.set_episode_timeout(0)
        game.set_seed(0)
        game.init()
        try:
            yield Recorder(game)
        finally:
            game.close()


def record_clips(scenes: Sequence[Scene], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip of each scene, the i-th from `seed` and i alone.

    Returns frames `[N, FRAMES, SIZE, SIZE, 3]` uint8 and the subject's share of each frame `[N, FRAMES]`.
    """
    frames = np.empty((len(scenes), FRAMES, SIZE, SIZE, 3), np.uint8)
    shares = np.empty((len(scenes), FRAMES), np.float32)
    with recorder() as camera:
        for i, scene in enumerate(scenes):
            frames[i], shares[i] = camera.record(scene, np.random.default_rng((seed, i)))
    return frames, shares
