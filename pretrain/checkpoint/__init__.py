"""Sharded checkpoints that any layout of ranks can load.

Terms:

- **location**: the folder or object-store prefix with all checkpoints of a run (`location.py`).
- **checkpoint**: the files of one step, `step_00000100/`; valid only while its READY marker is there.
- **attempt**: one try to write a checkpoint. Its id, eight hexadecimal digits, is in the names of its files.
- **commit**: rank 0 writes manifest and READY, which makes an attempt its step's checkpoint (`commit.py`).
- **manifest**: JSON with the checksum of every file, the tensors' shapes, step and metadata (`manifest.py`).
- **state**: what a training has for every parameter: `master` (fp32 weights), the moments `exp_avg` and
  `exp_avg_sq`, and the average of the weights, `ema`, if any. A tensor is named `<state>/<parameter>`.
- **shard**: what one rank writes of a checkpoint.
- **staging**: copying a shard to host memory, beside the training (`staging.py`).
- **fragment**: what one rank holds of one parameter, in all states (`fragments.py`).
- **box**: a rectangular region of a global tensor; a fragment is one or several boxes (`boxes.py`).
- **chunk**: a box that a rank has stored, as the tensor `<state>/<parameter>@<offset>` of its file.
- **chunk table**: which rank stored which box of which parameter, the file `pieces-*` (`chunks.py`).
- **retention**: which committed checkpoints stay (`retention.py`).
"""
