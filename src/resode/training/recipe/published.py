"""Published errors: how their sources measured them, where it is not as here, after the last epoch."""

OTHERWISE = ("best epoch", "mean over batches")


def measured(source: str) -> str:
    """What a recipe's `about.published.source` says of the measurement; empty: nothing that differs.

    Example:
        >>> measured("akamaster/pytorch_resnet_cifar10, best epoch on the test images")
        'best epoch'
    """
    return next((words for words in OTHERWISE if words in source), "")
