"""`resode doctor`: versions, hardware and data of this machine."""


def doctor() -> None:
    """Show versions, hardware, where data is found, and what `auto` chooses here.

    Examples:

        resode doctor

    \f
    """
    from resode.analysis import installation
    from resode.cli.console import say

    for label, text in installation.describe().items():
        say(f"{label:<12} {text}")
