"""What a user did wrong, in one line.

Everything a user can fix (a missing file, an impossible flag, a damaged record) is raised as `UserError`, which scripts
turn into one line on stderr and a non-zero exit (`caps_tf.scripts`). Any other exception is a defect of ours and keeps
its traceback.
"""


class Preempted(Exception):
    """SIGTERM came, and what there was to save is saved. The message says how to go on."""


class UserError(ValueError):
    """Bad input. The message is one line that names the culprit and says what to do next.

    Parameters stand between backquotes, `image_size`; scripts write the flag of that name in their place.

    Example:
        >>> raise UserError("data/smallNORB holds no .mat files: run ./data/download.sh")
        Traceback (most recent call last):
        ...
        caps_tf.errors.UserError: data/smallNORB holds no .mat files: run ./data/download.sh
    """


class ClusterLostError(UserError):
    """Another worker has gone. The orderly end of a process would wait for it, or complain that it cannot."""
