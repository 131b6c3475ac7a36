"""What the command line shows in its help, before anything else is loaded."""

__all__ = ["DEFAULT_GENERATOR", "FAILURE_BUDGET", "MAX_SHOTS", "SCHEDULER_NAMES", "VARIANT_NAMES"]

DEFAULT_GENERATOR = "sd21-unclip"
FAILURE_BUDGET = 0.01  # fraction of the images that may fail
MAX_SHOTS = 50  # digits a class that the demo may train on; the rest is for validation and test
SCHEDULER_NAMES = ("ddim", "dpmpp", "euler", "pndm", "unipc")
VARIANT_NAMES = (
    "text-only",
    "real",
    "dropout",
    "cutmix",
    "cutmix-dropout",
    "mixup",
    "mixup-dropout",
    "embed-cutmix",
    "embed-cutmix-dropout",
    "embed-mixup",
    "embed-mixup-dropout",
)
