"""Changes one after another, made from their names."""

import tensorflow as tf

from trainer.data.augment.change import AUGMENTATIONS, Change, Mixing
from trainer.data.augment.mixing import partners
from trainer.tasks import SINGLE_LABEL, Task
from trainer.values import Calls, UsageError, parse_calls


class Augment:
    """Changes of pictures one after another, then, perhaps, one with the next."""

    def __init__(self, changes: list[Change], mixing: Mixing | None = None, *, text: str = ""):
        self._changes, self._mixing, self._text = changes, mixing, text

    def __str__(self) -> str:
        """Returns what `make_augment` reads as the same."""
        return self._text

    @property
    def mixes(self) -> bool:
        """Whether a picture depends on the others of its batch, and has more than one label."""
        return self._mixing is not None

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns [P] float32 in [0, 1], all that chance decides for one picture; seed is [2] int32."""
        # Each change draws from a seed of its own, or flip and crop would go together.
        draws = [
            tf.random.stateless_uniform([change.num_draws], tf.random.experimental.stateless_fold_in(seed, i))
            for i, change in enumerate(self._changes)
        ]
        if self._mixing:
            last = tf.random.experimental.stateless_fold_in(seed, len(self._changes))
            draws.append(self._mixing.draw(last))
        return tf.concat(draws, axis=0)

    def apply(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Changes images [B, H, W, 3] float32 in [0, 1] as draws [B, P] say; shape and range stay.

        Each picture by itself: they are mixed by `mix`, after that.
        """
        shape = images.shape
        for change, part in zip(self._changes, self._split(draws), strict=False):
            images = change.apply(images, part)
        return tf.ensure_shape(images, shape)

    def mix(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        draws: tf.Tensor,
        *,
        mask: tf.Tensor,
        num_classes: int,
        task: Task = SINGLE_LABEL,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes each picture with the next real one of its batch.

        Args:
          images: [B, H, W, 3] float32 in [0, 1].
          labels: [B], as the task has them.
          draws: [B, P] float32.
          mask: [B] float32, 0 for padding, which is mixed with itself.
          num_classes: K.
          task: what labels mean.

        Returns:
          Images of the same shape and range, and targets [B, K] float32: those of the labels, in the shares
          in which the pictures are in each.

        Raises:
          ValueError: nothing here mixes.
        """
        if not self._mixing:
            raise ValueError("there is no mixup or cutmix here")
        other = partners(mask)
        mixed, share = self._mixing.mix(images, tf.gather(images, other), self._split(draws)[-1])
        classes = task.targets(labels, num_classes)
        own = share[:, None]
        targets = own * classes + (1.0 - own) * tf.gather(classes, other)
        return tf.ensure_shape(mixed, images.shape), targets

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Changes one picture [H, W, 3] as a pipeline does, but for the mixing."""
        return self.apply(image[None], self.draw(seed)[None])[0]

    def _split(self, draws: tf.Tensor) -> list[tf.Tensor]:
        counts = [change.num_draws for change in self._changes]
        counts += [self._mixing.num_draws] if self._mixing else []
        return tf.split(draws, counts, axis=1)


def make_augment(text: str | Calls) -> Augment | None:
    """Returns the composition that e.g. `flip,crop(0.6)` names; None for an empty text.

    Raises:
      UsageError: an unknown name, wrong arguments, or a mixing that is not the last and only one.
    """
    calls = parse_calls(text) if isinstance(text, str) else text
    chain = [AUGMENTATIONS.choose(call)() for call in calls]
    mixing = [call for call, one in zip(calls, chain, strict=True) if isinstance(one, Mixing)]
    if len(mixing) > 1:
        raise UsageError(
            f"augment: {' and '.join(map(str, mixing))} both mix a picture with the next: name one of them"
        )
    if mixing and not isinstance(chain[-1], Mixing):
        raise UsageError(
            f"augment: {mixing[0]} mixes pictures that are done, and must come last, not before {calls[-1]}"
        )
    changes = [one for one in chain if isinstance(one, Change)]
    last = next((one for one in chain if isinstance(one, Mixing)), None)
    return Augment(changes, last, text=str(calls)) if chain else None
