"""All token id ranges of the model (Chameleon's vocabulary, 65,536 ids).

The id of Chameleon's ``<reservedN>`` is ``N + 4``. Text occupies the ids from `TEXT_START` on; the
special tokens of the text tokenizer come first (``<s>`` is 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3).
Padding has id 0, as in WorldVLA; since BOS has the same id, padding is recognised by segment id 0.
"""

VOCABULARY_SIZE = 65_536

BOS = 0
PADDING = 0

IMAGE_CODE_START = 4
IMAGE_CODE_COUNT = 8_192
IMAGE_CODE_END = IMAGE_CODE_START + IMAGE_CODE_COUNT  # exclusive

IMAGE_END = 8_196  # <eoss>
IMAGE_START = 8_197  # <racm3:break>
END_OF_TURN = 8_710  # <reserved08706>
IMAGE_NEW_LINE = 8_803  # <reserved08799>
GRID_SIZE_BASE = 8_804  # + side in pixels / 32; height comes before width
GRID_SIZE_UNIT = 32  # pixels

ACTION_START = 10_004
ACTION_BIN_START = 10_006
ACTION_BIN_COUNT = 256  # ids 10,006 .. 10,261; the last one only by a normalised value of exactly 1
ACTION_BIN_END = ACTION_BIN_START + ACTION_BIN_COUNT  # exclusive
ACTION_END = 15_004
ACTION_DIM = 7  # of WorldVLA and LIBERO; other embodiments have others
ACTION_BLOCK_LENGTH = ACTION_DIM + 2

STATE_START = 15_504
STATE_BIN_START = 15_506  # ids 15,506 .. 15,761, as many bins as of an action
STATE_END = 16_004
STATE_DIM = 8  # of RynnVLA-002 and LIBERO; other embodiments have others
STATE_BLOCK_LENGTH = STATE_DIM + 2

TEXT_START = 16_384

IGNORED_LABEL = -100


def block_length(numbers: int) -> int:
    """Tokens of the block of an action or a state of so many numbers: its start, their bins, its end."""
    return numbers + 2


def grid_size_token(pixels: int) -> int:
    """Token id for an image side of `pixels`.

    Raises:
        ValueError: The side is not a positive multiple of 32.
    """
    if pixels <= 0 or pixels % GRID_SIZE_UNIT:
        raise ValueError(f"image side {pixels} is not a positive multiple of {GRID_SIZE_UNIT} pixels")
    return GRID_SIZE_BASE + pixels // GRID_SIZE_UNIT
