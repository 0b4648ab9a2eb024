"""Score functions and masks that users write as text, compiled into the kernels."""

from orchard_jit.score.mod import ScoreMod, alibi, softcap

__all__ = ["ScoreMod", "alibi", "softcap"]
