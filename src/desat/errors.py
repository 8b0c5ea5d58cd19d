"""The one exception that a user's mistake raises."""


class DesatError(Exception):
    """A mistake that the user can mend, told in one line.

    The command line prints the message without a traceback and exits with 2.
    """
