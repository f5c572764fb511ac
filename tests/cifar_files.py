"""Files in CIFAR's binary layout, made from random pictures."""

from __future__ import annotations

import numpy as np

NAMES = {
    10: ([f'data_batch_{number}.bin' for number in range(1, 6)], ['test_batch.bin'], 'cifar-10-batches-bin'),
    100: (['train.bin'], ['test.bin'], 'cifar-100-binary'),
}


def write_cifar(root, classes, images=2, seed=0):
    """Files of so many images each, in the layout that CIFAR's page describes; what each file holds."""
    random, written = np.random.default_rng(seed), {}
    train, test, folder = NAMES[classes]
    (root / folder).mkdir(parents=True)
    for name in train + test:
        content, written[name] = b'', []
        for _ in range(images):
            image, label = random.integers(0, 256, (32, 32, 3), np.uint8), int(random.integers(classes))
            labels = [label] if classes == 10 else [int(random.integers(20)), label]
            content += bytes(labels) + b''.join(image[..., channel].tobytes() for channel in range(3))
            written[name].append((image, label))
        (root / folder / name).write_bytes(content)
    return written
