"""`--schedule=auto`: head, schedule and resolution by the number of pictures, as BiT-HyperRule says.

Kolesnikov et al., 2020, "Big Transfer (BiT)", arXiv 1912.11370, section 3.3, with the numbers of their
code (google-research/big_transfer, bit_hyperrule.py): a linear head that starts at zero, everything
trained by SGD with momentum 0.9 from a rate of 0.003 at batches of 512, divided by 10 three times after a
linear warm-up. How long, how large and whether pictures are mixed depends on the data.
"""

from dataclasses import dataclass

from trainer.cli.config import Config
from trainer.cli.options import ZERO
from trainer.cli.phase_specs import phase_text

BATCH_SIZE = 512
LEARNING_RATE = 0.003
RULE_HEAD = "linear"
SMALL_AREA_PX = 96 * 96
# (size of the picture before a random crop, size the network sees), in px.
SMALL_PX, LARGE_PX = (160, 128), (512, 480)


@dataclass(frozen=True)
class Rule:
    """What the rule says of a data set; steps are those of batches of 512."""

    warmup_steps: int
    decay_steps: tuple[int, int, int]
    num_steps: int
    image_size_px: int
    min_crop_area: float
    mixup: float


def bit_rule(*, num_examples: int, area_px: float) -> Rule:
    """Returns the rule for a training split of `num_examples` pictures of a typical area in px."""
    whole, cropped = SMALL_PX if area_px < SMALL_AREA_PX else LARGE_PX
    crop_area = (cropped / whole) ** 2
    if num_examples < 20_000:
        return Rule(100, (200, 300, 400), 500, cropped, crop_area, mixup=0.0)
    if num_examples < 500_000:
        return Rule(500, (3_000, 6_000, 9_000), 10_000, cropped, crop_area, mixup=0.1)
    return Rule(500, (6_000, 12_000, 18_000), 20_000, cropped, crop_area, mixup=0.1)


def rule_head(head: str) -> str:
    """Returns the head that is trained for one that is asked for: its logits start at zero."""
    head = RULE_HEAD if head == "auto" else head
    return head if head.startswith(ZERO) else ZERO + head


def apply_rule(config: Config, rule: Rule) -> Config:
    """Returns the options with which the rule is followed; --image_size and --head stay if they are given.

    With another batch size as many examples are seen, at a rate in proportion. The rule cuts a fixed
    share out of a picture; `crop` takes that share or more.
    """
    batch_size = config.plan.batch_size
    length = rule.num_steps - rule.warmup_steps
    falls = ",".join(repr((step - rule.warmup_steps) / length) for step in rule.decay_steps)
    augment = f"flip,crop({rule.min_crop_area:.4g})" + (f",mixup({rule.mixup:g})" if rule.mixup else "")
    phase = {
        "name": "bit",
        "for": f"{rule.num_steps * BATCH_SIZE}examples",
        "train": "all",
        "lr": f"{LEARNING_RATE * batch_size / BATCH_SIZE:g}",
        "lr_schedule": f"step({falls})",
        "warmup": f"{rule.warmup_steps * BATCH_SIZE}examples",
        "optimizer": "sgd",
        "momentum": "0.9",
        "nesterov": "false",
        "weight_decay": "0",
        "augment": augment,
    }
    text = "; ".join(f"{key}={value}" for key, value in phase.items())
    # With what is left to the other options, so that what is printed is the whole phase.
    [spec] = config.replace(phase=(text,)).phases
    return config.replace(
        phase=(phase_text(spec),),
        head=rule_head(config.model.head),
        image_size=config.model.image_size or rule.image_size_px,
    )
