"""Your own training loop around our pictures, splits, network and head.

`trainer.prepare` opens what the options name and decides nothing else: what a step does, how many there are,
what is measured and kept is up to this file. Here the head trains, the network below it stays as it is.

    python examples/custom_loop.py --source=folder:photos --batch_size=16
"""

import sys

import tensorflow as tf
import tf_keras

import trainer


def train(made, *, epochs: int = 5, learning_rate: float = 1e-3) -> list[dict[str, float]]:
    """Trains the head of `made`; returns of each epoch {"loss": in training, "accuracy": on validation}."""
    model, splits = made.classifier, made.splits.indices
    head = [variable for name, variable in model.named_variables.items() if name.startswith("head/")]
    optimizer = tf_keras.optimizers.Adam(learning_rate)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            logits = model(batch["image"])  # [B, H, W, 3] -> [B, K]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            # The last batch of an epoch is filled up with examples that do not count: their mask is 0.
            loss = tf.reduce_sum(losses * batch["mask"]) / tf.reduce_sum(batch["mask"])
        optimizer.apply_gradients(zip(tape.gradient(loss, head), head, strict=True))
        return loss

    @tf.function
    def num_right(batch):
        right = tf.argmax(model(batch["image"]), axis=1) == batch["label"]
        return tf.reduce_sum(tf.cast(right, tf.float32) * batch["mask"])

    found = []
    per_epoch = -(-len(splits["train"]) // made.pipeline.batch_size)
    for epoch in range(epochs):
        # In another order each epoch, by seed and epoch.
        batches = made.pipeline.training(
            splits["train"], start_step=epoch * per_epoch, stop_step=(epoch + 1) * per_epoch
        )
        losses = [float(step(batch)) for batch in batches]
        right = sum(float(num_right(batch)) for batch in made.pipeline.once(splits["validation"]))
        accuracy = right / len(splits["validation"])
        found.append({"loss": sum(losses) / per_epoch, "accuracy": accuracy})
        print(f"epoch {epoch + 1}: loss {found[-1]['loss']:.4f}, validation accuracy {accuracy:.4f}")
    return found


if __name__ == "__main__":
    options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    train(trainer.prepare(**options))
