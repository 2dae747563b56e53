"""The one exception type that reports a user's mistake instead of a defect of the program."""


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, the machine.

    The command line prints the message as one line and exits with code 2. The message says what was found,
    what was expected and what to do, for example::

        raise InputError(
            f"{path}: actions are {width} wide, expected 7 (delta pose 6 + gripper); "
            "re-export the demonstration with end-effector actions"
        )
    """
